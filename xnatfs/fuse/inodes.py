"""Inode numbers and lookup counts. Nothing here awaits.

A number belongs to an identity: a path, or a version of a file. It stays for as long as the kernel remembers it, and
is the same again afterwards and in the next mount, because it is made of the identity; only two that want the same
number are told apart by order.
"""

from pyfuse3 import InodeT

from xnatfs.tree.node import Dir, Node

ROOT = InodeT(1)


class Inodes:
    """Nodes by inode number, for as long as the kernel may ask for them."""

    def __init__(self, root: Dir) -> None:
        self._nodes: dict[InodeT, Node] = {ROOT: root}
        self._identities: dict[InodeT, object] = {ROOT: root.identity}
        self._numbers: dict[object, InodeT] = {root.identity: ROOT}
        self._lookups: dict[InodeT, int] = {ROOT: 1}

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, inode: InodeT) -> Node:
        """The node of a number that the kernel was given. Raises KeyError."""
        return self._nodes[inode]

    def number(self, node: Node) -> InodeT:
        """The number this node has, or would get. Nothing is remembered."""
        known = self._numbers.get(node.identity)
        if known is not None:
            return known
        inode = InodeT(max(node.inode_hint(), ROOT + 1))
        while inode in self._nodes:
            inode = InodeT(inode + 1)
        return inode

    def look_up(self, node: Node) -> InodeT:
        """Count one more reference of the kernel to this node; the newest node of an identity serves it."""
        inode = self.number(node)
        self._nodes[inode] = node
        self._identities[inode] = node.identity
        self._numbers[node.identity] = inode
        self._lookups[inode] = self._lookups.get(inode, 0) + 1
        return inode

    def forget(self, inode: InodeT, count: int) -> None:
        """Take back so many references; without any the number is free."""
        left = self._lookups.get(inode, 0) - count
        if left > 0 or inode == ROOT:
            self._lookups[inode] = max(left, 1)
            return
        self._lookups.pop(inode, None)
        self._nodes.pop(inode, None)
        identity = self._identities.pop(inode, None)
        if self._numbers.get(identity) == inode:
            del self._numbers[identity]
