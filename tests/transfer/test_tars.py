"""Test that small files come in few tars, and what a tar does not bring in other ways: never wrong bytes."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.commanding import SESSION, Shell, shell
from tests.transfer.test_download import DOWNLOAD, content, fetched, files, truth
from xnatfs.demo.archive.entries import Entry
from xnatfs.demo.server.app import Request
from xnatfs.demo.server.reply import Failed, Reply

COUNT = 12


@pytest.fixture(params=[True, False], ids=["digests", "no digests"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell]:
    """Provide a demo that states digests, and one that states none; scans 1, 2 and 3 have files of equal names."""
    with shell(tmp_path / "home", digests=request.param) as made:
        fill(made)
        yield made


def fill(shell: Shell) -> None:
    for number, scan in enumerate(shell.session().scans[:3]):
        for index in range(COUNT):
            data = hashlib.sha256(b"%d %d" % (number, index)).digest() * 10
            shell.app.archive.file(scan.resources[0], f"same-{index:02}.dcm", data)


def tars(shell: Shell) -> list[list[str]]:
    """Return the resources that each tar was requested of."""
    asked = [record for record in shell.app.requests if record.query.get("format") == "tar"]
    return [record.path.partition("/resources/")[2].removesuffix("/files").split(",") for record in asked]


def numbers(shell: Shell, *places: int) -> list[str]:
    return [str(shell.session().scans[place].resources[0].id) for place in places]


def in_tars(
    shell: Shell, change: Callable[[bytes], bytes] = bytes, entry: Entry | None = None, holds: bytes | None = None
) -> None:
    """Change the bytes of each tar, or what one file is in it; None where it is missing there."""

    def changed(request: Request) -> Reply | None:
        if request.query.get("format") != "tar":
            return None
        right = entry.content if entry else None
        if entry:
            entry.content = holds
        reply, _ = shell.app._answer(request)
        data = b"".join(reply.pieces())
        if entry:
            entry.content = right
        return replace(reply, body=change(data)) if reply.status == 200 else reply

    shell.app.faults.append(changed)


def test_files_of_several_scans_come_in_one_tar(site):
    site.ctl(*DOWNLOAD)
    assert files(site.home / "data" / SESSION) == truth(site)
    assert tars(site) == [numbers(site, 0, 1, 2)]
    assert not any("same-" in path for path in fetched(site)), "and not by themselves"
    assert len(fetched(site)) == 7, "scans with few files"


def test_what_a_tar_brings_is_not_stored_twice(site):
    site.ctl(*DOWNLOAD)
    cached = sum(path.stat().st_size for path in (site.home / ".cache").rglob("*") if path.is_file())
    written = sum(len(data) for name, data in truth(site).items() if "same-" not in name)
    assert cached < written + 200_000, "the index, and the single files"
    assert not list((site.home / "data").rglob("*.part"))


def test_a_tar_that_breaks_is_followed_by_smaller_ones(site):
    broken: list[bool] = []

    def once(data: bytes) -> bytes:
        broken.append(True)
        return data[: len(data) // 2] if len(broken) == 1 else data

    in_tars(site, once)
    site.ctl(*DOWNLOAD)
    assert files(site.home / "data" / SESSION) == truth(site)
    first, *others = tars(site)
    assert first == numbers(site, 0, 1, 2)
    assert others
    assert all(len(each) == 1 for each in others), "of one resource each"
    assert numbers(site, 0) not in others, "which has come"


def test_files_come_one_by_one_if_every_tar_breaks(site):
    in_tars(site, lambda data: data[:1000])
    site.ctl(*DOWNLOAD)
    assert files(site.home / "data" / SESSION) == truth(site)
    assert len(tars(site)) == 4
    assert len(fetched(site)) >= 3 * COUNT


def test_files_come_one_by_one_if_the_server_makes_no_tar(site):
    def refused(request: Request) -> Reply | None:
        return Failed(500, "no tar").reply() if request.query.get("format") == "tar" else None

    site.app.faults.append(refused)
    site.ctl(*DOWNLOAD)
    assert files(site.home / "data" / SESSION) == truth(site)


def test_a_member_that_is_missing_comes_by_itself(site):
    entry = site.session().scans[0].resources[0].entries[-1]
    in_tars(site, entry=entry)
    site.ctl(*DOWNLOAD)
    assert files(site.home / "data" / SESSION) == truth(site)
    assert len(tars(site)) == 1
    assert [path for path in fetched(site) if "same-" in path][0].endswith(entry.path)
    assert len(fetched(site)) == 8


@pytest.mark.parametrize("wrong", ["bytes", "length"])
def test_a_member_that_is_wrong_comes_by_itself(tmp_path, wrong):
    with shell(tmp_path / "home") as site:
        fill(site)
        entry = site.session().scans[1].resources[0].entries[-1]
        right = content(entry)
        in_tars(site, entry=entry, holds=right[::-1] if wrong == "bytes" else right[:-1])
        site.ctl(*DOWNLOAD)
        assert files(site.home / "data" / SESSION) == truth(site)
        assert [path.rpartition("/")[2] for path in fetched(site) if "same-" in path] == [entry.path]


@pytest.mark.parametrize("digests", [True, False], ids=["digests", "no digests"])
def test_equal_names_are_told_apart_or_come_in_tars_of_their_own(tmp_path, digests, release):
    """Old releases name the members of all scans alike: without digests, each scan has a tar of its own."""
    with shell(tmp_path / "home", digests=digests, release=release) as site:
        fill(site)
        site.ctl(*DOWNLOAD)
        assert files(site.home / "data" / SESSION) == truth(site)
        assert not any("same-" in path for path in fetched(site))
        are_told_apart = release.archive_parts or (digests and release.lists_digests)
        assert len(tars(site)) == (1 if are_told_apart else 4)


def test_a_few_missing_files_come_one_by_one_and_many_in_a_tar(site):
    site.ctl(*DOWNLOAD)
    there = sorted((site.home / "data" / SESSION / "scans/1/resources/DICOM/files").glob("same-*"))
    for path in there[:3]:
        path.unlink()
    before = len(fetched(site))
    site.ctl(*DOWNLOAD)
    assert (len(tars(site)), len(fetched(site))) == (1, before + 3)
    for path in there:
        path.unlink()
    site.ctl(*DOWNLOAD)
    assert tars(site)[1:] == [numbers(site, 0)]
    assert files(site.home / "data" / SESSION) == truth(site)


def test_one_broken_catalogue_does_not_stop_the_tars_of_others(site):
    def broken(request: Request) -> Reply | None:
        several = request.query.get("format") == "tar" and "," in request.path
        return Failed(404, "Unable to find file.").reply() if several else None

    site.app.faults.append(broken)
    site.ctl(*DOWNLOAD)
    assert files(site.home / "data" / SESSION) == truth(site)
    assert sorted(tars(site)[1:]) == sorted([each] for each in numbers(site, 0, 1, 2))
    assert not any("same-" in path for path in fetched(site))


def test_large_files_come_one_by_one(fresh):
    resource = fresh.session().scans[0].resources[0]
    for index in range(4):
        fresh.app.archive.file(resource, f"big-{index}.dcm", os.urandom(15 * 2**20))
    fresh.ctl(*DOWNLOAD)
    assert files(fresh.home / "data" / SESSION) == truth(fresh)
    assert tars(fresh) == []


def test_an_edited_file_is_kept_while_its_tar_comes(site):
    """Write a file in the place of one of which the tar is on its way."""
    path = site.home / "data" / SESSION / "scans/1/resources/DICOM/files/same-00.dcm"

    def edit(request: Request) -> Reply | None:
        if request.query.get("format") == "tar":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"mine")
        return None

    site.app.faults.append(edit)
    done = site.ctl(*DOWNLOAD, status=8)
    assert "same-00.dcm: is kept" in done.err
    assert path.read_bytes() == b"mine"
    shutil.rmtree(site.home / "data")
    site.app.faults.clear()
    site.ctl(*DOWNLOAD)
    assert files(site.home / "data" / SESSION) == truth(site)


def test_a_file_that_another_scan_has_got_meanwhile_is_not_taken_for_a_listed_one(tmp_path, release):
    """It has the name and the length of one of the next scan, is not listed, and comes first."""
    with shell(tmp_path / "home", digests=False, release=release) as site:
        fill(site)
        first, second, _ = (scan.resources[0] for scan in site.session().scans[:3])
        site.app.archive.file(second, "late.dcm", b"listed" * 100)
        before = truth(site)

        def added(request: Request) -> Reply | None:
            if request.query.get("format") == "tar" and not any(each.path == "late.dcm" for each in first.entries):
                site.app.archive.file(first, "late.dcm", b"absent" * 100)
            return None

        site.app.faults.append(added)
        site.ctl(*DOWNLOAD)
        assert files(site.home / "data" / SESSION) == before


def test_a_file_of_a_scan_is_not_taken_for_one_of_the_session(tmp_path, release):
    """Names, label and lengths are equal, and old releases do not name the scan in the members of an archive."""
    with shell(tmp_path / "home", digests=False, release=release) as site:
        own = site.app.archive.resource(site.session().resources, "SAME", "NIFTI", "RAW")
        of_scan = site.app.archive.resource(site.session().scans[0].resources, "SAME", "NIFTI", "RAW")
        for index in range(COUNT):
            site.app.archive.file(own, f"{index}.nii", b"own" * 1000)
            site.app.archive.file(of_scan, f"{index}.nii", b"of " * 1000)
        site.ctl(*DOWNLOAD, "--session-resources")
        owned = {f"resources/SAME/files/{each.path}": content(each) for each in own.entries}
        found = files(site.home / "data" / SESSION)
        assert {name: data for name, data in found.items() if "SAME" in name and "scans" not in name} == owned
        assert {name: data for name, data in found.items() if name.startswith("scans/")} == truth(site)
