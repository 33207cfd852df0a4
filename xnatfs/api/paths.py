"""Find, list and open paths of the tree. The functions run in a portal, on its event loop."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from xnatfs import tree
from xnatfs.common.errors import Stale
from xnatfs.content import Blob
from xnatfs.listings.revocation import Permit
from xnatfs.tree.node import UNDATED_EPOCH_SECONDS, Dir, File, Link, Node, measure


@dataclass(frozen=True, slots=True)
class DirEntry:
    """A file, a directory or a link of the tree.

    Attributes:
        name: The last part of the path.
        path: The path below the root, such as "projects/P/SUBJECT"; of a link that was followed, its target's.
        kind: "file", "directory" or "link".
        size: The length of a file in bytes; 0 for the others.
        modified: The time that the server states; None if it states none.
        version: Differs between two contents of a file: its MD5, or length and time where the server computes none.
        metadata: The attributes `user.xnat.*` of a mount that are not empty.
    """

    name: str
    path: str
    kind: str
    size: int = 0
    modified: datetime | None = None
    version: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_dir(self) -> bool:
        return self.kind == "directory"

    @property
    def is_file(self) -> bool:
        return self.kind == "file"


@dataclass(frozen=True, slots=True)
class OpenBlob:
    """A file that is open in a portal."""

    blob: Blob
    permit: Permit
    version: str


async def find(root: Dir, path: str) -> Node:
    """Return the node at a path, and follow links on the way. Raises NotFound, NotDirectory."""
    return await tree.find(root, _parts(path))


async def stat(root: Dir, path: str) -> DirEntry:
    """Describe the node at a path. Raises NotFound."""
    node = await find(root, path)
    await measure([node])
    return _entry(node)


async def scan(root: Dir, path: str) -> list[DirEntry]:
    """List a directory; of a file, list the file alone. Raises NotFound."""
    return await entries_in(await find(root, path))


async def entries_in(node: Node) -> list[DirEntry]:
    """Describe what is in a directory; of a file, the file alone."""
    nodes: Sequence[Node] = (await node.children()).listed() if isinstance(node, Dir) else [node]
    await measure(nodes)
    return [_entry(each) for each in nodes]


async def open_file(root: Dir, path: str) -> OpenBlob:
    """Open a file. Raises NotFound, and IsADirectoryError."""
    try:
        return await _open_once(root, path)
    except Stale:  # its length differed from the listed one, and is known now
        return await _open_once(root, path)


async def keep_local(root: Dir, path: str) -> tuple[Path, int]:
    """Fetch and verify a file; return its path in the cache, and a descriptor that keeps it there.

    Raises NotFound, and CacheError if the cache has no room for it.
    """
    opened = await open_file(root, path)
    try:
        return await root.site.content.open_local(opened.blob)
    finally:
        opened.blob.close()


async def _open_once(root: Dir, path: str) -> OpenBlob:
    node = await find(root, path)
    if not isinstance(node, File):
        raise IsADirectoryError(f"{'/'.join(node.path) or '/'} is a directory")
    permit = node.permit()
    return OpenBlob(await node.open(), permit, _version(node))


def _parts(path: str | os.PathLike[str]) -> list[str]:
    return [part for part in os.fspath(path).split("/") if part not in ("", ".")]


def _entry(node: Node) -> DirEntry:
    at = node.modified()
    modified = None if at == UNDATED_EPOCH_SECONDS else datetime.fromtimestamp(at, UTC)
    metadata = {key: value for key, value in node.xattrs().items() if value}
    path = "/".join(node.path)
    if isinstance(node, File):
        return DirEntry(node.name, path, "file", node.measured_size, modified, _version(node), metadata)
    return DirEntry(node.name, path, "link" if isinstance(node, Link) else "directory", 0, modified, "", metadata)


def _version(node: File) -> str:
    return node.xattrs().get("digest") or f"{node.measured_size}-{node.modified_ns()}"
