"""Make a small archive: a project with one session, a series of 40 images, a small file and a big one."""

import random

from xnatfs.demo.archive.model import Archive, User

USER, PASSWORD = "jane", "open sesame"
EXPERIMENT = "XNAT_E00001"
FOLDER = "projects/P/S/E/resources/FILES"
SERIES = "projects/P/S/E/scans/1/DICOM"

_random = random.Random(6)
SMALL = _random.randbytes(300_000)
BIG = _random.randbytes(10 * 2**20 + 12_345)
IMAGES = {f"{number:03}.dcm": _random.randbytes(20_000 + number) for number in range(40)}


def stage_archive() -> Archive:
    archive = Archive()
    archive.users[USER] = User(USER, PASSWORD)
    project = archive.project("P", "A project", jane="Owners")
    session = archive.experiment(archive.subject(project, "S", "XNAT_S00001"), "E", EXPERIMENT)
    series = archive.resource(archive.scan(session, "1", "T1").resources, "DICOM", "DICOM", "RAW")
    for name, content in IMAGES.items():
        archive.file(series, name, content)
    files = archive.resource(session.resources, "FILES")
    archive.file(files, "small.bin", SMALL)
    archive.file(files, "big.bin", BIG)
    public = archive.project("PUBLIC", "For everybody", "public")
    archive.experiment(archive.subject(public, "O", "XNAT_S00002"), "O_MR", "XNAT_E00002")
    return archive


def file_path(archive: Archive, name: str) -> str:
    """Return the path, for a URL, of a file of the session's resource."""
    resource = archive.experiments[EXPERIMENT].resources[0]
    return f"/data/experiments/{EXPERIMENT}/resources/{resource.id}/files/{name}"
