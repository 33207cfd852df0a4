"""Serve `xnat://HOST[:PORT][/CONTEXT]/projects/...` to fsspec, and by it to pandas, Dask, zarr and others. Read-only.

fsspec makes an instance of a synchronous file system for each thread. They hold settings only, and share the portal of
their process: one login, one event loop, one cache. Pickled they are a URL and options, without a secret.
"""

import errno
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial, partialmethod
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar

import trio
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.spec import AbstractFileSystem

from xnatfs.api import files, paths
from xnatfs.api.endpoint import Endpoint, OpenOptions, endpoint_of, file_url, locate
from xnatfs.api.files import BUFFER_BYTES, BufferedFile, XnatFile, os_errors
from xnatfs.api.paths import DirEntry
from xnatfs.api.portal import Portal, get_portal
from xnatfs.common.errors import Denied
from xnatfs.common.tasks import gather
from xnatfs.tree.node import Dir

log = logging.getLogger(__name__)

R = TypeVar("R")

# Files that `cat_ranges` has open at a time: twice as many as are downloaded, since most come in the tar of a series.
OPEN_AT_ONCE = 16

# The options of this file system, and those of fsspec itself.
_OPTIONS = frozenset(OpenOptions.__annotations__)
_FSSPEC_OPTIONS = frozenset(
    ("asynchronous", "loop", "batch_size", "use_listings_cache", "listings_expiry_time", "max_paths")
)


class XnatFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The tree of a mount as a file system of fsspec.

    Args:
        url: The server, as "https://xnat.example.org"; a URL of a file sets it.
        options: See `OpenOptions`, as `storage_options`; a login goes into `token_file`.

    Raises:
        TypeError: There is no such option, or a login was given.
        OSError: In its methods, as in a mount; EROFS for every change.
    """

    protocol = ("xnat", "xnat+http")
    root_marker = "/"

    def __init__(self, url: str, **options: Any) -> None:
        if unknown := options.keys() - _OPTIONS - _FSSPEC_OPTIONS:
            raise TypeError(
                f"no such option: {', '.join(sorted(unknown))}. A login would be stored with every pickled task: "
                "name a file with token_file instead"
            )
        if "@" in url.partition("://")[2].partition("/")[0]:
            raise TypeError("a login in the URL would be stored with every pickled task: name a file with token_file")
        super().__init__(url=url, **options)
        self.url = locate(url).url
        self._own: Any = {name: value for name, value in options.items() if name in _OPTIONS}
        self._endpoint: Endpoint | None = None

    @property
    def endpoint(self) -> Endpoint:
        """Return the settings of the server, which are read at the first use. Raises OSError."""
        if self._endpoint is None:
            with os_errors(self.url):
                self._endpoint = endpoint_of(self.url, self._own)
        return self._endpoint

    # -- names ---------------------------------------------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return locate(os.fspath(path)).path

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        server = locate(path).url
        return {"url": server} if server else {}

    def unstrip_protocol(self, name: str) -> str:
        return file_url(self.url, self._strip_protocol(name))

    @property
    def fsid(self) -> str:
        return f"xnat_{self.url}"

    def __dask_tokenize__(self) -> tuple[str, str]:
        return (type(self).__name__, self.url)

    # -- reading -------------------------------------------------------------------------------------------------

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        entries = self._call(_list, self._strip_protocol(path))
        return [_info(name, entry) if detail else name for name, entry in entries]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return _info(self._strip_protocol(path), self._entry(path))

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Return whether a path exists; the method of fsspec would return False in an outage."""
        try:
            self._entry(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _is(self, kind: str, path: str) -> bool:
        """Return whether there is an entry of a kind at a path; raise as `exists` does."""
        return self.exists(path) and self._entry(path).kind == kind

    isdir = partialmethod(_is, "directory")
    isfile = partialmethod(_is, "file")

    def walk(
        self, path: str, maxdepth: int | None = None, topdown: bool = True, on_error: Any = None, **kwargs: Any
    ) -> Iterator[Any]:
        """Walk as fsspec does, but by default omit only denied directories, where fsspec omits any that fail."""
        return super().walk(path, maxdepth, topdown, on_error or _omit_denied, **kwargs)  # type: ignore[no-any-return]

    def modified(self, path: str) -> datetime | None:
        return self._entry(path).modified

    created = modified

    def ukey(self, path: str) -> str:
        """Return a key of a file's content: equal in every process, and different after the file has changed."""
        entry = self._entry(path)
        return hashlib.sha256(f"{self.unstrip_protocol(path)}\0{entry.kind}\0{entry.version}".encode()).hexdigest()

    def checksum(self, path: str) -> int:
        return int(self.ukey(path)[:16], 16)

    def local(self, path: str) -> Path:
        """Return the path of the verified file in the cache; it is valid until the process ends."""
        self._portal()
        return files.local_path(self.endpoint, self._strip_protocol(path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        with self._open(self._strip_protocol(path)) as file:
            first, last, _ = slice(start, end).indices(file.size)
            data: bytes = file.raw.pread(first, max(last - first, 0))
            return data

    def cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Read ranges of files, several at a time. Without `on_error="raise"` an exception takes a range's place."""
        if not isinstance(paths, list):
            raise TypeError("paths must be a list")
        count = len(paths)
        firsts = list(starts) if isinstance(starts, Iterable) else [starts] * count
        lasts = list(ends) if isinstance(ends, Iterable) else [ends] * count
        if not len(firsts) == len(lasts) == count:
            raise ValueError("paths, starts and ends differ in length")
        wanted = [
            (self._strip_protocol(path), slice(first, last))
            for path, first, last in zip(paths, firsts, lasts, strict=True)
        ]
        found = self._call(_read_ranges, wanted)
        if on_error == "raise":
            for one in found:
                if isinstance(one, Exception):
                    raise one
        return found

    def get_file(
        self, rpath: str, lpath: Any, callback: Any = DEFAULT_CALLBACK, outfile: Any = None, **kwargs: Any
    ) -> None:
        if self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
            return
        if outfile is not None or hasattr(lpath, "write"):
            super().get_file(rpath, lpath, callback=callback, outfile=outfile, **kwargs)
            return
        self._portal()
        os.makedirs(Path(lpath).parent, exist_ok=True)
        files.copy_file(self.endpoint, self._strip_protocol(rpath), lpath)
        size = os.path.getsize(lpath)
        callback.set_size(size)
        callback.absolute_update(size)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: Any = None,
        autocommit: bool = True,
        cache_options: Any = None,
        **kwargs: Any,
    ) -> Any:
        if mode != "rb":
            raise _read_only(path)
        self._portal()
        return FsspecFile(self, path, block_size if isinstance(block_size, int) and block_size else BUFFER_BYTES)

    def _entry(self, path: str) -> DirEntry:
        return self._call(paths.stat, self._strip_protocol(path))

    def _portal(self) -> Portal:
        with os_errors(self.url):
            return get_portal(self.endpoint, pins=True)

    def _call(self, function: Callable[[Dir, Any], Awaitable[R]], argument: Any) -> R:
        portal = self._portal()
        with os_errors(str(argument)):
            return portal.call(function, portal.root, argument)

    # -- changes -------------------------------------------------------------------------------------------------

    def _refuse(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        raise _read_only(path)

    mkdir = makedirs = rmdir = rm_file = _rm = rm = touch = pipe_file = cp_file = mv = _refuse

    def put_file(self, lpath: Any, rpath: str, *args: Any, **kwargs: Any) -> None:
        raise _read_only(rpath)


class FsspecFile(BufferedFile):
    """A file that is open in a file system.

    Pickled it is that, the path and the position, as fsspec's own files are: unpickled it is opened again.
    """

    def __init__(self, fs: XnatFileSystem, path: str, buffer_size: int) -> None:
        super().__init__(XnatFile(fs.endpoint, path), buffer_size)
        self.fs = fs
        self.path = path

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return _open_again, (self.fs, self.path, self.raw.version, self.tell())


def _open_again(fs: XnatFileSystem, path: str, version: str, position: int) -> FsspecFile:
    file: FsspecFile = fs.open(path)
    if file.raw.version != version:
        file.close()
        raise OSError(errno.ESTALE, "it has changed since it was opened", path)
    file.seek(position)
    return file


def _read_only(path: Any) -> OSError:
    return OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


def _omit_denied(error: Exception) -> None:
    """Omit a directory that is denied or gone; raise any other failure of a listing."""
    if isinstance(error.__cause__, Denied):
        log.warning("left out: %s", error.__cause__)
    elif not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


async def _list(root: Dir, path: str) -> list[tuple[str, DirEntry]]:
    """List a directory by names below the path as given: of a link or an accession ID, not those of its target."""
    node = await paths.find(root, path)
    entries = await paths.entries_in(node)
    if not isinstance(node, Dir):
        return [(path, entry) for entry in entries]
    return [(f"{path.rstrip('/')}/{entry.name}", entry) for entry in entries]


def _info(name: str, entry: DirEntry) -> dict[str, Any]:
    return {
        "name": name,
        "size": entry.size,
        "type": entry.kind,
        "islink": entry.kind == "link",
        "mtime": entry.modified.timestamp() if entry.modified else None,
        "version": entry.version,
        **{key: value for key, value in entry.metadata.items() if key in ("digest", "uri")},
    }


async def _read_ranges(root: Dir, wanted: Sequence[tuple[str, slice]]) -> list[bytes | Exception]:
    """Read a range of each file, or return the exception in its place."""
    slots = trio.CapacityLimiter(OPEN_AT_ONCE)

    async def read(path: str, part: slice) -> bytes | Exception:
        async with slots:
            try:
                with os_errors(path):
                    opened = await paths.open_file(root, path)
                    try:
                        first, last, _ = part.indices(opened.blob.size)
                        return await opened.blob.read(first, max(last - first, 0))
                    finally:
                        opened.blob.close()
            except OSError as error:
                return error

    return await gather(*(partial(read, path, part) for path, part in wanted))
