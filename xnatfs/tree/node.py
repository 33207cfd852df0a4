"""Define the nodes of the tree: directories, files and links.

A node is cheap and knows its place: its parent, its name, the site. What it holds of the server is one immutable row;
when listings are fetched anew, new nodes take the place of old ones. An author of a directory writes `load`;
adapters call `children` and `child`.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from xnatfs.common.clock import now
from xnatfs.common.errors import NotFound
from xnatfs.common.tasks import gather
from xnatfs.content import Blob
from xnatfs.listings.keys import ChildrenKey, ListKey
from xnatfs.listings.revocation import Permit
from xnatfs.site import Site

# The largest integer that every program reads as it is written: JavaScript's and jq's numbers have 53 bits. Files have
# the upper half, in the order of their listings; directories and links the lower.
INODE_BITS = 53

# Shown where the server states no date (projects): 2000-01-01, as rclone does. The time of the mount would be another
# one each time, and `rsync -a` would copy everything again.
UNDATED_EPOCH_SECONDS = 946_684_800.0  # seconds since the epoch


class LazyNodes(Mapping[str, "Node"]):
    """Nodes by name that are made when they are looked up."""

    __slots__ = ()

    def listed(self) -> Sequence["Node"]:
        """Return all nodes, in a constant order."""
        raise NotImplementedError(type(self).__name__)


class NodesByPlace(Sequence["Node"]):
    """Nodes that are made when they are looked up."""

    def make(self, place: int) -> "Node":
        """Return the node at a place. Subclasses implement it."""
        raise NotImplementedError(type(self).__name__)

    @overload
    def __getitem__(self, index: int) -> "Node": ...
    @overload
    def __getitem__(self, index: slice) -> list["Node"]: ...
    def __getitem__(self, index: int | slice) -> "Node | list[Node]":
        if isinstance(index, slice):
            return [self.make(place) for place in range(*index.indices(len(self)))]
        return self.make(index)


@dataclass(frozen=True, slots=True)
class Children:
    """The content of a directory, for as long as the listings it was made of are fresh.

    `aliases` are found by lookup but not listed: raw labels that are shown otherwise, accession IDs.
    """

    nodes: Mapping[str, "Node"]
    expires: float = math.inf
    aliases: Mapping[str, "Node"] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.nodes) + len(self.aliases)

    def listed(self) -> Sequence["Node"]:
        """Return `nodes`, to be listed from any place on. In a large directory, nodes are made one by one."""
        return self.nodes.listed() if isinstance(self.nodes, LazyNodes) else list(self.nodes.values())


class Node:
    """Anything with a name in the tree."""

    __slots__ = ("name", "parent", "site")

    # It is made from listings when its length is requested, and so listed without one.
    is_generated = False
    # Several views may have a name for it, as hard links: programs such as du(1) then count its bytes once.
    is_in_views = False

    def __init__(self, site: Site, parent: "Dir | None", name: str) -> None:
        self.site = site
        self.parent = parent
        self.name = name

    @property
    def path(self) -> tuple[str, ...]:
        return (*self.parent.path, self.name) if self.parent else ()

    @property
    def identity(self) -> object:
        """Return what makes this node the same one after a new listing: its path."""
        return self.path

    @property
    def version(self) -> int:
        """Return a number for the content, by which it differs from other contents of the same identity."""
        return 0

    @property
    def rank(self) -> tuple[float, int]:
        """Return the order among nodes of one identity, the newest last: when its listing expires, what was learnt."""
        return (math.inf, 0)

    def renewed(self) -> "Node":
        """Return the node to show now, of one that is generated: another one when its bytes have expired."""
        return self

    def supersede(self, shown: "Node") -> None:
        """Compare with the node that was shown before under this identity, and record a change."""

    def inode_hint(self) -> int:
        """Return the inode number to use if it is free: below 2**INODE_BITS and the same in every mount."""
        return number(repr(self.path), INODE_BITS - 1)

    def shown_until(self) -> float:
        """Return until when its name and attributes are valid: as long as the listing of its directory is."""
        return self.parent.fresh_until() if self.parent else math.inf

    def modified(self) -> float:
        """Return the time that the server states, else that of the item above, in seconds since the epoch."""
        return self.parent.modified() if self.parent else UNDATED_EPOCH_SECONDS

    def modified_ns(self) -> int:
        """Return it in nanoseconds; those below a millisecond distinguish the versions of a file."""
        return int(self.modified() * 1e9)

    def xattrs(self) -> dict[str, str]:
        """Return the server's metadata of this node, empty values too; keys are without prefix."""
        return {}

    async def all_xattrs(self) -> dict[str, str]:
        """Return all metadata, also those that lists of many items lack: may cost a request."""
        return self.xattrs()

    def get_stale_time(self) -> float:
        """Return when a node that is served stale was fetched, in seconds since the epoch; 0 for a fresh one."""
        above = self.parent.get_stale_time() if self.parent else 0.0
        times = [above, *(self.site.get_stale_time(key) for key in self.sources())]
        return min(filter(None, times), default=0.0)

    def sources(self) -> Sequence[ListKey]:
        """Return the keys of its listings; one may be derived from others, or be of the last mount."""
        return ()


class Dir(Node):
    """A directory."""

    __slots__ = ("_expires", "path")

    path: tuple[str, ...]  # made once: every node below it needs it

    def __init__(self, site: Site, parent: "Dir | None", name: str) -> None:
        self.site = site
        self.parent = parent
        self.name = name
        self.path = (*parent.path, name) if parent else ()
        self._expires = -math.inf

    async def children(self) -> Children:
        """Return its children, from the cache while that is fresh."""
        children = await self.site.metadata.get(ChildrenKey(self.path), self.load)
        self._expires = children.expires
        return children

    def fresh_until(self) -> float:
        """Return when the last result of `children` expires, by `now()`; in the past if there is none."""
        if self._expires <= now():  # but another node of this path may have newer children
            children = self.site.metadata.peek(ChildrenKey(self.path))
            self._expires = children.expires if children else -math.inf
        return self._expires

    async def look_into(self) -> None:
        """Begin to request the listings below it, before one of these is needed."""

    async def load(self) -> Children:
        """Make the children from the listings. Subclasses implement it."""
        raise NotImplementedError(type(self).__name__)

    async def child(self, name: str) -> Node:
        """Return the node of this name, shown or raw. Raises NotFound once the server has confirmed that."""
        children = await self.children()
        node = children.nodes.get(name) or children.aliases.get(name)
        # No label begins with a dot, but many lookups do.
        if node is None and not name.startswith(".") and await self.site.confirm(self.sources(), children.expires):
            self.site.metadata.forget(ChildrenKey(self.path))
            children = await self.children()
            node = children.nodes.get(name) or children.aliases.get(name)
        if node is None:
            raise NotFound(f"{'/'.join((*self.path, name))} does not exist")
        return node.renewed() if node.is_generated else node


class StaticDir(Dir):
    """A directory whose entries are known already, so that no request lists it."""

    __slots__ = ()

    def entries(self) -> Iterable[Node]:
        """Return the entries. Subclasses implement it."""
        raise NotImplementedError(type(self).__name__)

    async def children(self) -> Children:
        return Children({node.name: node for node in self.entries()})

    def fresh_until(self) -> float:
        return math.inf


class Link(Node):
    """A symbolic link within the mount."""

    __slots__ = ("target",)

    def __init__(self, site: Site, parent: Dir, name: str, target: tuple[str, ...]) -> None:
        super().__init__(site, parent, name)
        self.target = ""
        self.lead_to(target)

    def lead_to(self, target: tuple[str, ...]) -> None:
        """Set where it leads to, given as a path from the root of the mount."""
        assert self.parent is not None
        self.target = "/".join((*[".."] * len(self.parent.path), *target))

    async def follow(self) -> str:
        """Return where it leads to, relative to its directory."""
        return self.target


class File(Node):
    """A file that can be read. Its length never changes: another length is another node, of another version."""

    __slots__ = ()

    @property
    def measured(self) -> bool:
        """Return whether the length is known without a request."""
        raise NotImplementedError(type(self).__name__)

    @property
    def measured_size(self) -> int:
        """Return the length in bytes. Only for a file that is `measured`."""
        raise NotImplementedError(type(self).__name__)

    async def size(self) -> int:
        """Return the length in bytes. Costs a request if the server's listing lacks it."""
        raise NotImplementedError(type(self).__name__)

    def permit(self) -> Permit:
        """Return the permission to read it, which holds while the server shows it. Each read checks it."""
        raise NotImplementedError(type(self).__name__)

    async def open(self) -> Blob:
        """Open its bytes; the caller closes them. Raises Stale if the length proves to be another: look it up again."""
        raise NotImplementedError(type(self).__name__)

    async def unchanged_since(self, size: int, stamp: str) -> str:
        """Return the stamp of a file without a digest if it is still the one of this length and stamp, else ''."""
        raise NotImplementedError(type(self).__name__)

    def is_another(self, before: str, stamp: str) -> bool:
        """Return whether the stamps of two of its blobs prove that it was replaced in between."""
        raise NotImplementedError(type(self).__name__)

    def replaced(self, before: str, stamp: str) -> None:
        """Put a node of another version in its place: its blob has another stamp than one that was opened before."""
        raise NotImplementedError(type(self).__name__)


async def measure(nodes: Iterable[Node]) -> None:
    """Request the unknown sizes of several files at once. Raises what the first failure raises."""
    unknown = [node.size for node in nodes if isinstance(node, File) and not node.measured]
    if unknown:
        await gather(*unknown)


def number(text: str, bits: int) -> int:
    """Return a number of so many bits, the same for the same text everywhere."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) >> (64 - bits)
