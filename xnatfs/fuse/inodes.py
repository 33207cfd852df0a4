"""Manage inode numbers, lookup counts, and what the kernel caches of each file. Nothing here awaits.

A number belongs to an identity: a path, whatever its content is. It stays for as long as the kernel remembers it, and
is the same again afterwards and in the next mount, because it is made of the identity; only where two identities make
the same number, their order decides.

Invariants:
- All handles of one number are of one version. The kernel keeps one length and one set of pages for each number, and so
  mixes no two contents.
- So a version that arrives while another one is open has a number of its own until that is closed: the reader goes on
  with the old bytes, and programs that open the path get the new ones.
"""

from pyfuse3 import InodeT

from xnatfs.content import Blob
from xnatfs.tree.node import INODE_BITS, Dir, Node, number

ROOT = InodeT(1)


class Pages:
    """The open handles of a file, and the pages that the kernel has of it."""

    __slots__ = ("handles", "stamp", "suspect", "unproven")

    def __init__(self) -> None:
        self.handles = 0
        self.stamp = ""  # of the content that was opened last, where it has one
        # The pages, and the length, may be of another version than the handles are of, or of bytes that failed: the
        # kernel drops both with each open, and has done so when such a handle is used or released.
        self.suspect = False
        self.unproven: Blob | None = None  # opened last before it was verified, until all handles are released

    def open(self, blob: Blob) -> bool:
        """Count a handle, and return whether the kernel may keep its pages: they are of this blob, all verified.

        The file may be whole although an earlier blob of it failed: another process has put it into the cache.
        """
        unproven = self.unproven
        self.suspect |= unproven is not None and unproven is not blob and not unproven.complete
        if not blob.complete:
            self.unproven = blob
        self.handles += 1
        return blob.complete and not self.suspect

    def release(self) -> None:
        """Release a handle. Pages of a file that was never verified must not outlive its last one."""
        self.suspect = False
        self.handles -= 1
        if not self.handles:
            self.suspect = self.unproven is not None and not self.unproven.complete
            self.unproven = None


class Known:
    """A node under its number. One object for all that is known of it: there may be a million."""

    __slots__ = ("_pages", "identity", "inode", "lookups", "node")

    def __init__(self, inode: InodeT, node: Node, identity: object) -> None:
        self.inode = inode
        self.node = node  # as it was reported to the kernel
        self.identity = identity
        self.lookups = 0  # references that the kernel has to it
        self._pages: Pages | None = None  # of a file that was opened, or has changed

    @property
    def pages(self) -> Pages:
        self._pages = self._pages or Pages()
        return self._pages

    @property
    def is_open(self) -> bool:
        return self._pages is not None and self._pages.handles > 0

    def newest(self, node: Node) -> Node:
        """Return the newer one of its node and this one."""
        return node if node.rank >= self.node.rank else self.node

    def serve(self, node: Node) -> None:
        """Let the number stand for this node in the replies to the kernel, unless it stands for a newer one."""
        before, self.node = self.node, self.newest(node)
        if before is not self.node and before.version != self.node.version:
            self.pages.stamp = ""
            self.pages.suspect = True


class Inodes:
    """Nodes by inode number, for as long as the kernel may ask for them."""

    def __init__(self, root: Dir) -> None:
        known = Known(ROOT, root, root.identity)
        known.lookups = 1
        self._by_inode: dict[InodeT, Known] = {ROOT: known}
        self._by_identity: dict[object, Known] = {known.identity: known}

    def __len__(self) -> int:
        return len(self._by_inode)

    def __getitem__(self, inode: InodeT) -> Known:
        """Return what is known of a number that the kernel was given. Raises KeyError."""
        return self._by_inode[inode]

    def find(self, identity: object) -> InodeT | None:
        """Return the number that the kernel knows an identity by; None if it knows none."""
        known = self._by_identity.get(identity)
        return known.inode if known else None

    def nodes(self) -> list[Node]:
        """Return every node that the kernel knows."""
        return [known.node for known in self._by_inode.values()]

    def known(self, node: Node) -> Known:
        """Return what is known of this node, or a new object for it, which is not stored."""
        identity = node.identity
        known = self._by_identity.get(identity)
        if known is None:
            hint = node.inode_hint()
            return Known(self._free(hint) if hint in self._by_inode else InodeT(hint), node, identity)
        if known.node is node:
            return known
        node.supersede(known.node)
        if not known.is_open or known.newest(node).version == known.node.version:
            return known
        identity, hint = (identity, node.version), number(f"{known.inode} {node.version}", INODE_BITS - 1)
        return self._by_identity.get(identity) or Known(self._free(hint), node, identity)

    def _free(self, hint: int) -> InodeT:
        """Return a number that is free, this one if possible.

        Not the next one: where two listings begin at the same number, each file would be searched for behind all files
        of the other one.
        """
        inode = InodeT(max(hint, ROOT + 1))
        while inode in self._by_inode:
            inode = InodeT(max(number(str(inode), INODE_BITS - 1), ROOT + 1))
        return inode

    def is_current(self, known: Known, node: Node) -> bool:
        """Return whether this is still what is known of the node: its number is its own or free, and of its version."""
        holder = self._by_inode.get(known.inode)
        if holder is not known and (holder is not None or known.identity in self._by_identity):
            return False
        if known.node is node and known.identity == node.identity:
            return True
        return self.known(node) is known and known.node.version == node.version

    def refer(self, known: Known, node: Node) -> None:
        """Count one more reference of the kernel to what `is_current`; the newest node of an identity serves it."""
        if known.node is not node:
            known.serve(node)
        if not known.lookups:
            self._by_inode[known.inode] = self._by_identity[known.identity] = known
        known.lookups += 1

    def forget(self, inode: InodeT, count: int) -> None:
        """Drop so many references; without any left, the number is free."""
        known = self._by_inode.get(inode)
        if known is None:
            return
        known.lookups = max(known.lookups - count, 1 if inode == ROOT else 0)
        if not known.lookups:
            del self._by_inode[inode], self._by_identity[known.identity]
