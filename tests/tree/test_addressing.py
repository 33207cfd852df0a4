"""Test that no file's bytes come under another one's name, whatever request servers accept.

The tree over the demo as each release answers, with digests and without: each file is its own, or an error (XNAT REST
contract 6.4, 8.5, 9).
"""

import io
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.changing import archive_of_jane
from tests.support.demos import serving
from tests.support.mounting import Mount, mounting, run
from tests.support.nodes import find
from tests.support.scripted import URL
from tests.support.wire import Wire
from xnatfs.cli.ctl.progress import Silent
from xnatfs.common.errors import BadReply, Conflict, Stale
from xnatfs.demo.archive.model import Resource
from xnatfs.demo.fixtures.lab import DemoArchive
from xnatfs.demo.server.app import DemoXnat, Request
from xnatfs.demo.server.releases import XNAT_1_6, XNAT_1_8, Release
from xnatfs.demo.server.reply import Failed
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.site import Site, open_site
from xnatfs.transfer.uploads.resources import ResourceTarget, upload
from xnatfs.transfer.uploads.resources import find as find_files
from xnatfs.tree.node import File

SCAN = "projects/P/S/E/scans/1"


class ServedSession:
    """An archive of one session with two scans, and the demo that serves it."""

    def __init__(self, release: Release, digests: bool) -> None:
        self.archive = archive_of_jane()
        self.session = self.archive.experiment(self.archive.subject(self.archive.projects["P"], "S"), "E")
        self.scans = [self.archive.scan(self.session, "1", "T1"), self.archive.scan(self.session, "2", "T2")]
        self.demo = DemoXnat(self.archive, release=release, digests=digests)

    def add(self, among: list[Resource], label: str, files: dict[str, bytes]) -> Resource:
        made = self.archive.resource(among, label)
        for path, content in files.items():
            self.archive.file(made, path, content)
        return made

    @asynccontextmanager
    async def site(self, directory: Path) -> AsyncIterator[Site]:
        config = Config(URL, cache_dir=directory, timeout=5.0)
        async with open_site(config, Credentials("jane", "JANE"), Wire(self.demo)) as site:
            yield site

    def asked(self) -> list[str]:
        """Return the requests for bytes."""
        records = [record for record in self.demo.requests if "files" in record.path and "all" not in record.query]
        return [f"{record.method} {record.path.removeprefix('/data/experiments/')}" for record in records]


@pytest.fixture(params=[True, False], ids=["digests", "no digests"])
def digests(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def world(release: Release, digests: bool) -> ServedSession:
    return ServedSession(release, digests)


async def read(site: Site, path: str) -> bytes:
    """Read as the kernel does: look up and open once more where it is stale."""
    for again in (True, False):
        node = await find(site, path)
        assert isinstance(node, File)
        try:
            blob = await node.open()
        except Stale:
            assert again
            continue
        try:
            return await blob.read(0, blob.size + 1)
        finally:
            blob.close()
    raise AssertionError


async def read_right_or_not(site: Site, path: str, content: bytes) -> bool:
    """Return whether its bytes come, which are its own."""
    try:
        assert await read(site, path) == content
    except BadReply:
        return False
    return True


async def read_all(site: Site, folder: str, files: dict[str, bytes], shown: dict[str, str] | None = None) -> None:
    """Read each file, in two orders."""
    for path in (*files, *reversed(files)):
        assert await read(site, f"{folder}/{(shown or {}).get(path, path)}") == files[path], path


# -- labels of digits ------------------------------------------------------------------------------------------------


async def test_a_label_that_is_another_resources_number(world, tmp_path):
    dicom = world.add(world.scans[0].resources, "DICOM", {"a.dcm": b"by number", "b.dcm": b"only here"})
    world.add(world.session.resources, str(dicom.id), {"a.dcm": b"by label!"})
    world.add(world.scans[1].resources, str(dicom.id), {"a.dcm": b"elsewhere"})
    async with world.site(tmp_path) as site:
        assert await read(site, f"{SCAN}/DICOM/a.dcm") == b"by number"
        assert await read(site, f"{SCAN}/DICOM/b.dcm") == b"only here"
        assert await read(site, f"projects/P/S/E/resources/{dicom.id}/a.dcm") == b"by label!"
        assert await read(site, f"projects/P/S/E/scans/2/{dicom.id}/a.dcm") == b"elsewhere"
    assert f"GET {world.session.id}/scans/1/resources/{dicom.id}/files/a.dcm" in world.asked()


@pytest.mark.parametrize("where", ["scan", "session", "subject", "project"])
async def test_a_label_that_is_a_neighbours_number(world, tmp_path, where):
    """Tell both by their labels in the archive, since the URL means both."""
    subject = world.archive.subjects[world.session.subject]
    among, folder = {
        "scan": (world.scans[0].resources, SCAN),
        "session": (world.session.resources, "projects/P/S/E/resources"),
        "subject": (subject.resources, "projects/P/S/resources"),
        "project": (world.archive.projects["P"].resources, "projects/P/resources"),
    }[where]
    one = world.add(among, "ONE", {"a.dcm": b"by number", "b.dcm": b"only here"})
    world.add(among, str(one.id), {"a.dcm": b"by label!", "c.dcm": b"there"})
    async with world.site(tmp_path) as site:
        assert await read(site, f"{folder}/ONE/a.dcm") == b"by number"
        assert await read(site, f"{folder}/ONE/b.dcm") == b"only here"
        assert await read(site, f"{folder}/{one.id}/a.dcm") == b"by label!"
        assert await read(site, f"{folder}/{one.id}/c.dcm") == b"there"


@pytest.mark.parametrize("rival", [b"by label!", b"of another length"])
async def test_an_unlabelled_resource_and_a_neighbour_labelled_like_its_number(
    world, tmp_path, release, digests, rival
):
    """Tell them by their contents: in the tar they have one name."""
    bare = world.add(world.scans[0].resources, "", {"a.dcm": b"by number"})
    world.add(world.scans[0].resources, str(bare.id), {"a.dcm": rival})
    told_apart = len(rival) != 9 or (digests and release is not XNAT_1_6)
    async with world.site(tmp_path) as site:
        assert await read_right_or_not(site, f"{SCAN}/~{bare.id}/a.dcm", b"by number") or not told_apart
        assert await read_right_or_not(site, f"{SCAN}/{bare.id}/a.dcm", rival)


async def test_a_series_is_read_right_beside_a_label_of_digits(world, tmp_path):
    files = {f"{n:02}.dcm": bytes([n]) * 100 for n in range(40)}
    dicom = world.add(world.scans[0].resources, "DICOM", files)
    world.add(world.scans[1].resources, str(dicom.id), dict.fromkeys(files, b"x" * 100))
    async with world.site(tmp_path) as site:
        await read_all(site, f"{SCAN}/DICOM", files)


async def test_a_size_that_is_asked_for_is_that_of_the_file(world, tmp_path):
    dicom = world.add(world.scans[0].resources, "DICOM", {"a.dcm": b"by number"})
    dicom.entries[0].size = ""
    world.add(world.session.resources, str(dicom.id), {"a.dcm": b"longer, by label"})
    async with world.site(tmp_path) as site:
        node = await find(site, f"{SCAN}/DICOM/a.dcm")
        assert isinstance(node, File)
        assert await node.size() == 9


@pytest.mark.parametrize("scan_id", ["T2", "1,2", "ALL", "null", "a b", "a+b", "ü"])
async def test_a_scan_whose_id_means_more_is_asked_for_with_its_session(world, tmp_path, scan_id):
    """Request it with its session, as T2 is the type of another scan."""
    scan = world.archive.scan(world.session, scan_id, "T9")
    dicom = world.add(scan.resources, "DICOM", {"a.dcm": b"right"})
    dicom.entries[0].size = ""
    async with world.site(tmp_path) as site:
        assert await read(site, f"projects/P/S/E/scans/{scan_id}/DICOM/a.dcm") == b"right"
    path = f"{world.session.id}/resources/{dicom.id}/files/a.dcm"
    assert sorted(world.asked()) == [f"GET {path}", f"HEAD {path}"]


async def test_an_assessor_whose_id_is_anothers_label(world, tmp_path):
    one = world.archive.assessor(world.session, "QC")
    world.archive.assessor(world.session, one.id)
    dicom = world.add(one.out, "DICOM", {"a.dcm": b"right"})
    async with world.site(tmp_path) as site:
        assert await read(site, "projects/P/S/E/assessors/QC/DICOM/a.dcm") == b"right"
    assert world.asked() == [f"GET {world.session.id}/resources/{dicom.id}/files/a.dcm"]


async def test_one_broken_catalogue_does_not_hide_the_resource_of_its_label(world, tmp_path):
    dicom = world.add(world.scans[0].resources, "DICOM", {"a.dcm": b"right"})
    world.add(world.session.resources, str(dicom.id), {"b.dcm": b"broken"}).broken = True
    async with world.site(tmp_path) as site:
        assert await read(site, f"{SCAN}/DICOM/a.dcm") == b"right"


async def test_nothing_is_sent_to_a_label_that_is_another_resources_number(world, tmp_path):
    dicom = world.add(world.scans[0].resources, "DICOM", {"a.dcm": b"there"})
    sent = tmp_path / "a.dcm"
    sent.write_bytes(b"to send")
    item = ("experiments", world.session.id, "scans", "2")
    async with world.site(tmp_path) as site:
        target = ResourceTarget(site.xnat, item, str(dicom.id))
        with pytest.raises(Conflict, match=f"takes the label {dicom.id} for the number of resource DICOM"):
            await upload(target, find_files(sent), overwrite=True, progress=Silent())
    assert not [record for record in world.demo.requests if record.method == "PUT"]


# -- names that are taken for others ---------------------------------------------------------------------------------

TWINS = {
    name: f"this is {name}".encode()
    for name in (
        "hash#tag.txt",
        "hash%23tag.txt",
        "hash%2523tag.txt",
        "umläut",
        "uml%C3%A4ut",
        "with blank",
        "with%20blank",
        "a b+c",
        "a%20b%2Bc",
        "plus+sign",
        "plus%2Bsign",
        "plus sign",
        "per%cent",
        "100%25",
        "100%",
        "sub dir/#",
        "sub%20dir/%23",
        "semi;colon",
        "semi%3Bcolon",
        "plain.txt",
    )
}


async def test_names_and_their_escaped_twins(world, tmp_path):
    world.add(world.scans[0].resources, "ODD", TWINS)
    async with world.site(tmp_path) as site:
        await read_all(site, f"{SCAN}/ODD", TWINS, {"100%25": "100%2525", "hash%2523tag.txt": "hash%252523tag.txt"})


async def test_what_is_in_a_folder_called_like_a_zip(world, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as inner:
        inner.writestr("inside.txt", b"in the zip")
    files = {"data.zip": packed.getvalue(), "data.zip/inside.txt": b"in a folder", "x.MRB/a": b"slices", "y.zip": b"y"}
    world.add(world.scans[0].resources, "ODD", files)
    async with world.site(tmp_path) as site:
        await read_all(site, f"{SCAN}/ODD", files, {"data.zip": "data.zip~file"})


JAPANESE = ("50%負荷.dcm", "50%安静.dcm", "50%回復.dcm")


@pytest.mark.parametrize("lengths", [(1, 2, 3), (5, 5, 5)], ids=["of other sizes", "of equal sizes"])
async def test_names_that_are_one_in_the_tar(world, tmp_path, release, digests, lengths):
    files = {name: bytes([n]) * 1000 * length for n, (name, length) in enumerate(zip(JAPANESE, lengths, strict=True))}
    world.add(world.scans[0].resources, "DICOM", files)
    told_apart = digests or len(set(lengths)) == 3 or release is XNAT_1_6
    async with world.site(tmp_path) as site:
        if told_apart:
            await read_all(site, f"{SCAN}/DICOM", files)
            return
        for name in files:
            with pytest.raises(BadReply, match="nothing distinguishes it from them"):
                await read(site, f"{SCAN}/DICOM/{name}")


async def test_names_that_are_one_in_the_tar_and_sizes_that_are_wrong(tmp_path):
    """Reject the length as proof: that of one file is in the listing of another."""
    world = ServedSession(XNAT_1_8, digests=False)
    made = world.add(world.scans[0].resources, "DICOM", {"50%負": b"12", "50%安": b"34"})
    made.entries[0].size = "1"
    async with world.site(tmp_path) as site:
        assert not await read_right_or_not(site, f"{SCAN}/DICOM/50%負", b"12")
        await read_right_or_not(site, f"{SCAN}/DICOM/50%安", b"34")


async def test_one_content_under_names_that_are_one_in_the_tar(world, tmp_path):
    files = dict.fromkeys(JAPANESE, b"the same")
    world.add(world.scans[0].resources, "DICOM", files)
    async with world.site(tmp_path) as site:
        await read_all(site, f"{SCAN}/DICOM", files)


@pytest.mark.parametrize("path", ["b\\00", "deep/b\\00"])
async def test_a_backslash_beside_a_folder(world, tmp_path, path):
    """Map the backslash, for which the tar has a slash."""
    files = {path: b"backslash", path.replace("\\", "/"): b"other one", **{f"{n}": b"%d" % n for n in range(30)}}
    world.add(world.scans[0].resources, "DICOM", files)
    async with world.site(tmp_path) as site:
        for name, content in files.items():
            assert await read_right_or_not(site, f"{SCAN}/DICOM/{name}", content) or name == path


async def test_a_resource_labelled_files(world, tmp_path):
    """Keep series of equal lengths apart: the tar of one folder must not serve the other's."""
    names = [f"{folder}{n:02}.dcm" for folder in ("", "files/") for n in range(20)]
    files = {name: name.rjust(20).encode() for name in names}
    world.add(world.scans[0].resources, "files", files)
    async with world.site(tmp_path) as site:
        await read_all(site, f"{SCAN}/files", files)


async def test_a_series_with_names_that_no_url_can_carry_comes_in_one_tar(world, tmp_path):
    files = {f"50% {n:02}.dcm": bytes([n]) * 1000 for n in range(40)}
    world.add(world.scans[0].resources, "DICOM", files)
    async with world.site(tmp_path) as site:
        for path, content in files.items():
            assert await read(site, f"{SCAN}/DICOM/{path}") == content
    assert len(world.asked()) <= 4


async def test_members_that_do_not_come_are_fetched_singly(tmp_path):
    """Fetch the files after a long name, at which the tar ends in a reply that looks whole."""
    world = ServedSession(XNAT_1_6, digests=False)
    files = {f"{n:02}{'x' * 98 if n == 20 else ''}.dcm": bytes([n]) * 1000 for n in range(40)}
    files["100%.dcm"] = b"behind the break"
    world.add(world.scans[0].resources, "DICOM", files)
    async with world.site(tmp_path) as site:
        await read_all(site, f"{SCAN}/DICOM", files)


async def test_a_member_that_is_left_out_of_a_tar_that_ends_well(tmp_path):
    """Read it although the tar ends well without it."""
    world = ServedSession(XNAT_1_8, digests=False)
    files = {f"{n:02}.dcm": bytes([n]) * 1000 for n in range(40)}
    made = world.add(world.scans[0].resources, "DICOM", files)

    def without_every_third(request: Request) -> None:
        archived = request.query.get("format") == "tar"
        made.entries = made.entries[::3] if archived else everything

    everything = made.entries
    world.demo.faults.append(without_every_third)
    async with world.site(tmp_path) as site:
        await read_all(site, f"{SCAN}/DICOM", files)


# -- by number -------------------------------------------------------------------------------------------------------


def without_archives(world: ServedSession) -> None:
    def refuse(request: Request) -> None:
        if request.query.get("format") == "tar":
            raise Failed(404, "No files found")

    world.demo.faults.append(refuse)


async def test_a_list_whose_order_changes_gives_no_other_file(world, tmp_path):
    """Check name, length or digest, since another file has the number now."""
    files = {f"50%{n}.dcm": bytes([n]) * (1000 if n != 3 else 2000) for n in range(5)}
    made = world.add(world.scans[0].resources, "RAW", files)
    without_archives(world)

    def turned(request: Request) -> None:
        if "index" in request.query:
            made.entries.append(made.entries.pop(0))

    world.demo.faults.append(turned)
    async with world.site(tmp_path) as site:
        for name, content in files.items():
            await read_right_or_not(site, f"{SCAN}/RAW/{name}", content)


async def test_by_number_a_file_comes_whose_name_or_length_is_its_own(world, tmp_path):
    files = {"a%": b"1", "b%": b"22", "c/b%": b"333", "c%": b"444"}
    world.add(world.scans[0].resources, "DICOM", files)
    without_archives(world)
    async with world.site(tmp_path) as site:
        if not world.demo.site.release.shuffles:
            await read_all(site, f"{SCAN}/DICOM", files)
        for name, content in files.items():  # else a number means another file each time, which is never taken for it
            await read_right_or_not(site, f"{SCAN}/DICOM/{name}", content)


# -- through the mount -----------------------------------------------------------------------------------------------


@pytest.fixture(params=[XNAT_1_6, XNAT_1_8], ids=["1.6", "1.8"])
def mounted(request: pytest.FixtureRequest, digests: bool, tmp_path: Path) -> Iterator[tuple[Mount, dict[str, bytes]]]:
    """Provide a mount of a session with all of this in it, and the content of its files by their place in the mount."""
    wanted: dict[str, bytes] = {}

    def plant(archive: DemoArchive) -> None:
        session = archive.experiment(archive.subject(archive.projects["BRAINS"], "ODD"), "ODD_MR")
        scans = [archive.scan(session, "1", "T1"), archive.scan(session, "2", "T2")]

        def add(among: list[Resource], where: str, label: str, files: dict[str, bytes]) -> Resource:
            made = archive.resource(among, label)
            for path, content in files.items():
                archive.file(made, path, content)
                wanted[f"projects/BRAINS/ODD/ODD_MR/{where}/{label}/{path}"] = content
            return made

        dicom = add(scans[0].resources, "scans/1", "DICOM", {"a.dcm": b"by number"})
        add(session.resources, "resources", str(dicom.id), {"a.dcm": b"by label!"})
        twins = {name: content for name, content in TWINS.items() if "%25" not in name}
        add(scans[0].resources, "scans/1", "TWINS", twins)
        add(scans[1].resources, "scans/2", "JAPAN", {name: b"%d" % n * (n + 1) for n, name in enumerate(JAPANESE)})
        add(scans[1].resources, "scans/2", "files", {"a.dcm": b"1", "files/a.dcm": b"2", "x.zip/a": b"3"})

    with serving(change=plant, release=request.param, digests=digests) as demo:
        with mounting(demo.url, tmp_path, **demo.login) as mount:
            yield mount, wanted


@pytest.mark.fuse
def test_each_file_of_the_mount_is_its_own(mounted):
    mount, wanted = mounted
    seen = {path: (mount.path / path).read_bytes() for path in wanted}
    assert seen == wanted
    copy = mount.home / "copy"
    done = run("cp", "-r", mount.path / "projects/BRAINS/ODD/ODD_MR/scans", copy)
    assert (done.returncode, done.stderr) == (0, "")
    for path, content in wanted.items():
        _, scans, below = path.partition("ODD_MR/scans/")
        assert not scans or (copy / below).read_bytes() == content
