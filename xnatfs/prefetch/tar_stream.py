"""Read the members of a tar while it arrives.

The standard library decodes the blocks (`tarfile.TarInfo`), but reads only from a blocking file; this module reads the
same blocks as they arrive from the network. POSIX (PAX) and GNU long names are decoded, as XNAT and its Java library
write them. No path of an archive is ever written to: links, devices and folders are skipped, and a name is only
compared with listed names. A sparse file is skipped as well, because its data in the archive are not its content.
"""

import tarfile
from collections.abc import AsyncGenerator, AsyncIterator

from xnatfs.common.errors import BadReply
from xnatfs.common.sanitize import MAX_SIZE_DIGITS, size

BLOCK = tarfile.BLOCKSIZE
NAME = tarfile.LENGTH_NAME
# Bytes of all headers before one file: a path of 4 KiB, the longest on Linux, with room for the other PAX records.
MAX_HEADER_BYTES = 64 * 1024
# Bytes after the last member: programs pad a tar to a multiple of 10 KiB, some to one of a megabyte.
MAX_PADDING_BYTES = 2**20
PAX, GLOBAL, LONG_NAME = tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME


class _Stream:
    """Read exact numbers of bytes from an iterator of chunks."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._taken = 0  # bytes of the chunk: to cut them off each time would copy all the rest

    async def read_some(self, most: int) -> bytes:
        """Read at least one byte and at most `most` bytes. Raises BadReply at the end."""
        while self._taken == len(self._chunk):
            chunk = await anext(self._chunks, None)
            if chunk is None:
                raise BadReply("the archive ends in the middle")
            self._chunk, self._taken = chunk, 0
        taken = self._chunk[self._taken : self._taken + most]
        self._taken += len(taken)
        return taken

    async def read_exactly(self, length: int) -> bytes:
        if length <= len(self._chunk) - self._taken:
            self._taken += length
            return self._chunk[self._taken - length : self._taken]
        parts = []
        while length:
            parts.append(await self.read_some(length))
            length -= len(parts[-1])
        return b"".join(parts)

    async def drain(self) -> None:
        """Read the padding after the last member: a reply that was read to its end leaves its connection open."""
        left = MAX_PADDING_BYTES
        while left > 0 and (chunk := await anext(self._chunks, None)) is not None:
            left -= len(chunk)


class Member:
    """A file of the archive, with its size in bytes. Those that are not read are skipped before the next member."""

    def __init__(self, name: str, size: int, stream: _Stream, *, cut: bool = False) -> None:
        self.name = name
        self.size = size
        self.cut = cut  # the name fills its field, and may have been longer
        self._stream = stream
        self._left = size

    async def chunks(self) -> AsyncGenerator[bytes]:
        while self._left:
            chunk = await self._stream.read_some(self._left)
            self._left -= len(chunk)
            yield chunk

    async def read_rest(self) -> bytes:
        """Read all remaining bytes of the file."""
        left, self._left = self._left, 0
        return await self._stream.read_exactly(left)

    async def skip(self) -> None:
        while self._left:
            self._left -= len(await self._stream.read_some(self._left))
        await self._stream.read_exactly(-self.size % BLOCK)


async def members(chunks: AsyncIterator[bytes]) -> AsyncGenerator[Member]:
    """Iterate over the regular files of a tar. Raises BadReply where it is damaged or ends too early."""
    stream = _Stream(chunks)
    pax: dict[str, str] = {}
    headers = 0  # bytes of headers since the last file
    while True:
        block = await stream.read_exactly(BLOCK)
        if not any(block):
            await stream.drain()
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise BadReply(f"the archive is damaged: {error}") from None
        if info.type in (PAX, LONG_NAME):
            headers += info.size
            if not 0 <= info.size <= headers <= MAX_HEADER_BYTES:
                raise BadReply(f"the archive has a header of {info.size} bytes")
            payload = (await stream.read_exactly(info.size + -info.size % BLOCK))[: info.size]
            pax |= _records(payload) if info.type == PAX else {"path": _text(payload.rstrip(b"\0"))}
            continue
        cut = "path" not in pax and len(block[:NAME].rstrip(b"\0")) == NAME
        member = Member(pax.get("path", info.name), _size(pax, info), stream, cut=cut)
        if (
            info.isreg()
            and info.type != tarfile.GNUTYPE_SPARSE
            and not any(key.startswith("GNU.sparse") for key in pax)
        ):
            yield member
        if info.type != GLOBAL:  # a global header may stand between a file and the file's own header
            pax, headers = {}, 0
        await member.skip()


def _size(pax: dict[str, str], info: tarfile.TarInfo) -> int:
    """Return the size of a member in bytes.

    Raises BadReply where it is negative, which a base-256 number can be, or has more than MAX_SIZE_DIGITS digits.
    """
    stated = size(pax["size"]) if "size" in pax else info.size
    if stated is None or not 0 <= stated < 10**MAX_SIZE_DIGITS:
        raise BadReply(f"the archive has a file of {pax.get('size', info.size)} bytes")
    return stated


def _records(payload: bytes) -> dict[str, str]:
    """Parse the records of a PAX header, 'LENGTH KEY=VALUE\\n' one after the other. Raises BadReply."""
    records: dict[str, str] = {}
    while payload:
        digits, _, _ = payload[:MAX_SIZE_DIGITS].partition(b" ")
        length = size(digits.decode("latin-1")) or 0
        if not len(digits) + 1 < length <= len(payload):
            raise BadReply("the archive has a damaged header")
        key, _, value = payload[len(digits) + 1 : length - 1].partition(b"=")
        records[_text(key)] = _text(value)
        payload = payload[length:]
    return records


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
