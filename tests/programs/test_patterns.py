"""Test how real programs access files, pattern by pattern: right bytes, and no more requests than files."""

import errno
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.demos import Demo, serving
from tests.support.manifest import ManifestEntry
from tests.support.mounting import Mount, mounting, run

pytestmark = pytest.mark.fuse

PAGE = 4096
SESSION = ("projects", "BRAINS", "SUB001", "SUB001_MR1")
BIG = (*SESSION, "resources", "BIG", "functional.nii")


@pytest.fixture(scope="module", params=["ranges", "no ranges"])
def demo(request: pytest.FixtureRequest) -> Iterator[Demo]:
    with serving(ranges=request.param == "ranges") as served:
        yield served


@pytest.fixture
def mount(demo: Demo, tmp_path: Path) -> Iterator[Mount]:
    """Provide a mount that has fetched nothing yet."""
    with mounting(demo.url, tmp_path, **demo.login) as fresh:
        fresh.expected_in_log += ["files are read from their start"]
        demo.forget_requests()
        yield fresh


def downloads(demo: Demo) -> list[str]:
    """Return the requests for bytes: of a file, or of a resource as a tar."""
    return [line for line in demo.asked() if re.match(r"GET .*/resources/\d+/files", line)]


def entries(demo: Demo, *below: str) -> list[ManifestEntry]:
    """Return the readable files below a place, in the order of a listing."""
    found = [e for e in demo.manifest if e.kind == "file" and not e.error and e.path[: len(below)] == below]
    return sorted(found, key=lambda entry: entry.path[:-1])


def content(demo: Demo, entry: ManifestEntry) -> bytes:
    """Return the server's content of an entry, found by its digest."""
    for resource, _ in demo.archive.resources():
        for each in resource.entries:
            if isinstance(each.content, bytes) and hashlib.md5(each.content).hexdigest() == entry.md5:
                return each.content
    raise AssertionError(entry)


def big(demo: Demo) -> ManifestEntry:
    return next(entry for entry in demo.manifest if entry.path == BIG)


def test_four_opens_of_each_file_with_its_last_page_first(demo, mount):
    """Read a series as readers like dcmdump do: to the end, back to the front, and all of that four times."""
    series = entries(demo, *SESSION, "scans", "1", "DICOM")
    for entry in series:
        whole = content(demo, entry)
        for _ in range(4):
            with open(mount.path.joinpath(*entry.path), "rb", buffering=0) as file:
                last = entry.size - entry.size % PAGE
                file.seek(last)
                assert file.read(PAGE) == whole[last:]
                file.seek(0)
                assert file.read(PAGE) == whole[:PAGE]
                assert file.read(128 * 1024) == whole[PAGE : PAGE + 128 * 1024]
    assert len(series) == 40
    assert len(downloads(demo)) <= 4  # the first two by themselves, the others in one tar, and the next series begun


def test_a_big_file_with_its_last_page_first(demo, mount):
    entry = big(demo)
    whole = content(demo, entry)
    with open(mount.path.joinpath(*BIG), "rb", buffering=0) as file:
        file.seek(-PAGE, os.SEEK_END)
        assert file.read() == whole[-PAGE:]
        file.seek(0)
        assert hashlib.md5(b"".join(iter(lambda: file.read(2**17), b""))).hexdigest() == entry.md5


def test_steps_of_four_kilobytes(demo, mount):
    entry = big(demo)
    read = hashlib.md5()
    with open(mount.path.joinpath(*BIG), "rb", buffering=0) as file:
        while step := file.read(PAGE):
            read.update(step)
    assert read.hexdigest() == entry.md5
    assert len(downloads(demo)) == (2 if demo.app.site.ranges else 1)


def test_a_map_with_faults_all_over_it(demo, mount):
    """Map in another process: a fault holds Python's lock, and the server that it waits for is in this process."""
    whole = content(demo, big(demo))
    places = random.Random(0).sample(range(0, len(whole) - PAGE), 200)
    code = (
        "import hashlib, json, mmap, sys\n"
        "with open(sys.argv[1], 'rb') as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:\n"
        "    found = [mapped[place : place + 100].hex() for place in json.loads(sys.argv[2])]\n"
        "    print(json.dumps([found, hashlib.md5(mapped).hexdigest()]))\n"
    )
    done = run(sys.executable, "-c", code, mount.path.joinpath(*BIG), json.dumps(places))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[whole[place : place + 100].hex() for place in places], big(demo).md5]


def test_a_copy_by_the_kernel_or_else_by_reading(demo, mount, tmp_path):
    """Refuse copy_file_range(2) from another file system, or copy right; cp(1) falls back by itself."""
    entry = entries(demo, *SESSION, "scans", "1", "DICOM")[0]
    source, target = mount.path.joinpath(*entry.path), tmp_path / "copy"
    with open(source, "rb") as file, open(target, "wb") as copy:
        try:
            while os.copy_file_range(file.fileno(), copy.fileno(), 2**20):
                pass
            assert hashlib.md5(target.read_bytes()).hexdigest() == entry.md5
        except OSError as error:
            assert error.errno in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # noqa: PT017
    done = run("cp", source, tmp_path / "copied")
    assert (done.returncode, done.stderr) == (0, "")
    assert hashlib.md5((tmp_path / "copied").read_bytes()).hexdigest() == entry.md5


def test_two_looks_at_attributes_for_each_entry(demo, mount):
    """Answer without requests when `ls -l` reads a security label and an access list of each entry."""
    mount.walk("/".join(SESSION[:-1]))
    paths = [os.path.join(top, name) for top, _, names in os.walk(mount.path.joinpath(*SESSION)) for name in names]
    for path in paths:
        os.lstat(path)  # which makes the files that are made at the first look
    demo.forget_requests()
    for path in paths:
        for attribute in ("security.selinux", "system.posix_acl_access"):
            with pytest.raises(OSError) as caught:  # noqa: PT011
                os.getxattr(path, attribute, follow_symlinks=False)
            assert caught.value.errno in (errno.ENODATA, errno.EOPNOTSUPP)
    assert len(paths) > 100
    assert demo.asked() == []


def test_a_reader_that_is_killed_harms_nobody(demo, mount):
    """Serve the killed reader's file whole to the next one, and everything else meanwhile."""
    code = (
        "import sys\n"
        "file = open(sys.argv[1], 'rb', buffering=0)\n"
        "file.read(4096)\n"
        "print('reading', flush=True)\n"
        "while file.read(4096) or file.seek(0) == 0: pass\n"
    )
    path = mount.path.joinpath(*BIG)
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        reader.send_signal(signal.SIGKILL)
    assert hashlib.md5(path.read_bytes()).hexdigest() == big(demo).md5
    assert run("ls", mount.path / "projects").returncode == 0


def test_two_hundred_open_files(demo, mount):
    found = entries(demo, "projects", "BRAINS")[:200]
    assert len(found) == 200
    with ExitStack() as stack:
        files = [stack.enter_context(open(mount.path.joinpath(*e.path), "rb", buffering=0)) for e in found]
        digests = [hashlib.md5() for _ in found]
        for _ in range(max(entry.size for entry in found) // 2**16 + 1):  # a step of each, round and round
            for file, digest in zip(files, digests, strict=True):
                digest.update(file.read(2**16))
    assert [digest.hexdigest() for digest in digests] == [entry.md5 for entry in found]
    asked = downloads(demo)
    for entry in found:
        if demo.app.site.ranges and entry.size > 8 * 2**20:  # a small range, and the rest
            asked.remove(next(line for line in asked if line.endswith(f"/{entry.path[-1]}")))
    assert len(asked) == len(set(asked)) < 40
