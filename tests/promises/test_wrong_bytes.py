"""Test bytes that a server gets wrong without an error: none becomes a file, in a mount or by xnatctl."""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import Faulty, faulty
from tests.faults.stage import BIG, EXPERIMENT, FOLDER, PASSWORD, SMALL, USER, stage_archive
from tests.support.commanding import SESSION, Shell, shell
from tests.support.mounting import LIMIT, Mount, mounting, run
from xnatfs.demo.archive.entries import Entry
from xnatfs.demo.server.app import DemoXnat, Request
from xnatfs.demo.server.reply import Reply
from xnatfs.demo.server.socket import serve

# How the half of a file may come: without a length and to the end of the connection, without a length and with an end
# of its own, with the length of the half.
HALVES = ("cut-unframed", "short-chunked", "short-length")
NIFTI = "image.nii.gz"


@pytest.fixture
def undigested(tmp_path: Path) -> Iterator[Shell]:
    """Provide a user of a site that computes no digests."""
    with shell(tmp_path / "home", digests=False) as made:
        yield made


def entry(site: Shell) -> Entry:
    (found,) = site.session().scans[0].resources[1].entries
    return found


def download(site: Shell, out: str, status: int = 0) -> bytes | None:
    """Download the first scan; return what is in its NIFTI file then."""
    site.ctl("scan", "download", "-E", SESSION, "-s", "1", "--out", out, status=status)
    copies = list((site.home / out).rglob(NIFTI))
    return copies[0].read_bytes() if copies else None


@contextmanager
def behind(server: Faulty, site: Shell) -> Iterator[None]:
    """Send the user's requests to the site through a proxy."""
    direct, site.env["XNAT_URL"] = site.env["XNAT_URL"], server.url
    yield
    site.env["XNAT_URL"] = direct


# -- half a file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", HALVES)
def test_half_a_file_is_not_copied(undigested, half):
    with faulty(undigested.url) as server, behind(server, undigested):
        server.script([{"match": f"GET .*/{NIFTI}", "fault": half, "after": 1000}])
        assert download(undigested, "data", status=8) is None
        server.script(())
        assert download(undigested, "data") == entry(undigested).content


@pytest.mark.fuse
@pytest.mark.parametrize("options", [(), ("--strict",)], ids=["", "strict"])
def test_half_a_file_is_an_error_and_its_size_stays(tmp_path, options):
    """Cache nothing of it: once the server sends all of it, all of it is read."""
    with serve(DemoXnat(stage_archive(), digests=False, ranges=False)) as url, faulty(url) as server:
        with mounting(server.url, tmp_path, "--ttl", "3600", *options, user=USER, password=PASSWORD) as mount:
            mount.expected_in_log += ["a HEAD"]
            for half in HALVES:
                server.script([{"match": "GET .*/files/(small|big)", "fault": half, "after": 100_000}])
                for name, content in (("small.bin", SMALL), ("big.bin", BIG)):
                    done = run("cat", mount.path / FOLDER / name)
                    assert (done.returncode, "Input/output error" in done.stderr) == (1, True), (half, name)
                    assert os.stat(mount.path / FOLDER / name).st_size == len(content)
            server.script(())
            assert (mount.path / FOLDER / "small.bin").read_bytes() == SMALL
            assert (mount.path / FOLDER / "big.bin").read_bytes() == BIG


@pytest.mark.fuse
@pytest.mark.parametrize("half", HALVES)
def test_half_a_range_is_completed_or_an_error(tmp_path, half):
    with serve(DemoXnat(stage_archive(), digests=False)) as url, faulty(url) as server:
        with mounting(server.url, tmp_path, user=USER, password=PASSWORD) as mount:
            mount.expected_in_log += ["a HEAD"]
            (tmp_path / "local").write_bytes(BIG)
            server.script([{"match": "GET .*/files/big", "fault": half, "after": 300_000}])
            done = run("cmp", mount.path / FOLDER / "big.bin", tmp_path / "local")
            assert done.returncode == 0 or "Input/output error" in done.stderr, done
            server.script(())
            assert (mount.path / FOLDER / "big.bin").read_bytes() == BIG


# -- a file that is put back -----------------------------------------------------------------------------------------


@pytest.mark.fuse
@pytest.mark.parametrize("size", [1000, 2048])
def test_a_file_put_back_with_an_older_date_is_fetched(undigested, size):
    """Fetch it although a server asked by If-Modified-Since answers that it was not modified."""
    assert mounted(undigested) == entry(undigested).content
    older = bytes(size)
    entry(undigested).content, entry(undigested).size = older, str(size)
    entry(undigested).modified -= 1e6
    age_cache(undigested)
    assert mounted(undigested) == older
    assert methods(undigested).count("GET") == 2
    confirmed = methods(undigested).count("HEAD")
    age_cache(undigested)
    assert mounted(undigested) == older
    assert methods(undigested).count("GET") == 2, "what has not changed comes once"
    assert methods(undigested).count("HEAD") == confirmed + 1


def mounted(site: Shell) -> bytes:
    """Mount the site; return what is in the NIFTI file of the first scan then."""
    with mounting(site.url, site.home, user=site.env["XNAT_USER"], password=site.env["XNAT_PASS"]) as mount:
        (path,) = (mount.path / "projects" / "MYPROJECT").glob(f"*/*/scans/1/NIFTI/{NIFTI}")
        return path.read_bytes()


def methods(site: Shell) -> list[str]:
    return [record.method for record in site.app.requests if record.path.endswith(NIFTI)]


def age_cache(site: Shell) -> None:
    """Let two hours pass for all that is cached."""
    (index,) = (site.home / "home" / ".cache" / "xnatfs").glob("*/index.sqlite")
    with sqlite3.connect(index) as database:
        database.execute("UPDATE blobs SET checked = checked - 7200")
    database.close()


# -- a file that changes while it comes ------------------------------------------------------------------------------


@pytest.mark.parametrize("date", ["strong", "of the same second", "none"])
@pytest.mark.parametrize("changes", [True, False])
def test_a_download_that_breaks_is_not_joined_with_another_version(undigested, date, changes):
    """Detect a second version that has the length of the first one, and its date."""
    file, newer, asked = entry(undigested), bytes(2048), []
    if date == "of the same second":
        file.modified = time.time() + 3600  # later than any reply: so is one of the second of the reply, or later

    def change(request: Request) -> Reply | None:
        if not request.path.endswith(NIFTI) or request.method != "GET":
            return None
        asked.append(request.headers.get("range", ""))
        if changes and len(asked) == 2:
            file.content = newer
            file.modified += date == "strong"  # else it would be no strong one
        if date == "none":
            assert isinstance(file.content, bytes)
            return Reply(200, file.content, "application/octet-stream")
        return None

    undigested.app.faults.append(change)
    before = file.content
    with faulty(undigested.url) as server, behind(server, undigested):
        server.script([{"match": f"GET .*/{NIFTI}", "fault": "cut", "after": 1000, "times": 1}])
        if changes:
            assert download(undigested, "data", status=8) is None
            assert download(undigested, "data") == newer
        else:
            assert download(undigested, "data") == before
    assert asked[:2] == ["", "bytes=1000-2047" if date == "strong" else ""]


# -- a damaged file ------------------------------------------------------------------------------------------------

# Reads at offsets in an order, by one descriptor; says how much came, and the errno that it ended with.
READ = """
import json, os, sys
path, order = sys.argv[1], json.loads(sys.argv[2])
descriptor, came, error = os.open(path, os.O_RDONLY), bytearray(os.stat(path).st_size), 0
handed = set()
try:
    for offset, length in order:
        piece = os.pread(descriptor, length, offset)
        came[offset : offset + len(piece)] = piece
        handed.update(range(offset // 4096, (offset + len(piece) - 1) // 4096 + 1))
except OSError as failed:
    error = failed.errno
sys.stdout.write(json.dumps([len(handed), error]) + "\\n")
sys.stdout.flush()
sys.stdout.buffer.write(came)
"""
MiB = 2**20
FORWARD = [(offset, 128 * 1024) for offset in range(0, len(BIG), 128 * 1024)]
TAIL = (len(BIG) - MiB, MiB)
ORDERS = {"forward": FORWARD, "backward": FORWARD[::-1], "tail first": [TAIL, *FORWARD]}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """Provide a mount with a damaged file and a sound one for each order.

    Before the last bytes that are not in the tail the server makes a pause, in which a reader gets all the others.
    """
    archive = stage_archive()
    for name in ORDERS:
        resource = archive.resource(archive.experiments[EXPERIMENT].resources, name)
        archive.file(resource, "damaged.bin", BIG).digest = hashlib.md5(b"another").hexdigest()
        archive.file(archive.resource(archive.experiments[EXPERIMENT].resources, f"{name}, sound"), "sound.bin", BIG)
    pause = {"match": "GET .*/(damaged|sound).bin", "ranged": False, "fault": "stall", "after": TAIL[0] - 65536}
    with serve(DemoXnat(archive)) as url, faulty(url, [{**pause, "seconds": 1.0}]) as server:
        with mounting(server.url, tmp_path_factory.mktemp("damaged"), user=USER, password=PASSWORD) as mount:
            mount.expected_in_log += ["damaged file", "its MD5 is"]
            yield mount


@pytest.mark.fuse
@pytest.mark.parametrize("order", ORDERS)
def test_no_order_of_reading_gets_all_of_a_damaged_file(damaged, order):
    folder = damaged.path / "projects/P/S/E/resources"
    for path, error in ((f"{order}/damaged.bin", 5), (f"{order}, sound/sound.bin", 0)):
        command = [sys.executable, "-c", READ, folder / path, json.dumps(ORDERS[order])]
        done = subprocess.run(command, capture_output=True, timeout=LIMIT)
        said, _, came = done.stdout.partition(b"\n")
        pages, failed = json.loads(said)
        assert failed == error
        if error:
            assert pages * 4096 <= len(BIG) - 128 * 1024 + 4096
        else:
            assert came == BIG
