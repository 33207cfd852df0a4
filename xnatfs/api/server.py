"""Open a server: the tree of a mount, and metadata as dataclasses, by calls that block.

Any number of threads may share one `Server`. An asyncio or trio program calls its methods in a thread
(`asyncio.to_thread`, `trio.to_thread.run_sync`), so that its own event loop goes on.
"""

import errno
import io
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, TypeVarTuple, Unpack, overload

from xnatfs.api import files, paths
from xnatfs.api.endpoint import Endpoint, OpenOptions, endpoint_of, locate
from xnatfs.api.files import BUFFER_BYTES, BufferedFile, XnatFile, os_errors
from xnatfs.api.paths import DirEntry
from xnatfs.api.portal import get_portal, release_portal
from xnatfs.common.errors import ConfigError
from xnatfs.listings.ttl_cache import Listing
from xnatfs.rest.models import Experiment, Project, Scan, Subject
from xnatfs.site import Site
from xnatfs.tree.node import Dir

if TYPE_CHECKING:
    import pandas

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


def open(url: str, **options: Unpack[OpenOptions]) -> "Server":
    """Open a server and log in.

    The login is found as by `xnatfs mount`: a session that is alive, XNAT_USER and XNAT_PASS, a profile, a stored
    token, `~/.netrc`; or in `token_file`. There is no prompt.

    Args:
        url: The server, as "https://xnat.example.org" or "xnat://xnat.example.org".
        options: See `OpenOptions`.

    Raises:
        LoginRequired: There is no login, or the server refuses it.
        ConfigError: The URL, an option or a file that was named cannot be used.
        Unreachable: The server does not answer.

    >>> with open(url) as server:
    ...     print([entry.name for entry in server.list()])
    ['projects', 'experiments', 'subjects', 'prearchive', 'bids']
    """
    server, path = locate(url)
    if path != "/" or not server:
        raise ConfigError(f"{url!r} is not the URL of a server: paths are given to its methods")
    return Server(endpoint_of(server, options))


class Server:
    """A server that is open; `xnatfs.open` makes it.

    Paths are those of a mount, "projects/PROJECT/SUBJECT/SESSION/scans/SCAN/RESOURCE/FILE", with or without a slash
    before them. Methods raise an OSError, as a mount would: FileNotFoundError, PermissionError (also where the login is
    refused), TimeoutError, or OSError with another errno. Its `__cause__` is the XnatError with the server's reason.

    >>> server = open(url)
    >>> scan = "projects/BRAINS/SUB001/SUB001_MR1/scans/1"
    >>> [entry.name for entry in server.list(scan)]
    ['DICOM', 'NIFTI', 'SNAPSHOTS']
    >>> server.info(scan).metadata["series_description"]
    'T1 3D'
    >>> with server.open(f"{scan}/NIFTI/t1.json", "r") as text:
    ...     print(text.read(14))
    {
      "Modality"
    >>> server.local(f"{scan}/NIFTI/t1.nii.gz").is_file()
    True
    >>> sorted(scan.id for scan in server.scans("projects/BRAINS/SUB001/SUB001_MR1"))
    ['1', '2', '3', '3-MR2', '3-MR3', '4-MR2']
    >>> server.read("projects/NONE")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] projects/NONE does not exist
    >>> server.close()
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._portal = get_portal(endpoint, users=1)
        self._is_open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<xnatfs.Server {self.url}{'' if self._is_open else ', closed'}>"

    @property
    def url(self) -> str:
        """Return the URL of the server."""
        return self._endpoint.config.url

    def close(self) -> None:
        """Close the connection; files that are open, and paths of `local`, must not be used afterwards."""
        if self._is_open:
            self._is_open = False
            release_portal(self._portal)

    # -- files ---------------------------------------------------------------------------------------------------

    def list(self, path: str = "") -> "Sequence[DirEntry]":
        """List a directory, in the order of a mount. No file is downloaded."""
        return self._call(paths.scan, path)

    def info(self, path: str) -> DirEntry:
        """Describe the entry at a path; a link is followed."""
        return self._call(paths.stat, path)

    def exists(self, path: str) -> bool:
        """Return whether a path exists."""
        try:
            self.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def walk(self, path: str = "") -> Iterator[tuple[str, "Sequence[DirEntry]", "Sequence[DirEntry]"]]:
        """Walk through a directory from the top down, like os.walk: yield path, directories and other entries.

        Links are among the other entries, and not followed.
        """
        entries = self.list(path)
        directories = [entry for entry in entries if entry.is_dir]
        yield path, directories, [entry for entry in entries if not entry.is_dir]
        for directory in directories:
            yield from self.walk(directory.path)

    @overload
    def open(self, path: str, mode: Literal["rb"] = "rb") -> BufferedFile: ...
    @overload
    def open(self, path: str, mode: Literal["r", "rt"], encoding: str = "utf-8") -> io.TextIOWrapper: ...
    def open(self, path: str, mode: str = "rb", encoding: str = "utf-8") -> BufferedFile | io.TextIOWrapper:
        """Open a file for reading.

        Args:
            path: The file.
            mode: "rb" for a BufferedFile, "r" or "rt" for an io.TextIOWrapper.
            encoding: Of the text.
        """
        if mode not in ("rb", "r", "rt"):
            raise ValueError(f"mode {mode!r}: a server is read only, by 'rb', 'r' or 'rt'")
        binary = BufferedFile(XnatFile(self._open_endpoint(), path), BUFFER_BYTES)
        return binary if mode == "rb" else io.TextIOWrapper(binary, encoding)

    def read(self, path: str) -> bytes:
        """Return all bytes of a file."""
        with XnatFile(self._open_endpoint(), path) as file:
            return file.readall()

    def local(self, path: str) -> Path:
        """Return the path of a file's verified bytes in the cache: no copy is made, and `mmap` works.

        The file stays there until the connection is closed. It must not be changed, and its name is not that on the
        server. Each such file keeps a descriptor open (`ulimit -n`).
        """
        return files.local_path(self._open_endpoint(), path)

    def download(self, path: str, target: str | Path) -> None:
        """Copy a file to a local path."""
        files.copy_file(self._open_endpoint(), path, target)

    # -- metadata ------------------------------------------------------------------------------------------------

    def projects(self) -> "Sequence[Project]":
        """Return the projects that the account can see."""
        return self._rows(Site.projects)

    def subjects(self, project: str) -> "Sequence[Subject]":
        """Return the subjects of a project, by its ID."""
        return self._rows(Site.subjects, project)

    def experiments(self, project: str) -> "Sequence[Experiment]":
        """Return the sessions and the other experiments of a project's subjects."""
        return self._rows(Site.experiments, project)

    def scans(self, session: str) -> "Sequence[Scan]":
        """Return the scans of a session, by its accession ID or its path.

        Raises NotADirectoryError for a path of anything else.
        """
        if "/" not in session:
            return self._rows(Site.scans, session)
        home, _, accession = self.info(session).metadata.get("uri", "").rpartition("/")
        if home != "/data/experiments":
            raise NotADirectoryError(errno.ENOTDIR, "not a session", session)
        return self._rows(Site.scans, accession)

    def frame(self, rows: "Sequence[Any]") -> "pandas.DataFrame":
        """Return dataclasses of one class, such as those of `scans` or `list`, as a pandas.DataFrame.

        Raises ImportError where pandas is not installed.
        """
        import pandas

        columns = [each.name for each in fields(rows[0])] if rows else None
        return pandas.DataFrame([asdict(row) for row in rows], columns=columns)

    # -- calls ---------------------------------------------------------------------------------------------------

    def _open_endpoint(self) -> Endpoint:
        if not self._is_open:
            raise ValueError(f"{self!r}: open it again")
        return self._endpoint

    def _call(self, function: Callable[[Dir, str], Awaitable[R]], path: str) -> R:
        with os_errors(path):
            portal = get_portal(self._open_endpoint())
            return portal.call(function, portal.root, path)

    def _rows(self, listing: Callable[[Site, *Ts], Awaitable[Listing[R]]], *args: *Ts) -> "Sequence[R]":
        with os_errors("/".join(map(str, args))):
            portal = get_portal(self._open_endpoint())
            return tuple(portal.call(listing, portal.site, *args).rows)
