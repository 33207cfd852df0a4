"""Test xnatfs as one file, made of the packages that are installed here; `scripts/build --check` does the rest."""

import os
import re
import subprocess
import sys
import time
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from scripts.building.bundle import bundle, licences, packages, zipped
from scripts.building.wheels import PYTHONS, REQUIREMENTS
from tests.support.demos import serving
from tests.support.mounting import daemons, end, environment, mounted_file_system, run
from xnatfs import __version__

ROOT = Path(__file__).parents[2]
MOMENT = 1_700_000_000
# What a mount needs.
DISTRIBUTIONS = (
    "anyio", "argcomplete", "attrs", "certifi", "h11", "httpcore", "httpx", "idna", "outcome",
    "pyfuse3", "PyYAML", "sniffio", "sortedcontainers", "trio", "typing_extensions",
)  # fmt: skip


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    ours = [path for path in sorted((ROOT / "xnatfs").rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    found = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in ours}
    for name in DISTRIBUTIONS:
        for path in distribution(name).files or ():
            if ".." not in path.parts and path.suffix != ".pyc":
                found[path.as_posix()] = Path(str(path.locate())).read_bytes()
    return found


@pytest.fixture(scope="module")
def one_file(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("dist") / "xnatfs.pyz"
    bundle(files, __version__, made, MOMENT)
    return made


def start(one_file: Path, home: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, one_file, *words, env=environment(home), cwd=home)


def test_equal_packages_make_equal_files(files, one_file, tmp_path):
    time.sleep(0.01)
    again = tmp_path / "again.pyz"
    bundle(dict(reversed(files.items())), __version__, again, MOMENT)
    assert again.read_bytes() == one_file.read_bytes()
    assert os.access(again, os.X_OK)


def test_it_unpacks_itself_once_and_starts_quickly(one_file, tmp_path):
    starts = [subprocess.Popen([sys.executable, one_file, "--version"], env=environment(tmp_path)) for _ in range(3)]
    assert [process.wait(60) for process in starts] == [0, 0, 0]
    (build,) = (tmp_path / ".cache/xnatfs-program").iterdir()
    before = build.stat().st_ctime_ns
    used = os.times()
    assert start(one_file, tmp_path, "--version").stdout == f"xnatfs {__version__}\n"
    now = os.times()
    assert now.children_user + now.children_system - used.children_user - used.children_system < 0.4
    assert build.stat().st_ctime_ns == before


def test_links_to_it_are_the_other_programs(one_file, tmp_path):
    link = tmp_path / "xnatctl"
    link.symlink_to(one_file)
    assert start(link, tmp_path, "--version").stdout == f"xnatctl {__version__}\n"


def test_packages_that_others_could_have_written_are_not_run(one_file, tmp_path):
    place = tmp_path / ".cache/xnatfs-program"
    place.mkdir(parents=True)
    place.chmod(0o777)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = run(sys.executable, one_file, "--version", env=environment(tmp_path, TMPDIR=str(temporary)))
    assert done.returncode == 0
    assert list(temporary.glob("xnatfs-program-*/*/xnatfs"))
    (temporary / f"xnatfs-program-{os.getuid()}").chmod(0o777)
    done = run(sys.executable, one_file, "--version", env=environment(tmp_path, TMPDIR=str(temporary)))
    assert done.returncode == 1
    assert "can be written by others" in done.stderr


@pytest.mark.fuse
def test_it_mounts_by_processes_of_its_own(one_file, tmp_path):
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with serving() as demo:
        login = {"XNAT_USER": demo.login["user"], "XNAT_PASS": demo.login["password"]}
        env = environment(tmp_path, **login)
        done = run(sys.executable, one_file, "mount", "--url", demo.url, mountpoint, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        try:
            assert "BRAINS" in os.listdir(mountpoint / "projects")
            commands = [Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in daemons(tmp_path)]
            assert any("run_bundled.py" in word for command in commands for word in command)
        finally:
            run(sys.executable, one_file, "umount", mountpoint, env=env)
            end(mountpoint, tmp_path)
        assert mounted_file_system(mountpoint) == ""


def test_a_service_starts_the_file_itself(one_file, tmp_path):
    code = "from xnatfs.common import program; print(program.find('xnatfs'), program.find('xnatctl'))"
    assert start(one_file, tmp_path, "--version").returncode == 0
    (build,) = (tmp_path / ".cache/xnatfs-program").iterdir()
    env = environment(tmp_path, PYTHONPATH=str(build), XNATFS_FILE="/opt/xnatfs.pyz")
    done = run(sys.executable, "-P", "-c", code, env=env)
    assert done.stdout == "['/opt/xnatfs.pyz'] ['/opt/xnatfs.pyz', 'ctl']\n"


def test_every_package_has_its_licence(files, one_file):
    with zipfile.ZipFile(one_file) as outer:
        texts = outer.read("LICENCES.txt").decode()
    for name in DISTRIBUTIONS:
        assert f"\n{name.lower()}-".replace("_", "-") in texts.lower().replace("_", "-")
    with pytest.raises(SystemExit, match="none-1 states no licence"):
        list(licences({"none-1.dist-info/METADATA": b"Name: none\n\n"}))


def test_wheels_of_several_pythons_are_one_package(tmp_path):
    for minor in (11, 12):
        inside = {"p/__init__.py": b"", f"p/c.cpython-3{minor}.so": str(minor).encode(), "p-1.dist-info/RECORD": b"x"}
        (tmp_path / f"p-1-cp3{minor}.whl").write_bytes(zipped(inside, MOMENT))
    assert sorted(packages(tmp_path.glob("*.whl"))) == ["p/__init__.py", "p/c.cpython-311.so", "p/c.cpython-312.so"]
    (tmp_path / "p-1-other.whl").write_bytes(zipped({"p/__init__.py": b"another"}, MOMENT))
    with pytest.raises(SystemExit, match="another p/__init__.py"):
        packages(tmp_path.glob("*.whl"))


def test_what_goes_in_is_known_by_its_digest():
    pins = [line for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith(("#", " "))]
    assert pins
    assert all(line.endswith("\\") and "==" in line for line in pins)
    assert PYTHONS[0] == 11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=]", each)[0].lower() for each in project["dependencies"]}
    pinned = {line.partition("==")[0].replace("-", ".") for line in pins}
    assert {name.replace("-", ".") for name in needed} <= pinned
