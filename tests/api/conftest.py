"""Fixtures: one demo server for all tests, and a home of its own for each."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import xnatfs
from tests.support.demos import Demo, serving
from tests.support.mounting import environment, run
from xnatfs.api.portal import close_portals
from xnatfs.demo.server.app import Record

SCAN = "projects/BRAINS/SUB001/SUB001_MR1/scans/1"
DICOM = f"{SCAN}/DICOM"
NIFTI = f"{SCAN}/NIFTI/t1.nii.gz"
BIG = "projects/BRAINS/SUB001/SUB001_MR1/resources/BIG/functional.nii"


@pytest.fixture(scope="session")
def shared_demo() -> Iterator[Demo]:
    with serving() as demo:
        yield demo


@pytest.fixture
def demo(shared_demo: Demo) -> Demo:
    """Return the demo, with no request so far."""
    shared_demo.forget_requests()
    return shared_demo


@dataclass
class User:
    """A user of this machine: a home, and the login in the environment."""

    demo: Demo
    home: Path

    @property
    def login(self) -> dict[str, str]:
        return {"XNAT_USER": self.demo.login["user"], "XNAT_PASS": self.demo.login["password"]}

    def url(self, path: str = "") -> str:
        return self.demo.url.replace("http:", "xnat+http:") + (path and f"/{path}")

    def python(self, program: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a program in a process of its own, in this home."""
        env = environment(self.home, **{**self.login, **more})
        return run(sys.executable, "-c", program, self.demo.url, *words, env=env, timeout=60)

    def content(self, path: str) -> str:
        """Return the MD5 of a file as it must be."""
        (found,) = [entry.md5 for entry in self.demo.manifest if "/".join(entry.path) == path]
        return found

    def logins(self) -> int:
        return self.demo.logins() - 1

    def assert_fetched_in_archives(self) -> None:
        """Check that an archive was requested, and nothing twice; a slow machine requests more files singly."""
        bodies = Counter(self.bodies())
        assert max(bodies.values()) == 1
        assert [path for path in bodies if path.endswith("/files")] != []

    def bodies(self) -> list[str]:
        """Return the requests for content of files: of one file, or of an archive of them."""
        return [record.path for record in self.demo.requests() if "/files" in record.path and _is_content(record)]


def _is_content(record: Record) -> bool:
    return record.query.get("format") in ("tar", "zip") or not record.path.endswith("/files")


@pytest.fixture
def user(demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[User]:
    """Provide a user in this process, whose portals end with the test."""
    home = tmp_path / "home"
    home.mkdir()
    made = User(demo, home)
    for key in [key for key in os.environ if key.startswith(("XNAT", "XDG_"))]:
        monkeypatch.delenv(key)
    for key, value in {"HOME": str(home), **made.login}.items():
        monkeypatch.setenv(key, value)
    yield made
    close_portals()


@pytest.fixture
def server(user: User) -> Iterator[xnatfs.Server]:
    with xnatfs.open(user.demo.url) as opened:
        yield opened
