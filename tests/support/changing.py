"""Make a small archive for each test that changes one, and clients of it."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import httpx

from xnatfs.demo.archive.model import Archive, User
from xnatfs.demo.fixtures import phantom
from xnatfs.demo.server.app import DemoXnat

OWNER, MEMBER, COLLABORATOR, OUTSIDER, ADMIN = "owner", "member", "collaborator", "outsider", "admin"
Client = Callable[..., httpx.Client]


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1_704_164_645.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def small_archive() -> Archive:
    """Make project P of three roles with subject S and its session E (E00001), which has scan 1; project Q is empty."""
    archive = Archive()
    for name in (OWNER, MEMBER, COLLABORATOR, OUTSIDER, ADMIN):
        archive.users[name] = User(name, name, admin=name == ADMIN)
    project = archive.project("P", "Project", owner="Owners", member="Members", collaborator="Collaborators")
    archive.project("Q", "Another", owner="Owners", collaborator="Collaborators")
    session = archive.experiment(archive.subject(project, "S"), "E")
    scan = archive.scan(session, "1", "T1")
    archive.file(archive.resource(scan.resources, "DICOM", "DICOM"), "1.dcm", b"one")
    return archive


def archive_of_jane() -> Archive:
    """Make an archive whose user jane owns its one project, P, which is empty."""
    archive = Archive()
    archive.users["jane"] = User("jane", "JANE")
    archive.project("P", "P", jane="Owners")
    return archive


@contextmanager
def clients(demo: DemoXnat) -> Iterator[Client]:
    opened: list[httpx.Client] = []

    def make(user: str = "", **headers: str) -> httpx.Client:
        made = httpx.Client(transport=httpx.MockTransport(demo), base_url="http://xnat", headers=headers)
        opened.append(made)
        if user:
            login = (user, demo.archive.users[user].password)
            assert made.post("/data/JSESSION", auth=login).status_code == 200
        return made

    yield make
    for made in opened:
        made.close()


def rows(response: httpx.Response) -> list[dict[str, str]]:
    assert response.status_code == 200, response.text
    found: list[dict[str, str]] = response.json()["ResultSet"]["Result"]
    return found


def column(response: httpx.Response, name: str) -> list[str]:
    return sorted(row[name] for row in rows(response))


def images(study: str = "study", number: int = 1, modality: str = "MR", *, patient: str = "PAT") -> dict[str, bytes]:
    """Make two small images of a series, as files of a folder."""
    series = phantom.Series(study, number, f"series {number}", modality, rows=4, columns=4, slices=2)
    made = phantom.dicom_series(series, patient)
    return {f"{number}/IM{index}": content for index, (_, content) in enumerate(made)}


def zip_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
    return out.getvalue()


def tar_of(files: dict[str, bytes], mode: Literal["w", "w:gz"] = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as made:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return out.getvalue()
