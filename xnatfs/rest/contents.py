"""Request the contents of files: one by one, by ranges, and as archives of many."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, nullcontext

import httpx
import trio

from xnatfs.content.source import Body, Head
from xnatfs.http.clients import PARALLEL_DOWNLOADS
from xnatfs.http.replies import content_length, file_name, is_framed, last_modified, strong_validator
from xnatfs.http.resumable_download import Downloads, RemoteFile
from xnatfs.http.transport import Transport
from xnatfs.rest.models import FileRow
from xnatfs.rest.urls import file_url, item_path, segment, segments

# At most half of all downloads are of long files, so that a copy of eight volumes does not keep all other readers
# waiting until the first of them is complete. So many bytes take a second or two on a slow line.
LONG_DOWNLOADS = PARALLEL_DOWNLOADS // 2
LONG_FILE_BYTES = 32 * 2**20

# Archives and long files together: one request is always left for a small file. Archives pause for their readers.
LONG_REQUESTS = PARALLEL_DOWNLOADS - 1

# From this size on, a download process receives a file. It takes 80 ms to start (measured), as long as so many bytes
# take at 1 Gbit/s, and serves the next file, too; a smaller file is complete before it is read, so that less is gained.
BIG_FILE_BYTES = 8 * 2**20


class Contents:
    """The contents of one server's files. Every method raises as those of `Xnat`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._download_slots = trio.CapacityLimiter(PARALLEL_DOWNLOADS)
        self._long_download_slots = trio.CapacityLimiter(LONG_DOWNLOADS)
        self._long_request_slots = trio.CapacityLimiter(LONG_REQUESTS)
        self._head_slots = trio.CapacityLimiter(PARALLEL_DOWNLOADS)
        self._downloads = Downloads(transport)

    async def head(self, item: Sequence[str], file: FileRow) -> Head:
        """Request the headers of a file, without its bytes."""
        async with self._head_slots, self._transport.reply("HEAD", file_url(item, file)) as response:
            return Head(content_length(response), last_modified(response))

    @property
    def ranged(self) -> bool | None:
        """Return whether the server supports Range; None while not known."""
        return self._downloads.ranged

    @asynccontextmanager
    async def download(
        self,
        item: Sequence[str],
        file: FileRow,
        start: int = 0,
        size: int | None = None,
        stop: int | None = None,
    ) -> AsyncIterator[Body]:
        """Download a file, from `start` if the server supports that, else from 0.

        A connection that breaks is resumed where it broke.

        Args:
            item: The item that has the resource, as the segments of its URL after /data.
            file: The file's row in the listing.
            start: The first byte to request.
            size: The known length in bytes; a range is never requested past it.
            stop: Where a range ends, exclusive; None for the end of the file.

        Raises:
            Stale: The file changed on the server meanwhile.
        """
        remote = RemoteFile(file_url(item, file), size, (file.size or 0) > BIG_FILE_BYTES, bool(file.digest))
        is_long = (file.size or 0) > LONG_FILE_BYTES
        async with (
            self._long_download_slots if is_long else nullcontext(),
            self._long_request_slots if is_long else nullcontext(),
            self._download_slots,
            self._downloads.open(remote, start, stop) as body,
        ):
            yield body

    @asynccontextmanager
    async def archive(self, item: Sequence[str], *resources: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Download resources as one tar, in pieces as they arrive. Its length is not known beforehand."""
        path = f"{item_path(item)}/resources/{segments(resources)}/files"
        async with self._long_request_slots, self._stream(path, {"format": "tar"}) as (_, chunks):
            yield chunks

    @asynccontextmanager
    async def zip(self, experiment: str, scans: Sequence[str] | None) -> AsyncIterator[AsyncIterator[bytes]]:
        """Download the server's own ZIP archive of some scans of an experiment, or of all (None)."""
        chosen = segments(scans) if scans is not None else "ALL"
        path = f"/data/experiments/{segment(experiment)}/scans/{chosen}/files"
        async with self._stream(path, {"format": "zip"}) as (_, chunks):
            yield chunks

    @asynccontextmanager
    async def indexed(self, item: Sequence[str], index: int) -> AsyncIterator[tuple[Body, bytes]]:
        """Download the n-th file (from 0) of all resources of an item, in the order in which `files` lists them.

        Yields the file and its name in Content-Disposition, b"" if there is none.
        """
        async with self._stream(f"{item_path(item)}/files", {"index": str(index)}) as (response, chunks):
            size, modified = content_length(response), last_modified(response)
            validator, framed = strong_validator(response), is_framed(response)
            yield Body(0, size, modified, chunks, None, validator, framed), file_name(response)

    @asynccontextmanager
    async def _stream(
        self, path: str, query: Mapping[str, str]
    ) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[bytes]]]:
        async with self._download_slots, self._transport.reply("GET", path, query) as response:
            async with aclosing(self._transport.read_body(path, response)) as chunks:
                yield response, chunks
