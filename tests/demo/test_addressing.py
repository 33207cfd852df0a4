"""Test which resource and which file the demo takes a path for (XNAT REST contract 6.4, 8.5, 9, 20)."""

import io
import tarfile

import httpx
import pytest

from tests.support.changing import archive_of_jane
from xnatfs.demo.archive.model import Archive, Resource, Scan
from xnatfs.demo.server.releases import RELEASES, XNAT_1_6, XNAT_1_8

SESSION = "/data/experiments/DEMO_E00001"


@pytest.fixture
def archive() -> Archive:
    made = archive_of_jane()
    session = made.experiment(made.subject(made.projects["P"], "SUBJ"), "MR")
    made.scan(session, "1")
    made.scan(session, "2")
    return made


@pytest.fixture(params=RELEASES.values(), ids=list(RELEASES))
def release(request):
    return request.param


def scans(archive: Archive) -> list[Scan]:
    return archive.experiments["DEMO_E00001"].scans


def add(archive: Archive, among: list[Resource], label: str, **files: str) -> Resource:
    made = archive.resource(among, label)
    for name, content in files.items():
        archive.file(made, f"{name}.dcm", content.encode())
    return made


def owners(reply: httpx.Response) -> list[str]:
    return [row["cat_ID"] for row in reply.json()["ResultSet"]["Result"]]


@pytest.mark.parametrize("where", ["session", "other scan", "assessor"])
def test_a_number_means_a_label_of_any_level_too(archive, jane, where):
    one, two = scans(archive)
    dicom = add(archive, one.resources, "DICOM", a="by number")
    session = archive.experiments["DEMO_E00001"]
    among = {
        "session": session.resources,
        "other scan": two.resources,
        "assessor": archive.assessor(session, "QC").out,
    }[where]
    labelled = add(archive, among, str(dicom.id), a="by label")
    path = f"resources/{dicom.id}/files"
    assert owners(jane.get(f"{SESSION}/{path}")) == [str(labelled.id), str(dicom.id)]
    assert jane.get(f"{SESSION}/{path}/a.dcm").text == "by label"
    assert jane.get(f"{SESSION}/resources/{dicom.id}").status_code == 404, "more than one has no catalogue"
    assert owners(jane.get(f"{SESSION}/scans/1/{path}")) == [str(dicom.id)]
    assert jane.get(f"{SESSION}/scans/1/{path}/a.dcm").text == "by number"


def test_a_label_of_digits_that_is_no_number(archive, jane):
    add(archive, scans(archive)[0].resources, "99999", a="by label")
    assert jane.get(f"{SESSION}/scans/1/resources/99999/files/a.dcm").text == "by label"
    assert jane.get(f"{SESSION}/scans/2/resources/99999/files/a.dcm").status_code == 404


def test_of_a_name_and_its_percent_twin_the_raw_one_comes_first(archive, jane):
    odd = archive.resource(scans(archive)[0].resources, "ODD")
    for name in ("hash#tag.txt", "hash%23tag.txt", "umläut.txt", "uml%C3%A4ut.txt"):
        archive.file(odd, name, name.encode())
    for escaped in ("hash%23tag.txt", "uml%C3%A4ut.txt"):
        assert jane.get(f"{SESSION}/scans/1/resources/{odd.id}/files/{escaped}").text == escaped


def test_of_blanks_only_old_releases_compare_the_raw_path(archive, jane, release):
    odd = archive.resource(scans(archive)[0].resources, "ODD")
    for name in ("a b+c", "a%20b%2Bc"):
        archive.file(odd, name, name.encode())
    reply = jane.get(f"{SESSION}/scans/1/resources/{odd.id}/files/a%20b%2Bc")
    assert reply.text == ("a%20b%2Bc" if release is XNAT_1_6 else "a b+c")


@pytest.mark.parametrize(("path", "name"), [("100%25.txt", "100%.txt"), ("a%3Bb.txt", "a;b.txt")])
def test_old_releases_have_no_firewall(archive, jane, release, path, name):
    odd = archive.resource(scans(archive)[0].resources, "ODD")
    archive.file(odd, name, b"odd")
    reply = jane.get(f"{SESSION}/scans/1/resources/{odd.id}/files/{path}")
    assert reply.status_code == (200 if release is XNAT_1_6 else 400)


def members(raw: bytes) -> dict[bytes, bytes]:
    with tarfile.open(fileobj=io.BytesIO(raw), encoding="latin-1") as opened:
        return {info.name.encode("latin-1"): opened.extractfile(info).read() for info in opened}  # type: ignore[union-attr]


def test_names_in_a_tar(archive, jane, release):
    odd = archive.resource(scans(archive)[0].resources, "ODD")
    for name in ("50%負荷", "b\\00"):
        archive.file(odd, name, name.encode())
    found = members(jane.get(f"{SESSION}/resources/{odd.id}/files?format=tar").content)
    assert set(found) == (
        {b"MR/resources/ODD/files/50%\xa0w", b"MR/resources/ODD/files/b/00"}
        if release is XNAT_1_6
        else {b"MR/scans/1/resources/ODD/files/50%??", b"MR/scans/1/resources/ODD/files/b/00"}
    )


@pytest.mark.parametrize("release", [XNAT_1_6], ids=["1.6"])
@pytest.mark.parametrize("first", [100, 20000])
def test_a_long_name_breaks_the_tar_of_an_old_release(archive, jane, first):
    """Answer an error before anything is sent; later, end early a reply that looks whole."""
    odd = archive.resource(scans(archive)[0].resources, "ODD")
    for name, content in (("first", b"1" * first), ("x" * 100, b"2"), ("last", b"3")):
        archive.file(odd, name, content)
    reply = jane.get(f"{SESSION}/resources/{odd.id}/files?format=tar")
    if first == 100:
        assert reply.status_code == 500
    else:
        assert (reply.status_code, reply.content.count(b"MR/")) == (200, 1)
        assert len(reply.content) == 2 * 10240, "whole records only: the file is cut, and nothing ends it"


@pytest.mark.parametrize("release", [XNAT_1_8], ids=["1.8"])
def test_a_long_name_is_no_trouble_later(archive, jane):
    odd = archive.resource(scans(archive)[0].resources, "ODD")
    archive.file(odd, "x" * 100, b"2")
    found = members(jane.get(f"{SESSION}/resources/{odd.id}/files?format=tar").content)
    assert list(found) == [b"MR/scans/1/resources/ODD/files/" + b"x" * 100]
