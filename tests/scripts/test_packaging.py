"""Test what pip installs: the wheel alone, without pyfuse3, away from the checkout."""

import re
import sys
import tarfile
import zipfile
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.demos import Demo
from tests.support.environments import environment_with, needs_registry
from tests.support.mounting import environment, run

pytestmark = needs_registry

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it; return their directory."""
    out = tmp_path_factory.mktemp("dist")
    python = environment_with("build", ["build==1.2.2"]) / "python"
    ours = ["pyproject.toml", "README.md", "LICENSE", "xnatfs"]
    copy = tmp_path_factory.mktemp("source")
    run("cp", "-r", *(ROOT / name for name in ours), copy)
    done = run(python, "-m", "build", "--outdir", out, copy, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel and what it needs in a new environment; return the directory of its programs."""
    (wheel,) = built.glob("*.whl")
    directory = tmp_path_factory.mktemp("installed")
    for command in (
        (sys.executable, "-m", "venv", directory),
        (directory / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", wheel),
    ):
        done = run(*command, timeout=600)
        assert done.returncode == 0, done.stderr
    return directory / "bin"


def at(demo: Demo, installed: Path, home: Path, program: str, *words: str | Path) -> CompletedProcess[str]:
    login = {"XNAT_URL": demo.url, "XNAT_USER": demo.login["user"], "XNAT_PASS": demo.login["password"]}
    return run(installed / program, *words, cwd=home, env=environment(home, **login))


def test_the_sdist_holds_the_licence_and_the_wheel_says_that_it_is_typed(built):
    (sdist,) = built.glob("*.tar.gz")
    (wheel,) = built.glob("*.whl")
    with tarfile.open(sdist) as archive:
        assert [name for name in archive.getnames() if name.endswith("/LICENSE")]
    with zipfile.ZipFile(wheel) as archive:
        members = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in members if name.endswith(".dist-info/METADATA"))
    assert "xnatfs/py.typed" in members
    assert {name.partition("/")[0] for name in members if ".dist-info/" not in name} == {"xnatfs"}
    needed = [
        line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist:")
    ]
    names = {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in needed}
    always = {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in needed if "extra ==" not in line}
    assert "pyfuse3" in names - always
    assert "httpx" in always


def test_xnatctl_works_whole_without_pyfuse3(demo, installed, tmp_path):
    assert run(installed / "python", "-c", "import pyfuse3", cwd=tmp_path).returncode == 1
    listed = at(demo, installed, tmp_path, "xnatctl", "project", "list", "-q")
    assert listed.returncode == 0, listed.stderr
    assert "BRAINS" in listed.stdout.split()
    entry = next(entry for entry in demo.manifest if entry.path[:2] == ("projects", "BRAINS") and "scans" in entry.path)
    project, session = entry.path[1], entry.path[3]
    words = ("session", "download", "-P", project, "-E", session, "--out", tmp_path / "out")
    downloaded = at(demo, installed, tmp_path, "xnatctl", *words)
    assert downloaded.returncode == 0, downloaded.stderr
    assert [path for path in (tmp_path / "out").rglob("*.dcm") if path.stat().st_size]


def test_a_mount_says_in_one_line_what_to_install(demo, installed, tmp_path):
    (tmp_path / "mnt").mkdir()
    done = at(demo, installed, tmp_path, "xnatfs", "mount", tmp_path / "mnt")
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "pyfuse3 is missing: pip install 'xnatfs[mount]'" in line
