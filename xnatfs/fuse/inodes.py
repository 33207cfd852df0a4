"""Inode numbers and lookup counts. Nothing here awaits.

A number belongs to an identity: a path, or a version of a file. It stays for as long as the kernel remembers it, and
is the same again afterwards and in the next mount, because it is made of the identity; only two that want the same
number are told apart by order.
"""

from pyfuse3 import InodeT

from xnatfs.tree.node import Dir, Node

ROOT = InodeT(1)


class Known:
    """A node under its number. One object for all that is known of it: there may be a million."""

    __slots__ = ("identity", "inode", "lookups", "node", "stamp")

    def __init__(self, inode: InodeT, node: Node, identity: object) -> None:
        self.inode = inode
        self.node = node
        self.identity = identity  # as it was when the number was given; a file's may change with its size
        self.lookups = 0  # references that the kernel has to it
        self.stamp = ""  # of the content that its pages are of, where that has one


class Inodes:
    """Nodes by inode number, for as long as the kernel may ask for them."""

    def __init__(self, root: Dir) -> None:
        known = Known(ROOT, root, root.identity)
        known.lookups = 1
        self._by_inode: dict[InodeT, Known] = {ROOT: known}
        self._by_identity: dict[object, Known] = {known.identity: known}

    def __len__(self) -> int:
        return len(self._by_inode)

    def __getitem__(self, inode: InodeT) -> Node:
        """The node of a number that the kernel was given. Raises KeyError."""
        return self._by_inode[inode].node

    def serves(self, inode: InodeT, stamp: str) -> bool:
        """Whether the pages that the kernel may have under this number are of that content; it is the first, or not."""
        known = self._by_inode.get(inode)
        if known is None or not stamp:
            return True
        known.stamp = known.stamp or stamp
        return known.stamp == stamp

    def serve(self, inode: InodeT, stamp: str) -> None:
        """From now on that number is for this content: nobody has another one open, and its pages go."""
        self._by_inode[inode].stamp = stamp

    def number(self, node: Node) -> InodeT:
        """The number this node has, or would get. Nothing is remembered."""
        return self.known(node).inode

    def known(self, node: Node) -> Known:
        """What is known of this node, or would be. Nothing is remembered."""
        identity = node.identity
        known = self._by_identity.get(identity)
        if known is not None:
            return known
        inode = InodeT(max(node.inode_hint(), ROOT + 1))
        while inode in self._by_inode:
            inode = InodeT(inode + 1)
        return Known(inode, node, identity)

    def holds(self, known: Known) -> bool:
        """Whether its number is still its own, or free for it again."""
        holder = self._by_inode.get(known.inode)
        return holder is known or (holder is None and known.identity not in self._by_identity)

    def look_up(self, node: Node) -> InodeT:
        """Count one more reference of the kernel to this node; the newest node of an identity serves it."""
        known = self.known(node)
        known.node = node
        self.refer(known)
        return known.inode

    def refer(self, known: Known) -> None:
        """Count one more reference of the kernel to what `holds` its number."""
        if not known.lookups:
            self._by_inode[known.inode] = self._by_identity[known.identity] = known
        known.lookups += 1

    def forget(self, inode: InodeT, count: int) -> None:
        """Take back so many references; without any the number is free."""
        known = self._by_inode.get(inode)
        if known is None:
            return
        known.lookups = max(known.lookups - count, 1 if inode == ROOT else 0)
        if not known.lookups:
            del self._by_inode[inode], self._by_identity[known.identity]
