"""Test xnatfs as one file, made of the packages that are installed here; `scripts/build --check` does the rest."""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from scripts.building import deb
from scripts.building.bundle import bundle, check_glibc, licences, packages, zipped
from scripts.building.wheels import PYTHONS, REQUIREMENTS
from tests.support.demos import serving
from tests.support.mounting import daemons, end, environment, mounted_file_system, run
from xnatfs import __version__

ROOT = Path(__file__).parents[2]
MOMENT = 1_700_000_000
# What a mount needs.
DISTRIBUTIONS = (
    "anyio", "argcomplete", "attrs", "cachetools", "certifi", "h11", "httpcore", "httpx", "idna", "outcome",
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
    mountpoint, helper = tmp_path / "mnt", tmp_path / "mount.xnatfs"
    mountpoint.mkdir()
    helper.symlink_to(one_file)
    with serving() as demo:
        login = {"XNAT_USER": demo.login["user"], "XNAT_PASS": demo.login["password"]}
        env = environment(tmp_path, **login)
        # As mount(8) does: `/usr/bin/env python3`, without PATH.
        words = ["python3", helper, demo.url, mountpoint]
        bare = {key: value for key, value in env.items() if key != "PATH"}
        done = subprocess.run(words, executable=sys.executable, env=bare, cwd=tmp_path, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (0, b"")
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


def test_nothing_in_it_needs_a_newer_glibc_than_the_oldest_system(files):
    old, new = b"\0GLIBC_2.2.5\0GLIBC_2.28\0", b"\0GLIBC_2.9\0GLIBC_2.34\0"
    check_glibc({"a.so.3": old, "b.abi3.so": old, "c.py": new})
    with pytest.raises(SystemExit, match=r"b.so needs glibc 2.34"):
        check_glibc({"a.so": old, "b.so": new})
    compiled = [name for name in files if name.endswith(".so")]
    with pytest.raises(SystemExit, match="needs glibc 2.9"):  # a real one names them in this way
        check_glibc({compiled[0]: files[compiled[0]].replace(b"\0GLIBC_2.", b"\0GLIBC_2.9")})


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")
def test_the_package_has_the_programs_the_helpers_and_their_manual(one_file, tmp_path):
    made = [tmp_path / name for name in ("one.deb", "other.deb")]
    for path in made:
        deb.package(one_file, ROOT / "docs/man", __version__, path, MOMENT)
    assert made[0].read_bytes() == made[1].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.deb", "other.deb"]
    subprocess.run(["dpkg-deb", "-x", made[0], tmp_path / "root"], check=True)
    root = tmp_path / "root"
    assert start(root / "usr/bin/xnatctl", tmp_path, "--version").stdout == f"xnatctl {__version__}\n"
    helped = run(sys.executable, root / "usr/sbin/mount.xnatfs", "--help", env=environment(tmp_path))
    assert helped.stderr.startswith("mount.xnatfs: option --help not recognized")
    pages = {str(path.relative_to(root / "usr/share/man")) for path in (root / "usr/share/man").glob("*/*")}
    assert pages == {f"man{path.suffix[1:]}/{path.name}.gz" for path in (ROOT / "docs/man").iterdir()}
    assert {"man1/xnatfs.1.gz", "man1/xnatctl.1.gz", "man8/mount.xnatfs.8.gz"} < pages
    assert "httpx" in (root / "usr/share/doc/xnatfs/copyright").read_text()


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
