"""Answer the kernel's calls from nodes, and decide which version of a file an inode serves."""

import contextlib
import errno
import itertools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, InodeT, ReaddirToken, RequestContext

from xnatfs.common.clock import now
from xnatfs.common.errors import NotFound, ReadOnly, Stale, XnatError
from xnatfs.content import Blob
from xnatfs.fuse.attributes import Ownership, absent, dot, seconds_left
from xnatfs.fuse.control.error_log import ErrorLog
from xnatfs.fuse.dir_cache import DirCache, DirListing, EntryReply
from xnatfs.fuse.errnos import handler
from xnatfs.fuse.inodes import Inodes, Known, Pages
from xnatfs.listings.revocation import Permit
from xnatfs.tree.names import MAX_NAME_BYTES, decode, encode
from xnatfs.tree.node import Dir, File, Link, Node, measure

log = logging.getLogger(__name__)

# How many files of a listing are measured at once, where the server does not state sizes: four rounds of eight.
MEASURED_AT_ONCE = 32
# Replies that are made between two checkpoints: 2 ms. The kernel has room for some 700 at a time.
MADE_AT_ONCE = 150
# A directory lists itself first, then the one that it is in; programs drop the first two entries of a listing unseen.
DOTS = (FileNameT(b"."), FileNameT(b".."))
# Seconds between looking a name up and using its number: with a TTL of 0 it is out of date then.
LOOKED_UP_SECONDS = 1.0
# What one READ would fetch at the kernel's default read-ahead: given with the reply to OPEN it saves that READ.
GIVEN_BYTES = 128 * 1024

# Puts bytes into the kernel's pages of an inode, from an offset.
StorePages = Callable[[InodeT, int, bytes], None]
# Has the kernel drop the attributes of an inode and, unless the bool (pyfuse3's `attr_only`) is true, its pages.
DropCached = Callable[[InodeT, bool], None]


class OpenFile(NamedTuple):
    """A file handle."""

    blob: Blob
    permit: Permit
    known: Known
    pages: Pages


class Operations(pyfuse3.Operations):
    """The calls of the kernel."""

    # A number that the kernel has forgotten cannot be found again: an NFS handle of it fails with ESTALE. With support
    # announced, the kernel would look up "." to find it.
    supports_dot_lookup = False

    def __init__(
        self, root: Dir, ownership: Ownership, store: StorePages | None = None, invalidate: DropCached | None = None
    ) -> None:
        super().__init__()
        self.inodes = Inodes(root)
        self.dir_cache = DirCache()
        self._store = store
        self._invalidate = invalidate
        self._site = root.site
        self._attributes = ownership.attributes
        self._handles = itertools.count(1)
        self._directories: dict[FileHandleT, DirListing] = {}
        self._files: dict[FileHandleT, OpenFile] = {}
        self._forgetting: set[InodeT] = set()
        self.errors = ErrorLog()
        self.served_bytes = 0
        self._buffer = memoryview(b"")
        self.started = trio.Event()  # the kernel has sent its first request, INIT

    def init(self) -> None:
        """Note that the kernel has sent INIT. pyfuse3 calls this before it replies, without awaiting in between."""
        self.started.set()

    def counters(self) -> dict[str, int]:
        """Count what the kernel has open, and the nodes it remembers."""
        return {"files": len(self._files), "directories": len(self._directories), "inodes": len(self.inodes)}

    def record_error(self, name: str, arguments: Sequence[Any], number: int, error: BaseException) -> None:
        """Record the error of a call for the path that the call is about.

        Args:
            name: The name of the call, as `lookup`.
            arguments: Its arguments.
            number: The errno that the kernel gets.
            error: What was raised.
        """
        with contextlib.suppress(LookupError, XnatError):  # an unknown number has no path
            self.errors.record(self._path_of(name, *arguments), number, str(error) or type(error).__name__)

    def _path_of(self, name: str, first: Any, *rest: Any) -> tuple[str, ...]:
        """Return the path that a call is about. Raises LookupError."""
        if name == "readdir":
            return next((node.parent.path for node in self._directories[first].nodes if node.parent), ())
        path = self._files[first].known.node.path if name in ("read", "release") else self.inodes[first].node.path
        return (*path, decode(rest[0])) if name == "lookup" else path

    def open_files(self) -> list[tuple[tuple[str, ...], Blob]]:
        """Return path and blob of each open file, once for each handle."""
        return [(opened.known.node.path, opened.blob) for opened in self._files.values()]

    def known(self, inode: InodeT) -> Known:
        """Return what is known of a number. Raises Stale."""
        try:
            return self.inodes[inode]
        except KeyError:
            raise Stale(f"inode {inode} is no longer known") from None

    def _directory(self, inode: InodeT) -> Dir:
        node = self.known(inode).node
        if not isinstance(node, Dir):
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return node

    # -- names ---------------------------------------------------------------------------------------------------

    @handler
    async def lookup(self, parent: InodeT, name: FileNameT, ctx: RequestContext) -> pyfuse3.EntryAttributes:
        directory = self._directory(parent)
        if len(name) > MAX_NAME_BYTES:
            raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
        generation = self._site.metadata.generation
        try:
            node = await directory.child(decode(name))
            await measure([node])
        except NotFound:
            reply, expires = absent(0.0), directory.fresh_until()
        else:
            known = self.inodes.known(node)
            self.inodes.refer(known, node)
            reply, expires = self._attributes(known.node, known.inode, 0.0), node.shown_until()
        if generation == self._site.metadata.generation:  # else a refresh came in between: the kernel looks up again
            reply.entry_timeout = reply.attr_timeout = seconds_left(expires)
        return reply

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Drop references. The one call without a reply: pyfuse3 would let even a FUSEError of it end the mount."""
        for inode, count in inode_list:
            self.inodes.forget(inode, count)

    @handler
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> pyfuse3.EntryAttributes:
        known = self.known(inode)
        node = known.node
        expires = node.shown_until()
        if isinstance(node, File) and expires <= now():
            if _is_unnamed(known):
                node, expires = await self._look_up_again(known)
            else:  # for an open file, the kernel calls this before it serves cached pages
                expires = await self._permitted(node.permit(), inode)
        await measure([node])
        return self._attributes(node, inode, seconds_left(expires))

    async def _look_up_again(self, known: Known) -> tuple[Node, float]:
        """Look up the file that a number stands for; return its node now, and when that expires."""
        parent = known.node.parent
        assert parent is not None
        try:
            node = await parent.child(known.node.name)
        except NotFound as error:
            raise Stale(f"it no longer exists: {error}") from error
        await measure([node])
        if self.inodes.known(node) is known:
            known.serve(node)
        elif known.node.version != node.version:
            # It was opened meanwhile, or the number was that of a second version beside an open one.
            raise Stale(f"{'/'.join(node.path)} has another inode number")
        return known.node, known.node.shown_until()

    @handler
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        node = self.known(inode).node
        if not isinstance(node, Link):
            raise pyfuse3.FUSEError(errno.EINVAL)
        return FileNameT(encode(await node.follow()))

    # -- directories ---------------------------------------------------------------------------------------------

    @handler
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        node = self._directory(inode)
        listing = self.dir_cache.open(inode, await node.children())
        if not listing.dots:
            parent = node.parent or node  # the root is in itself
            listing.dots = (dot(inode), dot(self.inodes.known(parent).inode))
        handle = FileHandleT(next(self._handles))
        self._directories[handle] = listing
        return handle

    @handler
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """Reply with as many entries as the kernel has room for."""
        listing = self._directories[fh]
        timeout = seconds_left(listing.expires)
        for place in range(start_id, len(DOTS)):  # of these the kernel counts no reference
            if not pyfuse3.readdir_reply(token, DOTS[place], listing.dots[place], place + 1):
                return
        first, behind = max(start_id - len(DOTS), 0), len(DOTS) + 1
        inodes, replies = self.inodes, listing.replies
        for place in range(first, len(replies)):
            reply = replies[place]
            if reply is None or not inodes.is_current(reply[2], reply[3]):
                try:
                    reply = await self._reply(listing, place, listing.nodes[place])
                except Exception:
                    if place == first:
                        raise
                    return  # an error would take back what was answered; the next call, which begins here, meets it
            name, attributes, known, node = reply
            attributes.entry_timeout = attributes.attr_timeout = (
                timeout if not node.is_generated else seconds_left(node.shown_until())
            )
            if not pyfuse3.readdir_reply(token, name, attributes, place + behind):
                return
            inodes.refer(known, node)

    async def _reply(self, listing: DirListing, place: int, node: Node) -> EntryReply:
        """Make a reply. Nothing awaits between finding the number and the reply: another could get it meanwhile."""
        if place % MADE_AT_ONCE == MADE_AT_ONCE - 1:
            await trio.lowlevel.checkpoint()
        if isinstance(node, File) and not node.measured and not node.is_generated:
            following = listing.nodes[place : place + MEASURED_AT_ONCE]
            await measure(each for each in following if not each.is_generated)
        known = self.inodes.known(node)
        shown = node if node is known.node else known.newest(node)
        reply = (FileNameT(encode(node.name)), self._attributes(shown, known.inode, 0.0), known, node)
        if listing.keep and not node.is_generated:
            listing.replies[place] = reply
        return reply

    @handler
    async def releasedir(self, fh: FileHandleT) -> None:
        self._directories.pop(fh, None)

    # -- files ---------------------------------------------------------------------------------------------------

    @handler
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> pyfuse3.FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise ReadOnly("the mount takes no changes")
        known = self.known(inode)
        if _is_unnamed(known):
            await self._look_up_again(known)
        node = known.node
        if not isinstance(node, File):
            raise pyfuse3.FUSEError(errno.EISDIR)
        permit = node.permit()
        if permit.until <= now():  # by way of /proc/self/fd, which looks nothing up
            await self._permitted(permit, inode)
        blob = await node.open()
        try:
            check_version(known, node, blob)
        except Stale:
            blob.close()
            raise
        pages = known.pages
        is_first = not pages.handles
        keep = pages.open(blob)
        if pages.suspect:
            self._distrust_kernel_attributes(inode, blob.size if is_first else 0)
        elif keep and is_first:
            self._give(inode, blob)
        handle = FileHandleT(next(self._handles))
        self._files[handle] = OpenFile(blob, permit, known, pages)
        return pyfuse3.FileInfo(fh=handle, keep_cache=keep)

    def _distrust_kernel_attributes(self, inode: InodeT, size: int) -> None:
        """Have the kernel request attributes before it uses them: it may have received two versions out of order.

        sendfile(2) requests none, and would cut a file that has grown. So one byte is stored at the end, which makes
        the file as long; this open drops that page. That a file has shrunk, the kernel finds out by reading.
        """
        if self._invalidate is None:
            return
        with contextlib.suppress(OSError):
            if self._store is not None and size:
                self._store(inode, size - 1, b"\0")
            self._invalidate(inode, True)

    def _give(self, inode: InodeT, blob: Blob) -> None:
        """Put bytes that are in memory into the kernel's pages before it requests them.

        Only of a file that is not open: the kernel locks the pages of a READ until it is answered, and to store into
        one of these would wait for that answer, for ever.
        """
        if self._store is not None and blob.memory is not None and len(blob.memory) <= GIVEN_BYTES:
            with contextlib.suppress(OSError):  # forgotten meanwhile, or no such call: then it reads
                self._store(inode, 0, blob.memory)

    @handler
    async def read(self, fh: FileHandleT, off: int, size: int) -> memoryview:  # type: ignore[override]
        """Reply from one buffer for all reads: pyfuse3 passes it on to the kernel before another task can run."""
        blob, permit, known, pages = self._files[fh]
        pages.suspect = False
        if permit.until <= now():
            await self._permitted(permit, known.inode)
        try:
            if size > len(self._buffer):
                self._buffer = memoryview(bytearray(size))
            data = await blob.read_into(self._buffer[:size], off)
        except NotFound as error:  # read(2) of an open file has no such error
            raise Stale(f"it no longer exists: {error}") from error
        self.served_bytes += len(data)
        return data

    async def _permitted(self, permit: Permit, inode: InodeT) -> float:
        """Renew a permit, and return until when. Where it is refused, the kernel's pages of the file are dropped."""
        try:
            await permit.renew()
        except XnatError:
            if inode not in self._forgetting:
                self._forgetting.add(inode)
                self._site.access.begin(self._forget_pages, inode)
            raise
        return permit.until

    async def _forget_pages(self, inode: InodeT) -> None:
        """Drop them in a thread: the call waits for the reply to the refused read, which the event loop sends."""
        try:
            await trio.to_thread.run_sync(pyfuse3.invalidate_inode, inode, abandon_on_cancel=True)
        except OSError as error:
            log.debug("the kernel does not know inode %d: %s", inode, error)
        finally:
            self._forgetting.discard(inode)

    @handler
    async def release(self, fh: FileHandleT) -> None:
        opened = self._files.pop(fh, None)
        if opened is not None:
            if opened.blob.complete and self.errors.is_any:
                self.errors.forget(opened.known.node.path)
            opened.pages.release()
            opened.blob.close()

    @handler
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """Report no size, since the server states none: a size of 0 says so, and `df` leaves the mount out."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_namemax = MAX_NAME_BYTES
        return data


async def _read_only(self: Operations, *args: object) -> None:
    raise pyfuse3.FUSEError(errno.EROFS)


# The kernel refuses these itself, because the mount is read-only; a call past it gets the same errno.
for _name in ("create", "link", "mkdir", "mknod", "removexattr", "rename", "rmdir", "setattr", "setxattr", "symlink"):
    setattr(Operations, _name, _read_only)
for _name in ("unlink", "write"):
    setattr(Operations, _name, _read_only)


def _is_unnamed(known: Known) -> bool:
    """Return whether a file is used after its listing has expired: by a handle, as NFS servers do, and not by name."""
    node = known.node
    return isinstance(node, File) and not known.is_open and node.rank[0] + LOOKED_UP_SECONDS <= now()


def check_version(known: Known, node: File, blob: Blob) -> None:
    """Raise Stale unless the blob has the inode's version; the kernel then looks the name up again."""
    if known.node.version != node.version:
        raise Stale(f"{'/'.join(node.path)} was replaced while it was opened")
    if not blob.stamp:  # the listing has a digest
        return
    pages = known.pages
    if pages.stamp not in ("", blob.stamp):
        if pages.handles or node.is_another(pages.stamp, blob.stamp):
            node.replaced(pages.stamp, blob.stamp)
            raise Stale(f"{'/'.join(node.path)} was replaced by another of its length")
        pages.suspect = True  # nothing proves that it is the same, nor that it is not
    pages.stamp = blob.stamp
