"""pyfuse3's calls as node calls, exceptions as errnos. No meaning of its own.

The border to the kernel is total: pyfuse3 understands FUSEError only, and any other exception would end the mount.
"""

import contextlib
import errno
import functools
import logging
import math
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, InodeT, ReaddirToken, RequestContext

from xnatfs.common.clock import now
from xnatfs.common.errors import (
    BadReply,
    CacheError,
    CacheFull,
    ConfigError,
    Conflict,
    Denied,
    FuseMissing,
    LoginRequired,
    MountpointError,
    NoRoute,
    NotFound,
    ReadOnly,
    Stale,
    TimedOut,
    Unreachable,
    XnatError,
    first_error,
)
from xnatfs.content import Blob
from xnatfs.fuse.control.error_log import ErrorLog
from xnatfs.fuse.inodes import Inodes, Known
from xnatfs.listings.revocation import Permit
from xnatfs.tree.names import decode, encode
from xnatfs.tree.node import Children, Dir, File, Link, Node, measure

log = logging.getLogger(__name__)

# The most specific class decides. Every subclass of XnatError is here or below one that is (tested).
ERRNOS: dict[type[XnatError], int] = {
    NotFound: errno.ENOENT,
    LoginRequired: errno.EACCES,
    Denied: errno.EACCES,
    NoRoute: errno.EHOSTUNREACH,
    TimedOut: errno.ETIMEDOUT,
    Unreachable: errno.EIO,
    BadReply: errno.EIO,
    Stale: errno.ESTALE,
    ReadOnly: errno.EROFS,
    Conflict: errno.EIO,
    ConfigError: errno.EINVAL,
    MountpointError: errno.EIO,
    FuseMissing: errno.EIO,
    CacheFull: errno.ENOSPC,
    CacheError: errno.EIO,
    XnatError: errno.EIO,
}
# These are answers, not faults: nobody wants them in a log. A server that is away, or refuses the login, is logged
# once where it is found out, and not once for every read that it fails.
QUIET = (NotFound, Denied, Stale, ReadOnly, Unreachable, LoginRequired)

# What never expires, the kernel may keep for an hour; longer only delays its forgetting.
LONGEST_TIMEOUT = 3600.0
XATTR_PREFIX = b"user.xnat."
ERROR_XATTR = XATTR_PREFIX + b"error"
# Bytes in a name, as statfs(2) says it.
NAME_MAX = 255
# Bytes in a value that the kernel passes on: XATTR_SIZE_MAX. What is longer would be E2BIG.
LONGEST_XATTR = 65536
# Bytes of names and values that are listed of one entry: ext4 has a block of 4 KiB for all, each with 16 bytes more
# and rounded up, and `rsync -X` fails where one does not fit.
LISTED_XATTRS = 3072
# How many files of a listing are measured at once, where the server does not state sizes: four rounds of eight.
MEASURED_AT_ONCE = 32

# Answers that are made between two looks at who else waits: 2 ms. The kernel has room for some 700 at a time.
MADE_AT_ONCE = 150
# Entries of directories whose answers are kept, at 370 bytes each (measured): 20 series of a thousand images.
KEPT_ANSWERS = 20_000

# Permissions as other mounts show them, the read-only ones, too: a copy has these, and is written into and deleted; an
# overlay asks its owner for them before it takes a change to itself. A change here is EROFS, which the kernel says.
DIRECTORY_MODE, FILE_MODE = 0o755, 0o644
# A directory lists itself first, then the one that it is in; programs drop the first two entries of a listing unseen.
DOTS = (FileNameT(b"."), FileNameT(b".."))
# Between looking a name up and opening or asking for what it names, in seconds: with a TTL of 0 it is out of date then.
LOOKED_UP = 1.0

# What one READ would fetch at the kernel's default read-ahead: given with the answer to OPEN it saves that READ.
GIVEN = 128 * 1024

Handler = TypeVar("Handler", bound=Callable[..., Coroutine[Any, Any, Any]])
# Puts bytes into the kernel's pages of an inode, from an offset.
Store = Callable[[InodeT, int, bytes], None]
# Has the kernel let go of the attributes of an inode, and unless told "these alone" of its pages.
Invalidate = Callable[[InodeT, bool], None]


def errno_of(error: XnatError) -> int:
    return next(ERRNOS[kind] for kind in type(error).__mro__ if kind in ERRNOS)


def handler(method: Handler) -> Handler:
    """Let nothing out but FUSEError."""

    @functools.wraps(method)
    async def wrapped(self: "Operations", *args: Any, **kwargs: Any) -> Any:
        try:
            return await method(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            self.listings.clear()  # a file that is another than listed, or gone, has changed its directory
            number = _logged_errno(method.__name__, error)
            self.record_error(method.__name__, args, number, first_error(error))
            raise pyfuse3.FUSEError(number) from None

    return cast(Handler, wrapped)


def _logged_errno(name: str, error: Exception) -> int:
    cause = first_error(error)
    if isinstance(cause, XnatError):
        log.log(logging.DEBUG if isinstance(cause, QUIET) else logging.WARNING, "%s: %s", name, cause)
        return errno_of(cause)
    log.error("%s failed", name, exc_info=error)
    return errno.EIO


@dataclass(frozen=True, slots=True)
class Ownership:
    """As whom the files are shown."""

    uid: int
    gid: int
    umask: int = 0


# A name as the kernel wants it, stat(2), and whose they are.
Answer = tuple[FileNameT, pyfuse3.EntryAttributes, Known]


class Listed:
    """A directory as it is listed: what it held when it was opened, and the answers that were made of that."""

    def __init__(self, children: Children, keep: bool) -> None:
        self.keep = keep  # the answers; of a huge directory they would take more than all that it lists
        self.source: Mapping[str, Node] = children.nodes
        self.expires = children.expires
        self.nodes = children.listed()
        self.answers: list[Answer | None] = [None] * len(self.nodes)
        self.dots: tuple[pyfuse3.EntryAttributes, ...] = ()  # the answers for DOTS

    def is_of(self, children: Children) -> bool:
        return self.source is children.nodes and self.expires == children.expires


class Listings:
    """The directories that were listed last, by inode number: who lists them again is answered from memory."""

    def __init__(self, most: int = KEPT_ANSWERS) -> None:
        self._kept: OrderedDict[InodeT, Listed] = OrderedDict()
        self._most = most
        self._entries = 0

    def __len__(self) -> int:
        """Their entries."""
        return self._entries

    def of(self, inode: InodeT, children: Children) -> Listed:
        """Return what this directory holds now."""
        listed = self._kept.pop(inode, None)
        if listed is not None:
            self._entries -= len(listed.nodes)
        if listed is None or not listed.is_of(children):
            listed = Listed(children, len(children.nodes) <= self._most)
        if listed.keep:
            self._kept[inode] = listed
            self._entries += len(listed.nodes)
        while self._entries > self._most:
            _, oldest = self._kept.popitem(last=False)
            self._entries -= len(oldest.nodes)
        return listed

    def clear(self) -> None:
        self._kept.clear()
        self._entries = 0


class Operations(pyfuse3.Operations):
    """The calls of the kernel."""

    # A number that the kernel has forgotten is not found again: what a handle of NFS names is ESTALE then. Announced,
    # the kernel would ask for it by looking up ".".
    supports_dot_lookup = False

    def __init__(
        self, root: Dir, ownership: Ownership, store: Store | None = None, invalidate: Invalidate | None = None
    ) -> None:
        super().__init__()
        self.inodes = Inodes(root)
        self._store = store
        self._invalidate = invalidate
        self._site = root.site
        self._ownership = ownership
        self.listings = Listings()
        self._directories: dict[FileHandleT, Listed] = {}
        self._files: dict[FileHandleT, tuple[Blob, Permit, InodeT]] = {}
        self._unproven: dict[InodeT, Blob] = {}  # what was opened last before it was verified, of numbers that are open
        self._forgetting: set[InodeT] = set()
        self._next_handle = 1
        self.errors = ErrorLog()
        self.served = 0  # bytes

    def counters(self) -> dict[str, int]:
        """Count what the kernel has open, and the nodes it remembers."""
        return {"files": len(self._files), "directories": len(self._directories), "inodes": len(self.inodes)}

    def record_error(self, name: str, arguments: Sequence[Any], number: int, error: BaseException) -> None:
        """Record the error of a call for the path that the call is about."""
        with contextlib.suppress(LookupError, XnatError):  # a number that is not known any more has no path
            self.errors.record(self._path_of(name, *arguments), number, str(error) or type(error).__name__)

    def _path_of(self, name: str, first: Any, *rest: Any) -> tuple[str, ...]:
        """Return the path that a call is about. Raises LookupError."""
        if name == "readdir":
            return next((node.parent.path for node in self._directories[first].nodes if node.parent), ())
        inode = self._files[first][2] if name in ("read", "release") else first
        path = self.inodes[inode].path
        return (*path, decode(rest[0])) if name == "lookup" else path

    def open_files(self) -> list[tuple[tuple[str, ...], Blob]]:
        """Return path and blob of each open file, once for each handle."""
        return [(self.inodes[inode].path, blob) for blob, _, inode in self._files.values()]

    # -- names ---------------------------------------------------------------------------------------------------

    @handler
    async def lookup(self, parent: InodeT, name: FileNameT, ctx: RequestContext) -> pyfuse3.EntryAttributes:
        directory = self._directory(parent)
        if len(name) > NAME_MAX:
            raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
        try:
            node = await directory.child(decode(name))
            await _learn_size([node])
        except NotFound:
            return _absent(directory.fresh_until())
        known, attributes = self._entry(node, directory.fresh_until())
        self.inodes.serve(known, node)
        self.inodes.refer(known)
        return attributes

    def _entry(self, node: Node, expires: float) -> tuple[Known, pyfuse3.EntryAttributes]:
        """Return what the kernel is to be told of a node whose size is known, and under which number."""
        known = self.inodes.known(node)
        attributes = self._attributes(known.newest(node), expires)
        attributes.st_ino = known.inode
        return known, attributes

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Drop references. The one call without a reply: pyfuse3 would let even a FUSEError of it end the mount."""
        for inode, count in inode_list:
            self.inodes.forget(inode, count)

    @handler
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> pyfuse3.EntryAttributes:
        known = self._known(inode)
        node = known.node
        expires = node.parent.fresh_until() if node.parent else math.inf
        if isinstance(node, File) and expires <= now():
            if self._is_unnamed(known):
                node, expires = await self._anew(known)
            else:  # of a file that is open the kernel asks this before it hands out pages that it has
                expires = await self._permitted(node.permit(), inode)
        await _learn_size([node])
        attributes = self._attributes(node, expires)
        attributes.st_ino = inode
        return attributes

    def _is_unnamed(self, known: Known) -> bool:
        """Return whether a number is used after its listing: by a handle, as NFS servers do, and not by name."""
        node = known.node
        if not isinstance(node, File) or self.inodes.handles[known.inode]:
            return False
        return node.rank[0] + LOOKED_UP <= now()

    async def _anew(self, known: Known) -> tuple[Node, float]:
        """Look the file up again that a number stands for; the node that it stands for then, and until when."""
        parent = known.node.parent
        assert parent is not None
        try:
            node = await parent.child(known.node.name)
        except NotFound as error:
            raise Stale(f"it is not there any more: {error}") from error
        await _learn_size([node])
        if self.inodes.known(node) is known:
            self.inodes.serve(known, node)
        elif known.node.version != node.version:
            # It was opened meanwhile, or the number was that of a second version beside an open one.
            raise Stale(f"{'/'.join(node.path)} has another inode number")
        return known.node, parent.fresh_until()

    @handler
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        node = self._node(inode)
        if not isinstance(node, Link):
            raise pyfuse3.FUSEError(errno.EINVAL)
        return FileNameT(encode(await node.follow()))

    # -- directories ---------------------------------------------------------------------------------------------

    @handler
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        children = await self._directory(inode).children()
        handle = self._handle()
        listed = self._directories[handle] = self.listings.of(inode, children)
        listed.dots = listed.dots or self._dots(inode)
        return handle

    @handler
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """As many entries as the kernel has room for, of however many there are."""
        listed = self._directories[fh]
        left = _left(listed.expires)
        for place in range(start_id, len(DOTS)):  # of these the kernel counts no reference
            if not pyfuse3.readdir_reply(token, DOTS[place], listed.dots[place], place + 1):
                return
        first, behind = max(start_id - len(DOTS), 0), len(DOTS) + 1
        for place in range(first, len(listed.nodes)):
            try:
                name, attributes, known = listed.answers[place] or await self._answer(listed, place)
                if not self.inodes.is_current(known, listed.nodes[place]):
                    name, attributes, known = await self._answer(listed, place)
            except Exception:
                if place == first:
                    raise
                return  # an error would take back what was answered; the next call, which begins here, meets it
            attributes.entry_timeout = attributes.attr_timeout = left
            if not pyfuse3.readdir_reply(token, name, attributes, place + behind):
                return
            self.inodes.serve(known, listed.nodes[place])
            self.inodes.refer(known)

    def _dots(self, inode: InodeT) -> tuple[pyfuse3.EntryAttributes, ...]:
        """Make the answers for a directory and the one that it is in, which is itself for the root."""
        node = self._directory(inode)
        parent = node.parent or node
        made = []
        for directory, number in ((node, inode), (parent, self.inodes.number(parent))):
            attributes = self._attributes(directory, 0.0)
            attributes.st_ino = number
            made.append(attributes)
        return tuple(made)

    async def _answer(self, listed: Listed, place: int) -> Answer:
        """Made anew. Nothing awaits between finding the number and the reply: another could be given it meanwhile."""
        if place % MADE_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
        node = listed.nodes[place]
        if isinstance(node, File) and not node.measured:
            await _learn_size(listed.nodes[place : place + MEASURED_AT_ONCE])
        known, attributes = self._entry(node, listed.expires)
        answer = (FileNameT(encode(node.name)), attributes, known)
        if listed.keep:
            listed.answers[place] = answer
        return answer

    @handler
    async def releasedir(self, fh: FileHandleT) -> None:
        self._directories.pop(fh, None)

    # -- files ---------------------------------------------------------------------------------------------------

    @handler
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> pyfuse3.FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise ReadOnly("the mount takes no changes")
        known = self._known(inode)
        if self._is_unnamed(known):
            await self._anew(known)
        node = known.node
        if not isinstance(node, File):
            raise pyfuse3.FUSEError(errno.EISDIR)
        permit = node.permit()
        if permit.until <= now():  # by way of /proc/self/fd, which looks nothing up
            await self._permitted(permit, inode)
        blob = await node.open()
        try:
            self._check_version(known, node, blob)
        except Stale:
            blob.close()
            raise
        # Pages of a file that is not whole yet must not outlive a failure: they are kept only of a verified one.
        self._doubt_pages(inode, blob)
        keep = blob.complete and inode not in self.inodes.mixed
        if not blob.complete:
            self._unproven[inode] = blob
        if keep:
            self._give(inode, blob)
        elif inode in self.inodes.mixed:
            self._look_again(inode, blob.size)
        handle = self._handle()
        self._files[handle] = blob, permit, inode
        self.inodes.handles[inode] += 1
        return pyfuse3.FileInfo(fh=handle, keep_cache=keep)

    def _check_version(self, known: Known, node: File, blob: Blob) -> None:
        """Raise Stale unless a blob is what the number stands for: the kernel looks the name up again, and hears."""
        if known.node.version != node.version:
            raise Stale(f"{'/'.join(node.path)} was replaced while it was opened")
        if blob.stamp and known.stamp not in ("", blob.stamp):
            if self.inodes.handles[known.inode] or node.is_another(known.stamp, blob.stamp):
                node.replaced(known.stamp, blob.stamp)
                raise Stale(f"{'/'.join(node.path)} was replaced by another of its length")
            self.inodes.mixed.add(known.inode)  # nothing tells that it is the same, nor that it is not
        known.stamp = blob.stamp or known.stamp

    def _doubt_pages(self, inode: InodeT, blob: Blob | None = None) -> None:
        """Have the kernel drop its pages with the next open if they came of another blob, which is not verified.

        The file may be whole all the same by then: another process has put it into the cache.
        """
        unproven = self._unproven.get(inode, blob)
        if unproven is not blob and unproven is not None and not unproven.complete:
            self.inodes.mixed.add(inode)

    def _look_again(self, inode: InodeT, size: int) -> None:
        """Have the kernel ask for attributes before it uses them: it may have heard of two versions out of order.

        sendfile(2) asks for none, and would cut what has become longer. So the kernel is given a byte at the end, which
        makes the file as long; it lets go of that page with this open. What has become shorter it finds out by reading.
        """
        if self._invalidate is None:
            return
        with contextlib.suppress(OSError):
            if self._store is not None and size and not self.inodes.handles[inode]:
                self._store(inode, size - 1, b"\0")
            self._invalidate(inode, True)

    @handler
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        blob, permit, inode = self._files[fh]
        self.inodes.mixed.discard(inode)
        if permit.until <= now():
            await self._permitted(permit, inode)
        try:
            data = await blob.read(off, size)
        except NotFound as error:  # read(2) knows no such answer of what is open
            raise Stale(f"it is not there any more: {error}") from error
        self.served += len(data)
        return data

    async def _permitted(self, permit: Permit, inode: InodeT) -> float:
        """See to it that this may be read on; until when. Where it may not, the kernel's pages of it go, too."""
        try:
            await permit.renew()
        except XnatError:
            if inode not in self._forgetting:
                self._forgetting.add(inode)
                self._site.access.begin(self._forget_pages, inode)
            raise
        return permit.until

    async def _forget_pages(self, inode: InodeT) -> None:
        """In a thread, which waits until the read that found it out is answered: on the loop it would wait for ever."""
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
            blob, _, inode = opened
            if blob.complete and self.errors.is_any:
                self.errors.forget(self.inodes[inode].path)
            self.inodes.mixed.discard(inode)
            self.inodes.handles[inode] -= 1
            if not self.inodes.handles[inode]:
                del self.inodes.handles[inode]
                self._doubt_pages(inode)
                self._unproven.pop(inode, None)
            blob.close()

    def _give(self, inode: InodeT, blob: Blob) -> None:
        """Bytes that are in memory become the kernel's before it asks for them.

        Only where nobody has the file open: the kernel locks the pages of a READ until that is answered, which is for
        us to do, and to store into one of these would wait for it, for ever.
        """
        if self._store is None or blob.memory is None or len(blob.memory) > GIVEN or self.inodes.handles[inode]:
            return
        with contextlib.suppress(OSError):  # forgotten meanwhile, or no such call: then it reads
            self._store(inode, 0, blob.memory)

    # -- the file system -----------------------------------------------------------------------------------------

    @handler
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """Report no size, since the server states none: a size of 0 says so, and `df` leaves the mount out."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_namemax = NAME_MAX
        return data

    def _known(self, inode: InodeT) -> Known:
        try:
            return self.inodes.entry(inode)
        except KeyError:
            raise Stale(f"inode {inode} is not known any more") from None

    def _node(self, inode: InodeT) -> Node:
        return self._known(inode).node

    def _directory(self, inode: InodeT) -> Dir:
        node = self._node(inode)
        if not isinstance(node, Dir):
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return node

    def _handle(self) -> FileHandleT:
        self._next_handle += 1
        return FileHandleT(self._next_handle)

    def _attributes(self, node: Node, expires: float) -> pyfuse3.EntryAttributes:
        """stat(2) of a node whose size is known; its inode number is left to the caller."""
        owner = self._ownership
        attributes = pyfuse3.EntryAttributes()
        attributes.st_uid, attributes.st_gid = owner.uid, owner.gid
        attributes.st_nlink = 1  # of a directory: not counted, as find(1) understands it
        if isinstance(node, Dir):
            attributes.st_mode = stat.S_IFDIR | DIRECTORY_MODE & ~owner.umask
        elif isinstance(node, Link):
            attributes.st_mode = stat.S_IFLNK | 0o777
            attributes.st_size = len(encode(node.target))
        elif isinstance(node, File):
            attributes.st_mode = stat.S_IFREG | FILE_MODE & ~owner.umask
            attributes.st_size = node.measured_size
        attributes.st_blksize = 128 * 1024  # what the kernel asks for at a time
        attributes.st_blocks = (attributes.st_size + 511) // 512
        modified = node.modified_ns()
        attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = modified
        attributes.entry_timeout = attributes.attr_timeout = _left(expires)
        return attributes


class OperationsWithXattrs(Operations):
    """The calls of the kernel, with the server's facts as extended attributes, `user.xnat.*`."""

    @handler
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[FileNameT]:
        """Return the names of those that have a value, and that a copy can keep; the longest values give way."""
        found = await self._xattrs(self._node(inode))
        room, names = LISTED_XATTRS, []
        for name in sorted(found, key=lambda name: len(found[name])):
            room -= len(name) + len(found[name])
            if found[name] and room >= 0:
                names.append(name)
        return sorted(names)

    @handler
    async def getxattr(self, inode: InodeT, name: FileNameT, ctx: RequestContext) -> bytes:
        # `ls -l` asks every entry for security labels and ACLs, unless it hears that there are none in all the mount,
        # as of any file system without these: 120 us an entry saved. (ENOSYS would make the kernel ask for nothing.)
        if not name.startswith(b"user."):
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        if name == ERROR_XATTR:  # no request is sent for it, since it may be a request that has failed
            value = encode(self.errors.reason(self._node(inode).path)) or None
        else:
            value = (await self._xattrs(self._node(inode))).get(name) if name.startswith(XATTR_PREFIX) else None
        if value is None or len(value) > LONGEST_XATTR:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return value

    async def _xattrs(self, node: Node) -> dict[FileNameT, bytes]:
        """Return all that a node can have. A value that has gone since its name was listed is empty, not an error."""
        facts = await node.all_xattrs()
        since = node.stale()
        facts["stale"] = datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds") if since else ""
        facts["error"] = self.errors.reason(node.path)
        return {FileNameT(XATTR_PREFIX + key.encode()): encode(value) for key, value in facts.items()}


async def _read_only(self: Operations, *args: object, **kwargs: object) -> None:
    raise pyfuse3.FUSEError(errno.EROFS)


# The kernel refuses these itself, because the mount is read-only; whoever calls past it hears the same.
for _name in ("create", "link", "mkdir", "mknod", "removexattr", "rename", "rmdir", "setattr", "setxattr", "symlink"):
    setattr(Operations, _name, _read_only)
for _name in ("unlink", "write"):
    setattr(Operations, _name, _read_only)


async def _learn_size(nodes: Sequence[Node]) -> None:
    await measure(node for node in nodes if isinstance(node, File) and not node.measured)


def _left(expires: float) -> float:
    return min(max(expires - now(), 0.0), LONGEST_TIMEOUT)


def _absent(expires: float) -> pyfuse3.EntryAttributes:
    """Answer a name that is not there, for the kernel to remember as long as the listing is fresh."""
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = 0
    attributes.entry_timeout = _left(expires)
    return attributes
