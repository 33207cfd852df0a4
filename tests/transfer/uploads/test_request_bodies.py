"""Test the bodies of uploads: whole archives, whatever the sizes."""

import os
import tarfile
import zipfile
from collections.abc import Callable

import trio

from xnatfs.cli.ctl.progress import Silent
from xnatfs.transfer.uploads.request_bodies import Part, Sending, as_tar, as_zip


def test_streams_make_whole_archives(tmp_path):
    """The programs tar and zip read the bodies, whatever the sizes."""
    sizes = (0, 1, 511, 512, 513, 2**20, 2**20 + 1)
    made = {f"{number}.dcm": os.urandom(size) for number, size in enumerate(sizes)}
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)

    def opener(name: str) -> Callable[[], object]:
        return lambda: open(tmp_path / name, "rb")

    parts = [Part(name, len(content), opener(name)) for name, content in made.items()]  # type: ignore[arg-type]
    for make, target in ((as_tar, tmp_path / "made.tar"), (as_zip, tmp_path / "made.zip")):
        body = make(parts, Silent())

        async def all_of(body: Sending = body) -> bytes:
            return b"".join([piece async for piece in body.pieces()])

        target.write_bytes(trio.run(all_of))
        assert int(body.headers.get("Content-Length", target.stat().st_size)) == target.stat().st_size
        assert len(body.digests) == len(made)
    with tarfile.open(tmp_path / "made.tar") as tar:
        assert {m.name: tar.extractfile(m).read() for m in tar} == made  # type: ignore[union-attr]
    with zipfile.ZipFile(tmp_path / "made.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == made
