"""Cache directory listings as the kernel reads them: the nodes of a directory, and the replies made of them."""

from collections import OrderedDict
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import FileNameT, InodeT

from xnatfs.fuse.inodes import Known
from xnatfs.tree.node import Children, Node

# Entries of directories that are cached, at some 380 bytes each: 20 series of a thousand images.
MOST_ENTRIES = 20_000

# A name as the kernel wants it, its attributes, the inode that they are of, and the node of the listing.
EntryReply = tuple[FileNameT, pyfuse3.EntryAttributes, Known, Node]


class DirListing:
    """A directory as it was when it was opened, and the replies that were made of its entries."""

    def __init__(self, children: Children, keep: bool) -> None:
        self.keep = keep  # the replies; of a huge directory they would take more than all that it lists
        self.source = children.nodes
        self.expires = children.expires
        self.nodes = children.listed()
        self.replies: list[EntryReply | None] = [None] * len(self.nodes)
        self.dots: Sequence[pyfuse3.EntryAttributes] = ()  # of the entries "." and ".."


class DirCache:
    """The directories that were listed last, by inode number: the next listing is answered from memory."""

    def __init__(self, most: int = MOST_ENTRIES) -> None:
        self._kept: OrderedDict[InodeT, DirListing] = OrderedDict()
        self._most = most
        self._entries = 0

    def __len__(self) -> int:
        """Return the number of entries."""
        return self._entries

    def open(self, inode: InodeT, children: Children) -> DirListing:
        """Return the listing of a directory that holds these children now."""
        listing = self._kept.pop(inode, None)
        if listing is not None:
            self._entries -= len(listing.nodes)
        if listing is None or listing.source is not children.nodes or listing.expires != children.expires:
            listing = DirListing(children, len(children.nodes) <= self._most)
        if listing.keep:
            self._kept[inode] = listing
            self._entries += len(listing.nodes)
        while self._entries > self._most:
            _, oldest = self._kept.popitem(last=False)
            self._entries -= len(oldest.nodes)
        return listing

    def clear(self) -> None:
        self._kept.clear()
        self._entries = 0
