"""Test file systems on top of a mount, and programs that use times: overlayfs, bindfs, mergerfs, NFS; rsync, make.

A layer remembers inodes and lengths by rules of its own, and has no name to look up again when an open fails.
"""

import hashlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.demos import serving
from tests.support.mounting import LIMIT, Mount, mounted_file_system, mounting, run
from xnatfs.demo.archive.entries import Entry
from xnatfs.demo.archive.model import Archive

FIRST, SECOND, LONGER = b"1" * 300_000, b"2" * 300_000, b"3" * 400_001


@contextmanager
def protocol(directory: Path, *options: str, content: bytes = FIRST, digest: bool = True) -> Iterator[Any]:
    """Mount a server with a file `scan.raw` in its own resource; yield the mount, the file's entry, the folder."""
    with serving() as demo, mounting(demo.url, directory, "--ttl", "0", *options, **demo.login) as mount:
        resource = demo.archive.resource(demo.archive.projects["BRAINS"].resources, "raw", "RAW")
        entry = Archive.file(resource, "scan.raw", content, digest=None if digest else "")
        yield mount, entry, mount.path / "projects" / "BRAINS" / "resources" / "raw"


def replace(entry: Entry, content: bytes) -> None:
    """Replace the content of a file, as a site that computes digests lists it."""
    entry.content, entry.size, entry.modified = content, str(len(content)), entry.modified + 10
    entry.digest = entry.digest and hashlib.md5(content).hexdigest()


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do this")


# -- programs that go by times -----------------------------------------------------------------------------------


def rsync(source: Path, target: Path, *options: str) -> list[str]:
    """Return the names that `rsync -a` reports as copied."""
    done = run("rsync", "-a", *options, "--out-format=%n", f"{source}/", target)
    assert done.returncode == 0, done.stderr
    return [name for name in done.stdout.split() if not name.endswith("/")]


@needs("rsync")
def test_rsync_copies_a_file_of_the_same_size_once(tmp_path):
    target = tmp_path / "target"
    with protocol(tmp_path) as (_, entry, folder):
        assert rsync(folder, target) == ["scan.raw"]
        assert rsync(folder, target) == []
        replace(entry, SECOND)
        assert rsync(folder, target) == ["scan.raw"]
        assert (target / "scan.raw").read_bytes() == SECOND
        assert rsync(folder, target) == []


@needs("rsync")
def test_a_file_of_the_same_size_is_another_one_to_the_next_mount(tmp_path):
    """The nanoseconds of the time differ, which rsync compares if requested."""
    target = tmp_path / "target"
    with serving() as demo:
        entry = demo.archive.projects["BRAINS"].resources[0].entries[0]

        def copied() -> list[str]:
            with mounting(demo.url, tmp_path, **demo.login) as mount:
                folder = mount.path / "projects" / "BRAINS" / "resources" / "protocol"
                return rsync(folder, target, "--modify-window=-1")

        assert copied() == ["protocol.txt"]
        assert copied() == []
        replace(entry, b"Sit still.\n")
        assert copied() == ["protocol.txt"]
        assert copied() == []


@pytest.mark.parametrize("digest", [True, False], ids=["digest", "no digest"])
def test_reading_changes_no_time(tmp_path, digest):
    with protocol(tmp_path, digest=digest) as (_, _, folder):
        before = (folder / "scan.raw").stat()
        assert (folder / "scan.raw").read_bytes() == FIRST
        after = (folder / "scan.raw").stat()
        assert (before.st_ino, before.st_mtime_ns, before.st_ctime_ns) == (
            after.st_ino,
            after.st_mtime_ns,
            after.st_ctime_ns,
        )
        assert run("tar", "-cf", tmp_path / "all.tar", folder, cwd=tmp_path).returncode == 0  # 1: it changed meanwhile


def test_a_file_of_the_same_size_without_a_digest_has_another_time_once_it_was_read(tmp_path):
    with protocol(tmp_path, "--revalidate", "0", digest=False) as (_, entry, folder):
        file = folder / "scan.raw"
        assert file.read_bytes() == FIRST
        before = file.stat()
        replace(entry, SECOND)
        assert file.read_bytes() == SECOND
        after = file.stat()
        assert after.st_ino == before.st_ino
        assert after.st_mtime_ns > before.st_mtime_ns


@needs("make")
def test_make_and_cp_see_a_change_that_this_mount_has_seen(tmp_path):
    """They compare which of two files is newer: a product of the old version is older than the change."""
    work = tmp_path / "work"
    work.mkdir()
    with protocol(tmp_path) as (_, entry, folder):
        (work / "Makefile").write_text(f"made: {folder}/scan.raw\n\tcp $< $@\n")

        def make() -> str:
            done = run("make", cwd=work)
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert "cp" in make()
        assert run("cp", "-u", folder / "scan.raw", work / "copy").returncode == 0
        assert "up to date" in make()
        replace(entry, SECOND)
        assert "cp" in make()
        assert (work / "made").read_bytes() == SECOND
        assert "up to date" in make()
        assert run("cp", "-u", folder / "scan.raw", work / "copy").returncode == 0
        assert (work / "copy").read_bytes() == SECOND


# -- inode numbers -----------------------------------------------------------------------------------------------


def numbers(mount: Mount) -> dict[str, int]:
    return {"/".join(entry["path"]): entry["inode"] for entry in mount.walk() if "inode" in entry}


def test_inode_numbers_are_javascript_numbers_and_those_of_the_next_mount(tmp_path):
    with serving() as demo:
        found = []
        for _ in range(2):
            with mounting(demo.url, tmp_path, **demo.login) as mount:
                mount.expected_in_log += demo.planted_warnings
                found.append(numbers(mount))
    assert found[0] == found[1]
    inodes = set(found[0].values())
    assert len(inodes) > 100
    assert max(inodes) < 2**53
    assert {int(json.loads(json.dumps(float(inode)))) for inode in inodes} == inodes


# Maps a file and holds it open; each line of its input has it read more of the mapping and of the file.
HOLD = """
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
held = mmap.mmap(file, 0, prot=mmap.PROT_READ)
print(os.fstat(file).st_ino, held[0:1].decode(), flush=True)
for line in sys.stdin:
    at = int(line)
    same = [set(piece) == {held[0]} for piece in (held[at:at + 4096], os.pread(file, 4096, at))]
    print(len(held), *same, held[at:at+1].decode(), os.fstat(file).st_ino, os.fstat(file).st_size, flush=True)
"""


@contextmanager
def holding(file: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as held:
        yield held
        held.communicate(timeout=60)


def say(held: subprocess.Popen[str], line: str = "") -> list[str]:
    assert held.stdin is not None
    assert held.stdout is not None
    if line:
        print(line, file=held.stdin, flush=True)
    return held.stdout.readline().split()


@pytest.mark.parametrize("content", [SECOND, LONGER], ids=["same size", "longer"])
def test_a_version_that_is_mapped_stays_whole_beside_the_next_one(tmp_path, content):
    """One inode has one length and one set of pages: the next version has its own inode while the old one is mapped."""
    with protocol(tmp_path) as (_, entry, folder):
        file = folder / "scan.raw"
        with holding(file) as held:
            inode = say(held)[0]
            assert int(inode) == file.stat().st_ino
            replace(entry, content)
            meanwhile = file.stat()
            assert file.read_bytes() == content
            assert meanwhile.st_ino != int(inode)
            assert file.read_bytes() == content
            for place in ("4096", "200000", "290000"):
                assert say(held, place) == ["300000", "True", "True", "1", inode, "300000"]
            assert file.stat().st_size == len(content)
        assert file.stat().st_ino == int(inode)  # nobody has the old one any more
        assert file.read_bytes() == content


def test_a_file_that_nobody_has_open_keeps_its_number_and_no_page(tmp_path):
    with protocol(tmp_path) as (_, entry, folder):
        file = folder / "scan.raw"
        inode = file.stat().st_ino
        for content in (FIRST, SECOND, LONGER, FIRST, b"", SECOND):
            replace(entry, content)
            assert file.read_bytes() == content
            with file.open("rb") as opened:
                assert os.fstat(opened.fileno()).st_size == len(content)
            assert file.stat().st_ino == inode


# Reads a file so many times, by read, by sendfile or mapped; prints what came, its byte and length, each once. That it
# is another one than was listed a moment ago is an error.
READ_OFTEN = """
import errno, mmap, os, sys
path, how, copy = sys.argv[1:]
seen = set()

def whole(file):
    if how == "mmap":
        return mmap.mmap(file, os.fstat(file).st_size, prot=mmap.PROT_READ)[:]
    if how == "read":
        return b"".join(iter(lambda: os.read(file, 70_000), b""))
    with open(copy, "w+b") as out:
        while os.sendfile(out.fileno(), file, None, 1 << 20):
            pass
        out.seek(0)
        return out.read()

for _ in range(150):
    try:
        with open(path, "rb") as file:
            data = whole(file.fileno())
    except OSError as error:
        assert error.errno in (errno.ESTALE, errno.EIO), error
    else:
        seen.add(("".join(map(chr, sorted(set(data)))), len(data)))
print(*(f"{content}:{length}" for content, length in seen))
"""


@pytest.mark.parametrize("digest", [True, False], ids=["digest", "no digest"])
def test_readers_of_a_file_that_never_rests_have_one_version_whole(tmp_path, digest):
    contents = [FIRST, SECOND, LONGER, b"4" * 5000, FIRST, LONGER]
    whole = {f"{content[:1].decode()}:{len(content)}" for content in contents}
    with protocol(tmp_path, "--revalidate", "0", digest=digest) as (mount, entry, folder):
        mount.expected_in_log += ["damaged file", "open: ", "read: "]  # each was EIO, or is read again
        command = [sys.executable, "-c", READ_OFTEN, str(folder / "scan.raw")]
        readers = [
            subprocess.Popen([*command, how, str(tmp_path / f"copy {number}")], stdout=subprocess.PIPE, text=True)
            for number, how in enumerate(("read", "sendfile", "mmap", "sendfile"))
        ]
        for content in itertools.cycle(contents):
            if all(reader.poll() is not None for reader in readers):
                break
            replace(entry, content)
            time.sleep(0.1)  # so that some reads meet no change
        seen = {each for reader in readers for each in reader.communicate()[0].split()}
        assert [reader.returncode for reader in readers] == [0] * len(readers)
        assert seen <= whole
        assert seen


# -- file systems on top -----------------------------------------------------------------------------------------

# Reads a file of a mount's folder through an overlay, once for each line of its input; the overlay is its own.
OVERLAID = """
set -e
mount -t tmpfs none "$2"
mkdir "$2/upper" "$2/work" "$2/merged"
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" none "$2/merged"
cd "$2/merged"
while read line; do $line 2>&1 || true; echo; done
"""


@contextmanager
def overlaid(folder: Path, place: Path) -> Iterator[subprocess.Popen[str]]:
    place.mkdir()
    command = ["unshare", "--mount", "sh", "-c", OVERLAID, "sh", str(folder), str(place)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as shell:
        yield shell
        shell.communicate(timeout=60)
    assert shell.returncode == 0


def tell(shell: subprocess.Popen[str], command: str) -> str:
    """Run a command in the shell, and return what it prints."""
    assert shell.stdin is not None
    assert shell.stdout is not None
    print(command, file=shell.stdin, flush=True)
    told = []
    while (line := shell.stdout.readline()) not in ("\n", ""):
        told.append(line)
    return "".join(told).strip()


def md5(content: bytes) -> str:
    return f"{hashlib.md5(content).hexdigest()}  scan.raw"


@needs_root
@needs("unshare")
def test_the_kernels_overlayfs_follows_a_file_that_changes(tmp_path):
    with protocol(tmp_path) as (_, entry, folder), overlaid(folder, tmp_path / "overlay") as shell:
        for content in (FIRST, SECOND, LONGER, b"short", FIRST):
            replace(entry, content)
            assert tell(shell, "md5sum scan.raw") == md5(content)
            assert tell(shell, "stat -c %s scan.raw") == str(len(content))
        with holding(folder / "scan.raw") as held:
            say(held)
            replace(entry, SECOND)
            assert (folder / "scan.raw").read_bytes() == SECOND
            # As long as the old version is open the next one has another inode, and an overlay knows one only.
            assert tell(shell, "md5sum scan.raw") == "md5sum: scan.raw: Stale file handle"
        assert tell(shell, "md5sum scan.raw") == md5(SECOND)


def layers(folder: Path, directory: Path, top: Path) -> dict[str, list[str]]:
    """Return the commands that mount file systems in user space on top of a folder, without caches of lengths.

    By default bindfs and mergerfs cache a length for a second, and fuse-overlayfs for ever.
    """
    upper, work = directory / "upper", directory / "work"
    for made in (upper, work, top):
        made.mkdir(exist_ok=True)
    return {
        "bindfs": ["bindfs", "-r", "-o", "attr_timeout=0", str(folder), str(top)],
        "mergerfs": ["mergerfs", "-o", "ro,cache.attr=0", str(folder), str(top)],
        "fuse-overlayfs": [
            "fuse-overlayfs",
            "-o",
            f"timeout=0,lowerdir={folder},upperdir={upper},workdir={work}",
            str(top),
        ],
    }


LAYERS = [pytest.param(name, marks=needs(name, "fusermount3")) for name in ("bindfs", "mergerfs", "fuse-overlayfs")]


@contextmanager
def layered(name: str, folder: Path, directory: Path) -> Iterator[Path]:
    """Mount another file system on top of a folder, and yield its mountpoint."""
    top = directory / "top"
    done = run(*layers(folder, directory, top)[name])
    assert done.returncode == 0, done.stderr
    try:
        yield top
    finally:
        run("fusermount3", "-u", top)
        assert mounted_file_system(top) == ""


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("digest", [True, False], ids=["digest", "no digest"])
def test_a_layer_in_user_space_follows_a_file_that_changes(tmp_path, name, digest):
    with (
        protocol(tmp_path, "--revalidate", "0", digest=digest) as (_, entry, folder),
        layered(name, folder, tmp_path) as top,
    ):
        # fuse-overlayfs asks for the length of a lower file once.
        for content in (FIRST, SECOND) if name == "fuse-overlayfs" else (FIRST, SECOND, LONGER, b"short", FIRST):
            replace(entry, content)
            assert (top / "scan.raw").read_bytes() == content
            assert (top / "scan.raw").stat().st_size == len(content)


FAULTS = Path("projects/FAULTS/F1/F1_MR/scans/1/DICOM")


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("file", ["stale-shorter.dcm", "stale-longer.dcm", "stale-with-digest.dcm"])
def test_a_layer_has_the_true_length_of_a_file_that_the_catalogue_has_wrong(tmp_path, name, file):
    """A layer keeps the first length that it is given, and cuts longer data: so a doubtful length is verified."""
    with (
        serving() as demo,
        mounting(demo.url, tmp_path, **demo.login) as mount,
        layered(name, mount.path / FAULTS, tmp_path) as top,
    ):
        mount.expected_in_log += demo.planted_warnings  # of files that come ahead
        assert (top / file).stat().st_size == 5001
        assert len((top / file).read_bytes()) == 5001


@needs_root
@needs("unshare")
def test_the_kernels_overlayfs_has_the_true_length_of_a_file_that_the_catalogue_has_wrong(tmp_path):
    with (
        serving() as demo,
        mounting(demo.url, tmp_path, **demo.login) as mount,
        overlaid(mount.path / FAULTS, tmp_path / "overlay") as shell,
    ):
        mount.expected_in_log += demo.planted_warnings
        for file in ("stale-with-digest.dcm", "stale-shorter.dcm"):
            assert tell(shell, f"wc -c {file}") == f"5001 {file}"
            assert tell(shell, f"stat -c %s {file}") == "5001"


# -- handles, by which NFS servers name files ----------------------------------------------------------------------

# Tells the handle of a path, or reads what has a handle in a directory's file system.
HANDLES = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)

class Handle(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint), ("kind", ctypes.c_int), ("name", ctypes.c_ubyte * 128)]

path = os.fsencode(sys.argv[1])
if len(sys.argv) == 2:
    handle, mount = Handle(128), ctypes.c_int()
    if libc.name_to_handle_at(-100, path, ctypes.byref(handle), ctypes.byref(mount), 0) < 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    print(bytes(handle).hex())
else:
    handle = Handle.from_buffer_copy(bytes.fromhex(sys.argv[2]))
    file = libc.open_by_handle_at(os.open(path, os.O_RDONLY | os.O_DIRECTORY), ctypes.byref(handle), os.O_RDONLY)
    if file < 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    sys.stdout.buffer.write(b"".join(iter(lambda: os.read(file, 1 << 20), b"")))
"""


def handle_of(file: Path) -> str:
    done = run(sys.executable, "-c", HANDLES, file)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def opened_by(handle: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", HANDLES, folder, handle)


@needs_root
def test_a_handle_is_of_the_file_as_it_is_now(tmp_path):
    with protocol(tmp_path) as (_, entry, folder):
        handle = handle_of(folder / "scan.raw")
        for content in (FIRST, SECOND, LONGER, FIRST):
            replace(entry, content)
            assert (folder / "scan.raw").stat().st_size == len(content)
            assert opened_by(handle, folder).stdout.encode() == content


@needs_root
def test_a_handle_is_good_for_as_long_as_the_kernel_knows_the_file_whatever_mount_it_is_of(tmp_path):
    with serving() as demo:
        handle = ""
        for _ in range(2):
            with mounting(demo.url, tmp_path, **demo.login) as mount:
                folder = mount.path / "projects" / "BRAINS" / "resources" / "protocol"
                if handle:
                    assert opened_by(handle, mount.path).stderr == "Stale file handle\n"
                assert (folder / "protocol.txt").stat().st_size > 0
                handle = handle or handle_of(folder / "protocol.txt")
                assert opened_by(handle, mount.path).stdout == "Lie still.\n"


GANESHA = """
NFS_KRB5 {{ Active_krb5 = false; }}
NFS_CORE_PARAM {{ Protocols = 4; NFS_Port = {port}; Bind_addr = 127.0.0.1; Enable_NLM = false; Enable_RQUOTA = false; }}
NFSv4 {{ Graceless = true; RecoveryRoot = {directory}; Minor_Versions = 0; }}
EXPORT {{
    Export_Id = 1; Filesystem_id = 1.1; Path = {path}; Pseudo = /mnt; Protocols = 4;
    Access_Type = RO; Squash = none; SecType = sys; Attr_Expiration_Time = 0;
    FSAL {{ Name = VFS; }}
}}
"""


@contextmanager
def exported(path: Path, directory: Path) -> Iterator[str]:
    """Serve a directory by nfs-ganesha, and yield a format for the URL of a path in it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    configured, log_file = directory / "ganesha.conf", directory / "ganesha.log"
    configured.write_text(GANESHA.format(port=port, directory=directory, path=path))
    options = ["-F", "-L", log_file, "-f", configured, "-p", directory / "ganesha.pid", "-N", "NIV_EVENT"]
    with subprocess.Popen(["ganesha.nfsd", *map(str, options)]) as server:
        try:
            while "NFS SERVER INITIALIZED" not in (log_file.read_text() if log_file.exists() else ""):
                assert server.poll() is None, log_file.read_text()
                time.sleep(0.1)
            yield f"nfs://127.0.0.1/mnt/{{}}?nfsport={port}&version=4"
        finally:
            server.terminate()


@needs_root
@needs("ganesha.nfsd", "nfs-cat")
def test_an_nfs_server_has_the_file_as_it_is_now(tmp_path):
    """It names files by handles alone. A file that was looked up a second ago is requested again when it is opened."""
    with protocol(tmp_path) as (mount, entry, folder), exported(mount.path, tmp_path) as url:
        command = ["nfs-cat", url.format((folder / "scan.raw").relative_to(mount.path))]

        def read() -> bytes:
            return subprocess.run(command, capture_output=True, timeout=LIMIT).stdout

        for content in (FIRST, SECOND, LONGER, b"short", FIRST):
            replace(entry, content)
            deadline = time.monotonic() + LIMIT
            while read() != content:
                assert time.monotonic() < deadline, "it is never seen"
                time.sleep(0.2)
