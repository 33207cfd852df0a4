"""Test Dask: worker processes log in once, fetch each file once, and find everything in the cache the second time."""

import hashlib
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from logging.handlers import BufferingHandler
from pathlib import Path

import dask.array
import dask.bag
import fsspec
import numpy
import pydicom
import pytest
from dask.base import compute
from dask.bytes.core import read_bytes
from dask.delayed import delayed
from distributed import Client, LocalCluster
from PIL import Image

from tests.api.conftest import DICOM, User
from tests.support.demos import Demo, serving
from tests.support.mounting import environment, run
from tests.support.real_data import PROJECT, WITHOUT, sample_sessions
from xnatfs.api import portal
from xnatfs.api.filesystem import XnatFileSystem
from xnatfs.demo.server.reply import Reply

ROOT = Path(__file__).parents[2]
PROCESSES, THREADS = 4, 4


def md5_of(url: str) -> str:
    with fsspec.open(url) as file:
        return hashlib.md5(file.read()).hexdigest()


def pixel_sum(url: str) -> int:
    with fsspec.open(url) as file:
        return int(pydicom.dcmread(file).pixel_array.sum(dtype=numpy.int64))


def portals(_: int = 0) -> tuple[int, int]:
    """Count the portals and the file systems of a worker."""
    return len(portal._portals), len(XnatFileSystem._cache)


def stopped_archives() -> int:
    """Count the archives that a worker has not read to their end since this was first called there."""
    log = logging.getLogger("xnatfs.prefetch.series_files")
    if not log.handlers:
        log.addHandler(BufferingHandler(10**6))
        log.setLevel(logging.INFO)
    (handler,) = log.handlers
    assert isinstance(handler, BufferingHandler)
    said = [record.getMessage() for record in handler.buffer]
    return sum("is stopped" in text or "is given up" in text for text in said)


@pytest.fixture(scope="module")
def worker(shared_demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """Provide a home for the cluster and for the client in this process."""
    home = tmp_path_factory.mktemp("home")
    made = User(shared_demo, home)
    with pytest.MonkeyPatch.context() as patch:
        for key in [key for key in os.environ if key.startswith(("XNAT", "XDG_"))]:
            patch.delenv(key)
        for key, value in {"HOME": str(home), **made.login}.items():
            patch.setenv(key, value)
        yield made
        portal.close_portals()


@pytest.fixture(scope="module")
def client(worker: User) -> Iterator[Client]:
    options = {"n_workers": PROCESSES, "threads_per_worker": THREADS, "dashboard_address": None}
    with LocalCluster(**options, processes=True) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture
def urls(demo: Demo, worker: User) -> list[str]:
    fs, path = fsspec.url_to_fs(worker.url(DICOM))
    return [fs.unstrip_protocol(name) for name in fs.ls(path, detail=False)]


def expected(worker: User) -> dict[str, str]:
    found = {"/".join(entry.path): entry.md5 for entry in worker.demo.manifest if entry.kind == "file"}
    return {worker.url(path): digest for path, digest in found.items() if path.startswith(DICOM)}


def test_workers_log_in_once_and_fetch_each_file_once(client, worker, urls):
    worker.demo.forget_requests()
    for _ in range(2):
        got = client.gather(client.map(md5_of, urls, pure=False))
        assert dict(zip(urls, got, strict=True)) == expected(worker)
    bodies = Counter(worker.bodies())
    assert max(bodies.values()) == 1, "one request at most for a file, and for the archive of the series"
    assert worker.logins() == 0, "the client in this process has logged in for all"
    found = client.run(portals).values()
    assert {count for count, _ in found} <= {0, 1}
    worker.demo.forget_requests()
    assert dict(zip(urls, client.gather(client.map(md5_of, urls, pure=False)), strict=True)) == expected(worker)
    assert worker.bodies() == []


def test_bag_array_and_read_bytes_agree(client, worker, urls):
    total = sum(map(pixel_sum, urls))
    assert dask.bag.from_sequence(urls, npartitions=8).map(pixel_sum).sum().compute() == total

    @delayed
    def pixels(url):
        with fsspec.open(url) as file:
            return pydicom.dcmread(file).pixel_array

    volume = dask.array.stack([dask.array.from_delayed(pixels(url), (128, 128), numpy.uint16) for url in urls])
    assert volume.sum(dtype=numpy.int64).compute() == total
    _, blocks = read_bytes(worker.url(f"{DICOM}/*.dcm"), blocksize=None)
    digests = [hashlib.md5(data).hexdigest() for data in compute(*(block for file in blocks for block in file))]
    assert sorted(digests) == sorted(expected(worker).values())


def test_a_graph_holds_no_login_and_its_keys_are_those_of_the_content(worker, urls):
    import cloudpickle

    def graph():
        return read_bytes(worker.url(f"{DICOM}/*.dcm"), blocksize=None)[1]

    keys = [block.key for file in graph() for block in file]
    assert keys == [block.key for file in graph() for block in file]
    assert len(set(keys)) == 40
    text = cloudpickle.dumps([dict(block.dask) for file in graph() for block in file])
    assert worker.demo.login["password"].encode() not in text
    assert b"JSESSION" not in text


@pytest.mark.real_data
@pytest.mark.skipif(os.environ.get(WITHOUT) == "1", reason=f"{WITHOUT}=1: asked to leave real images out")
def test_workers_far_from_the_server_sum_the_pixels_of_a_real_session(client, worker):
    def delay(request: object) -> Reply | None:
        time.sleep(0.05)
        return None

    scans = f"projects/{PROJECT}/Case001/Case001/scans"
    local = sorted(map(str, sample_sessions().glob(f"{scans.partition('/')[2]}/*/DICOM/*")))
    with serving(sample_sessions()) as demo:
        demo.app.faults.append(delay)
        user = User(demo, worker.home)
        fs, path = fsspec.url_to_fs(user.url(scans))
        urls = [fs.unstrip_protocol(name) for name in fs.glob(f"{path}/*/DICOM/*")]
        assert len(urls) == len(local) == 324
        client.run(stopped_archives)
        sums = client.gather(client.map(pixel_sum, urls, pure=False))
        assert sums == [pixel_sum(path) for path in local]
        bodies = Counter(user.bodies())
        archives = Counter({path: count for path, count in bodies.items() if path.endswith("/files")})
        assert set((bodies - archives).values()) <= {1}, "one request at most for a file"
        # A process that guesses the next series wrongly stops its archive, which another one may come to read.
        assert archives.total() - len(archives) <= sum(client.run(stopped_archives).values())
        assert bodies.total() <= len(urls)
        assert user.logins() == 1
        user.demo.forget_requests()
        assert client.gather(client.map(pixel_sum, urls, pure=False)) == sums
        assert user.bodies() == []


def test_a_worker_without_a_login_fails_at_once_and_names_the_three_ways(client, worker, urls, tmp_path):
    def without_login(url, home):
        environ = {key: os.environ.pop(key) for key in ("XNAT_USER", "XNAT_PASS", "HOME")}
        os.environ["HOME"] = home
        try:
            fsspec.filesystem("xnat+http", url=url, ttl=1.0).ls("/")
        finally:
            os.environ.update(environ)

    (tmp_path / "home").mkdir()
    future = client.submit(without_login, worker.demo.url, str(tmp_path / "home"), pure=False)
    with pytest.raises(PermissionError, match=r"xnatctl auth login.*XNAT_USER and XNAT_PASS.*netrc.*token_file"):
        future.result(timeout=60)


def test_the_example_prints_statistics_and_writes_the_projection(client, worker, urls, tmp_path):
    from tests.docs.test_readme import blocks, page

    (command,) = blocks("sh", page("PYTHON"))
    command = command.replace("xnat://xnat.example.org", worker.url()).replace("MYPROJECT", "BRAINS")
    command = command.replace("python ", f"{sys.executable} ").replace(
        "mip.png", f"{tmp_path}/mip.png {client.scheduler.address}"
    )
    done = run("sh", "-c", command, cwd=ROOT, env=environment(worker.home, **worker.login), timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    images = sorted(_read(url) for url in urls)
    lines = done.stdout.splitlines()
    assert lines[:-1] == [f"{place:8.1f} mm  mean {mean:7.2f}  max {most}" for place, mean, most, _ in images]
    volume = numpy.stack([pixels for *_, pixels in images])
    projection = volume.max(axis=1)
    shown = numpy.asarray(Image.open(tmp_path / "mip.png"))
    assert (shown == (projection / projection.max() * 255).astype(numpy.uint8)).all()


def _read(url):
    with fsspec.open(url) as file:
        image = pydicom.dcmread(file)
    pixels = image.pixel_array
    return float(image.ImagePositionPatient[2]), float(pixels.mean()), int(pixels.max()), pixels
