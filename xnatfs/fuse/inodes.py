"""Inode numbers and lookup counts. Nothing here awaits.

A number belongs to an identity: a path, whatever its content is. It stays for as long as the kernel remembers it, and
is the same again afterwards and in the next mount, because it is made of the identity; only two that want the same
number are told apart by order.

Invariants:
- All handles of one number are of one version. The kernel keeps one length and one set of pages for each number, and so
  mixes no two contents.
- So a version that comes while another one is open has a number of its own until that is closed: the reader goes on
  with the old bytes, and programs that open the path get the new ones.
"""

from collections import Counter

from pyfuse3 import InodeT

from xnatfs.tree.node import INODE_BITS, Dir, Node, number

ROOT = InodeT(1)


class Known:
    """A node under its number. One object for all that is known of it: there may be a million."""

    __slots__ = ("identity", "inode", "lookups", "node", "stamp")

    def __init__(self, inode: InodeT, node: Node, identity: object) -> None:
        self.inode = inode
        self.node = node  # as the kernel was told of it
        self.identity = identity
        self.lookups = 0  # references that the kernel has to it
        self.stamp = ""  # of the content that was opened, where it has one

    def newest(self, node: Node) -> Node:
        """Return which of its node and this one was made of what is known now."""
        return node if node.rank >= self.node.rank else self.node


class Inodes:
    """Nodes by inode number, for as long as the kernel may ask for them."""

    def __init__(self, root: Dir) -> None:
        known = Known(ROOT, root, root.identity)
        known.lookups = 1
        self._by_inode: dict[InodeT, Known] = {ROOT: known}
        self._by_identity: dict[object, Known] = {known.identity: known}
        self.handles = Counter[InodeT]()  # how many are open
        # Numbers of which the kernel may have pages, and a length, of another version than their handles are of, or of
        # bytes that failed: it lets go of both with each open, and has done so when such a handle is used or released.
        self.mixed: set[InodeT] = set()

    def __len__(self) -> int:
        return len(self._by_inode)

    def __getitem__(self, inode: InodeT) -> Node:
        """Return the node of a number that the kernel was given. Raises KeyError."""
        return self._by_inode[inode].node

    def entry(self, inode: InodeT) -> Known:
        """Return what is known of a number that the kernel was given. Raises KeyError."""
        return self._by_inode[inode]

    def find(self, identity: object) -> InodeT | None:
        """Return the number that the kernel knows an identity by; None if it knows none."""
        known = self._by_identity.get(identity)
        return known.inode if known else None

    def nodes(self) -> list[Node]:
        """Return every node that the kernel knows."""
        return [known.node for known in self._by_inode.values()]

    def number(self, node: Node) -> InodeT:
        """Return the number this node has, or would get. Nothing is remembered."""
        return self.known(node).inode

    def known(self, node: Node) -> Known:
        """Return what is known of this node, or would be. Nothing is remembered."""
        identity = node.identity
        known = self._by_identity.get(identity)
        if known is None:
            return Known(self._free(node.inode_hint()), node, identity)
        if known.node is node:
            return known
        node.supersede(known.node)
        if not self.handles[known.inode] or known.newest(node).version == known.node.version:
            return known
        identity, hint = (identity, node.version), number(f"{known.inode} {node.version}", INODE_BITS - 1)
        return self._by_identity.get(identity) or Known(self._free(hint), node, identity)

    def _free(self, hint: int) -> InodeT:
        """Return a number that is free, this one if possible.

        Not the next one: of two listings that begin at the same number each file would be looked for behind all files
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

    def look_up(self, node: Node) -> InodeT:
        """Count one more reference of the kernel to this node; the newest node of an identity serves it."""
        known = self.known(node)
        self.serve(known, node)
        self.refer(known)
        return known.inode

    def refer(self, known: Known) -> None:
        """Count one more reference of the kernel to what `is_current`."""
        if not known.lookups:
            self._by_inode[known.inode] = self._by_identity[known.identity] = known
        known.lookups += 1

    def serve(self, known: Known, node: Node) -> None:
        """Let the number stand for this node, unless it stands for a newer one: the kernel is told of it now."""
        before = known.node
        if before is node:
            return
        known.node = known.newest(node)
        if before.version != known.node.version:
            known.stamp = ""
            self.mixed.add(known.inode)

    def forget(self, inode: InodeT, count: int) -> None:
        """Take back so many references; without any the number is free."""
        known = self._by_inode.get(inode)
        if known is None:
            return
        known.lookups = max(known.lookups - count, 1 if inode == ROOT else 0)
        if not known.lookups:
            del self._by_inode[inode], self._by_identity[known.identity]
            self.mixed.discard(inode)
