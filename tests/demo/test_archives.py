"""Test that archives of the demo are as XNAT's (XNAT REST contract 6.6, 8.8, 9)."""

import io
import tarfile
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.support.changing import archive_of_jane
from xnatfs.demo.archive.model import Archive
from xnatfs.demo.content.zips import Member, zipped
from xnatfs.demo.server.reply import Slice

SESSION = "/data/experiments/DEMO_E00001"
LONG = "1.2.840.113654.2.45.2.108105." * 5 + "dcm"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    made = archive_of_jane()
    project = made.projects["P"]
    subject = made.subject(project, "SUBJ")
    session = made.experiment(subject, "MR")
    scan = made.scan(session, "1", "T1/3D & more")
    dicom = made.resource(scan.resources, "DICOM")
    made.file(dicom, "1.dcm", b"one" * 1000)
    made.file(dicom, "lost.dcm", None)
    made.file(made.resource(scan.resources, ""), "resources/files/x.txt", b"x")
    made.file(made.resource(session.resources, "NOTES"), "n.txt", b"note")
    made.file(made.resource(subject.resources, "S"), "s.txt", b"s")
    disk = tmp_path / "disk.bin"
    disk.write_bytes(b"on disk")
    made.file(made.resource(project.resources, "DISK"), "disk.bin", disk)
    odd = made.resource(project.resources, "ODD")
    for name in (LONG, "back\\slash", "größe"):
        made.file(odd, name, name.encode())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as inner:
        inner.writestr("deep/inside.txt", b"inside")
    zips = made.resource(project.resources, "ZIPS")
    made.file(zips, "data.zip", packed.getvalue())
    made.file(zips, "folder.zip/plain.txt", b"not in a zip")
    return made


def opened(jane: httpx.Client, path: str) -> zipfile.ZipFile:
    reply = jane.get(path)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/zip")
    assert ("content-length" in reply.headers) == (len(reply.content) <= 8192)
    return zipfile.ZipFile(io.BytesIO(reply.content))


def names(jane: httpx.Client, path: str) -> list[str]:
    if "format=zip" in path:
        return sorted(opened(jane, path).namelist())
    with tarfile.open(fileobj=io.BytesIO(jane.get(path).content)) as read:
        return sorted(read.getnames())


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("scans/1/resources/DICOM/files?format=zip", "MR/scans/1-T1_3D__amp__more/resources/DICOM/files/1.dcm"),
        ("resources/DICOM/files?all=true&format=zip", "MR/scans/1/resources/DICOM/files/1.dcm"),
        ("resources/NOTES/files?format=tar", "MR/resources/NOTES/files/n.txt"),
        ("scans/1/resources/DICOM/files?format=tar&structure=simplified", "MR/scans/1/DICOM/1.dcm"),
        ("scans/1/resources/DICOM/files?format=tar&structure=legacy", "MR/SCANS/1/DICOM/1.dcm"),
        ("resources/NOTES/files?format=tar&structure=legacy", "MR/RESOURCES/NOTES/n.txt"),
        ("scans/1/resources/DICOM/files?format=zip&structure=improved", "scans/1_T1_3D & more/DICOM/1.dcm"),
        ("scans/1/resources/DICOM/files?format=tar&structure=improved", "scans/1/DICOM/1.dcm"),
        ("files?format=zip&structure=improved", "resources/DEMO_E00001_ /NOTES/n.txt"),
        ("resources/NOTES/files?all=true&format=zip&structure=improved", "resources/NOTES/n.txt"),
        (
            "resources/NOTES/files?format=zip&projectIncludedInPath=true&subjectIncludedInPath=true",
            "P/SUBJ/MR/resources/NOTES/files/n.txt",
        ),
    ],
)
def test_layouts(jane, query, found):
    assert names(jane, f"{SESSION}/{query}") == [found]


def test_simplified_takes_its_words_out_of_paths_as_well(jane, archive):
    number = archive.experiments["DEMO_E00001"].scans[0].resources[1].id
    assert names(jane, f"{SESSION}/scans/1/resources/NULL/files?format=zip&structure=simplified") == [
        f"MR/scans/1/{number}/x.txt"
    ]


def test_lost_files_are_skipped_and_nothing_else_is_not_found(jane, archive):
    everything = names(jane, f"{SESSION}/files?all=true&format=zip")
    assert len(everything) == 3
    assert not any("lost" in name for name in everything)
    archive.experiments["DEMO_E00001"].scans[0].resources[0].entries.pop(0)
    assert jane.get(f"{SESSION}/scans/1/resources/DICOM/files?format=zip").status_code == 404
    assert jane.get(f"{SESSION}/scans/1/resources/NONE/files?format=zip").status_code == 404
    assert jane.get(f"{SESSION}/scans/1/resources/NONE/files").json()["ResultSet"]["Result"] == []


def test_a_file_gone_from_the_disk_is_lost_too(jane, archive, tmp_path):
    path = f"/data/projects/P/resources/{archive.projects['P'].resources[0].id}/files"
    assert jane.get(f"{path}/disk.bin").content == b"on disk"
    (tmp_path / "disk.bin").unlink()
    gone = jane.get(f"{path}/disk.bin")
    assert gone.status_code == 404
    assert "<b>Message</b> Unable to find file.<" in gone.text
    assert "<h3>Apache Tomcat/" in gone.text
    assert jane.get(f"{path}/disk.bin?accept-not-found=true").status_code == 204
    assert jane.get(f"{path}?format=tar").status_code == 404


def test_a_tar_changes_names_but_for_their_length(jane):
    prefix = "P/resources/ODD/files"
    assert names(jane, "/data/projects/P/resources/ODD/files?format=tar") == sorted(
        [f"{prefix}/{LONG}", f"{prefix}/back/slash", f"{prefix}/gr??e"]
    )


def test_a_zip_keeps_names(jane):
    # zipfile reads a backslash as it is, on Linux
    found = names(jane, "/data/projects/P/resources/ODD/files?format=zip")
    assert [name.removeprefix("P/resources/ODD/files/") for name in found] == [LONG, "back\\slash", "größe"]


def test_a_stored_entry_has_its_size_in_front_and_a_deflated_one_behind(jane):
    stored = opened(jane, f"{SESSION}/scans/1/resources/DICOM/files?format=zip")
    deflated = opened(jane, f"{SESSION}/scans/1/resources/DICOM/files?format=zip&compression=6")
    for made, method, descriptor in ((stored, zipfile.ZIP_STORED, 0), (deflated, zipfile.ZIP_DEFLATED, 8)):
        assert made.testzip() is None
        (info,) = made.infolist()
        assert (info.compress_type, info.flag_bits & 8) == (method, descriptor)
        assert made.read(info) == b"one" * 1000


def test_a_zip_of_very_many_files_is_zip64():
    # More members than the plain directory can count; beyond 4 GiB it takes the same way.
    members = [Member(str(number), 1_704_164_645.0, Slice(b"", 0, 0)) for number in range(70000)]
    made = zipfile.ZipFile(io.BytesIO(b"".join(zipped(members))))
    assert len(made.infolist()) == 70000
    assert made.infolist()[-1].date_time == (2024, 1, 2, 3, 4, 4)


def test_one_file_as_a_zip(jane):
    made = opened(jane, f"{SESSION}/resources/NOTES/files/n.txt?format=zip")
    assert [(info.filename, made.read(info)) for info in made.infolist()] == [("n.txt", b"note")]


def test_a_file_in_a_zip_is_addressed_through_it(jane):
    base = "/data/projects/P/resources/ZIPS/files"
    for between in ("!/", "/"):
        reply = jane.get(f"{base}/data.zip{between}deep/inside.txt")
        assert (reply.content, reply.headers["content-length"]) == (b"inside", "6")
    assert jane.get(f"{base}/data.zip!/none").status_code == 404
    rows = jane.get(f"{base}/data.zip?listContents=true").json()["ResultSet"]["Result"]
    assert rows == [{"File Name": "deep/inside.txt", "Size": "6"}]
    assert jane.get(f"{base}/data.zip?format=zip").content == jane.get(f"{base}/data.zip").content


def test_a_folder_called_like_a_zip_hides_what_is_in_it(jane):
    base = "/data/projects/P/resources/ZIPS/files"
    assert jane.get(f"{base}/folder.zip/plain.txt").status_code == 404
    assert any(name.endswith("folder.zip/plain.txt") for name in names(jane, f"{base}?format=tar"))


def test_open_ranges_of_what_has_no_length_are_an_error(jane):
    path = f"{SESSION}/scans/1/files"
    for wanted, status in (("bytes=5-", 500), ("bytes=-5", 500), ("bytes=0-5", 200)):
        assert jane.get(path, headers={"Range": wanted}).status_code == status
        assert jane.get(f"{path}?format=zip", headers={"Range": wanted}).status_code == status
