"""Simulate a mount of a changing server, and check its promises: the stories of `test_promises.py` run in here.

Everything is in virtual time and in one thread, so that a story goes the same way each time. Files have a few pages
instead of a gigabyte: the same rules at a thousandth of the size.
"""

import errno
import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path as Directory
from typing import Any

import pytest
import trio
import trio.testing

from tests.support.handed import Handed
from tests.support.kernel import PAGE, Kernel, Opened, answered
from tests.support.model import EPOCH, PASSWORD, USER, Model, Network, Path, now, split
from tests.support.walk import MADE
from xnatfs.content import Version, blob, planner, writer
from xnatfs.content.source import identity
from xnatfs.demo.archive.model import Archive
from xnatfs.fuse.attributes import Ownership
from xnatfs.fuse.operations import Operations
from xnatfs.listings.server_listings import REVALIDATE_SECONDS
from xnatfs.settings.config import Config, server_directory
from xnatfs.settings.credentials import Credentials
from xnatfs.site import Site, open_site
from xnatfs.tree import Root

URL = "http://xnat.example.org"
TTL, TIMEOUT, REVALIDATE = 60.0, 5.0, 200.0
ROOM = 200_000  # bytes of a cache that does not hold all there is
# What an operation may take beside: a few requests that each end with the timeout.
SLACK = 6 * TIMEOUT
# Nothing has changed and nothing was faulty for so long: now every promise counts. A fault may be remembered for as
# long as a listing is good: of a catalogue that could not be read.
CALM = TTL + SLACK
ERRNOS = frozenset({errno.ENOENT, errno.EACCES, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTUNREACH})

ODD_IN_URLS = frozenset("%;\\")  # refused by an XNAT's firewall
THREAD = 0.01  # seconds that work in a thread takes
# What may happen to a file, or to what it is in.
# fmt: off
CHANGES = (
    "replaced", "longer", "shorter", "older", "again", "deleted", "renamed", "session deleted", "moved", "revoked",
    "protected",
)
# fmt: on
# How programs read: two are one from the front and one from the back, at once.
ORDERS = ("forward", "backward", "tail first", "random", "two")

SCALED = {
    (blob, "SMALL_FILE_BYTES"): 2 * PAGE,
    (writer, "HASH_PIECE_BYTES"): PAGE,
    (writer, "HASH_LAG_BYTES"): 4 * PAGE,
    (planner, "NEAR_BYTES"): PAGE,
    (planner, "WINDOW_BYTES"): PAGE,  # one that is longer than NEAR is asked for again and again
    (planner, "MAX_WINDOW_BYTES"): 16 * PAGE,
    (planner, "READ_AHEAD_BYTES"): 4 * PAGE,
    (blob, "HOLD_BACK_BYTES"): 512,
}


@dataclass
class Handle:
    """An open file, and what determines the versions that its reads may return."""

    path: Path
    kernel: Kernel
    opened: Opened
    since: float  # a version that was gone by then is none of it
    resources: set[str]
    size: int
    content: bytes | None  # what the server had when it was opened
    failed: bool = False  # and so it stays
    read: list[tuple[int, bytes]] = field(default_factory=list)

    def is_whole(self) -> bool:
        """Return whether all bytes of the file were read."""
        end = 0
        for offset, data in sorted(self.read, key=lambda each: each[0]):
            if offset <= end:
                end = max(end, offset + len(data))
        return end >= self.size

    def reached_end(self) -> bool:
        return any(offset + len(data) >= self.size for offset, data in self.read)


class World:
    """One server and one cache directory, with one mount after the other."""

    def __init__(self, directory: Directory, cache_size: int, digests: bool, odd: bool) -> None:
        self.model = Model(odd=odd)
        self.model.demo.site.digests = digests
        self.network = Network(self.model.demo, TIMEOUT)
        self.handles: list[Handle] = []
        self._directory = directory
        self._config = Config(
            URL, cache_dir=directory, timeout=TIMEOUT, ttl=TTL, revalidate=REVALIDATE, cache_size=cache_size
        )
        self.network.honest_digests = digests
        self._digestless = (
            -float("inf") if digests else float("inf")
        )  # when a listing without digests was last to be had
        self._mount: AsyncExitStack
        self._readers: trio.Nursery
        self._idle = 0  # tasks of a mount in which nothing goes on
        self._known: dict[str, set[bytes]] = {}  # what may be kept, by the name it is kept under
        self._counted = 0  # moments that are in there
        self._names: dict[str, str] = {}  # the resource of a blob, by its name
        self._gone: set[str] = set()  # resources that were taken away, as the mount must know by now
        self._sound: set[tuple[str, int]] = set()  # blobs that were looked at, by name and inode
        self._silent: set[Path] = set()  # files that were replaced so that neither size nor date tells
        self._contents: dict[str, set[bytes]] = {}  # all that a file ever held, by its key in the cache
        self.handed = Handed(
            self._contents_of,
            lambda since: self.network.harmed_at > since,
            trio.current_time,
        )

    async def play(self, steps: list[tuple[str, dict[str, Any]]]) -> None:
        """Run the steps of a story; check after each what always holds, and finally what holds once all is closed."""
        await self._begin()
        try:
            for name, arguments in steps:
                await getattr(self, name)(**arguments)
                await self._check()
            await self._end_quietly()
        except BaseException as error:
            # The nursery of the readers is to hear of it, as if it had been written around all this.
            if not await self._mount.__aexit__(type(error), error, error.__traceback__):
                raise
        else:
            await self._mount.aclose()
        assert os.listdir(self._cache / "partial") == []
        self.handed.check()
        self._check_blobs()

    @property
    def _cache(self) -> Directory:
        return self._directory / server_directory(URL)

    # -- a mount -------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        self._mount = AsyncExitStack()
        self.site: Site = await self._mount.enter_async_context(
            open_site(self._config, Credentials(USER, PASSWORD), self.network)
        )
        self.site.content.clock = lambda: EPOCH + trio.current_time()
        self._readers = await self._mount.enter_async_context(trio.open_nursery())
        self.site.start_background_tasks()
        self.kernel = Kernel(Operations(Root(self.site), Ownership(0, 0)))
        self._mounted_at = trio.current_time()
        await trio.sleep(1)
        self._idle = self._tasks()

    def _tasks(self) -> int:
        """Count the tasks of the site; those of the disk cache are left out, since they come and go with the minute."""
        series, site = self.site.series_prefetch._nursery, self.site._nursery
        return len(series.child_tasks) + len(site.child_tasks)

    async def _close_all(self) -> None:
        self._readers.cancel_scope.cancel()
        await trio.lowlevel.checkpoint()
        for handle in self.handles:
            await handle.kernel.close(handle.opened)
        self.handles.clear()

    async def _end_quietly(self) -> None:
        """Close everything, and check that nothing is left."""
        self.network.mend()
        await self._close_all()
        await trio.sleep(1000)
        await self.kernel.forget()
        operations = self.kernel.operations
        assert (len(operations.inodes), operations._files, operations._directories) == (1, {}, {})
        assert self.kernel.opened == []
        assert self.site.content._files.entries == {}
        assert os.listdir(self._cache / "partial") == []
        assert self._tasks() == self._idle
        self._check_blobs()

    async def remount(self) -> None:
        """Unmount, and mount again with the same cache directory."""
        await self._close_all()
        await self._mount.aclose()
        self._check_blobs()
        await self._begin()

    # -- what holds at any time ----------------------------------------------------------------------------------

    async def _check(self) -> None:
        self.handed.check()
        await self._check_stat()
        self._check_blobs()

    async def _check_stat(self) -> None:
        """Check that known attributes are served without a request and without delay, whatever the server is doing."""
        asked, at = len(self.model.demo.requests), trio.current_time()
        for inode in self.kernel.fresh():
            await self.kernel.operations.getattr(inode, None)  # type: ignore[arg-type]  # nobody looks at it
        # Other tasks may have asked meanwhile, but no time has gone by in which they could have been waited for.
        assert trio.current_time() == at
        assert len(self.model.demo.requests) == asked

    def _check_blobs(self) -> None:
        """Check that each cached file is one that the server had under that name and digest."""
        right = self._versions()
        kept = self._kept()
        self._gone -= self.model.present.resources
        assert not self._gone & {self._names[name] for name, _ in kept}, "what was taken away is kept"
        for name, _ in kept - self._sound:
            data = (self._cache / "blobs" / name[:2] / name).read_bytes()
            assert data in right.get(name, ()), "what is kept is no version of any file"
        self._sound = kept  # a blob is never written again
        known = {content for contents in self._contents.values() for content in contents}
        assert all(content in known for content in self.kernel.whole()), "the kernel's pages are of no file"

    def _kept(self) -> set[tuple[str, int]]:
        return {
            (entry.name, entry.inode())
            for folder in os.scandir(self._cache / "blobs")
            for entry in os.scandir(folder.path)
        }

    def _versions(self) -> dict[str, set[bytes]]:
        for moment in self.model.moments[self._counted :]:
            for file in moment.files.values():
                self._contents.setdefault(f"{file.resource}/{file.inner}", set()).add(file.content)
                for digest in (hashlib.md5(file.content).hexdigest(), ""):
                    name = identity(Version(f"{file.resource}/{file.inner}", None, digest)).hex()
                    self._known.setdefault(name, set()).add(file.content)
                    self._names[name] = file.resource
        self._counted = len(self.model.moments)
        return self._known

    def _contents_of(self, key: str) -> set[bytes]:
        self._versions()
        return self._contents.get(key, set())

    # -- what an operation may do --------------------------------------------------------------------------------

    def _calm(self, path: Path) -> bool:
        """Return whether nothing has happened lately that could explain an error."""
        short = {split(p)[0] for p, file in self.model.present.files.items() if file.resource in self.network.short}
        return self._quiet(path) and not any(path[: len(home)] == home for home in short)

    def _quiet(self, path: Path) -> bool:
        """Return whether the path is calm, short lists aside: these may cause an error, but no missing names."""
        changed = max(self.model.changed.get(name, -CALM) for name in (*path[1:2], ""))
        quiet = trio.current_time() - CALM
        if not (self.network.dates or self.network.honest_digests):
            return False  # nothing tells whether what comes later is of the same file
        return not self.network.faults and self.network.met_at < quiet and changed < quiet

    @contextmanager
    def _trying(self, path: Path, *, there: bool) -> Iterator[None]:
        """Allow an operation to fail with an errno, unless the path exists and all is calm."""
        calm = self._calm(path)
        try:
            yield
        except OSError as error:
            if error.errno not in ERRNOS:
                raise AssertionError(f"{error} of {path}") from error
            if calm and there and self._calm(path) and self._certain(path):
                raise AssertionError(f"{error} for no reason, of {path}") from error

    def _certain(self, path: Path) -> bool:
        """Return whether some route identifies a file; without digests, none may for a name that no URL can carry."""
        return self.network.honest_digests or not ODD_IN_URLS.intersection(path[-1])

    def _since(self, path: Path) -> float:
        """Return a time in the past: what was gone by then is neither listed nor returned by a new open."""
        now = trio.current_time()
        if path in self._silent and not self.network.honest_digests:
            return -float("inf")
        return now - TTL - SLACK - (REVALIDATE if now - self._digestless < 2 * TTL + REVALIDATE + SLACK else 0)

    # -- looking -------------------------------------------------------------------------------------------------

    async def names(self, place: int) -> None:
        directories = self.model.directories()
        path = directories[place % len(directories)]
        begun = trio.current_time()
        with self._trying(path, there=path in self.model.present.names):
            shown = set(await self.kernel.names(path)) - {"resources", "scans", "assessors", "reconstructions", *MADE}
            since = begun - TTL - SLACK
            if begun - self._mounted_at <= REVALIDATE_SECONDS + SLACK:
                since = -float("inf")  # those of the last mount are shown until the server has answered
            may, must = self.model.listed(path, since, trio.current_time())
            assert shown <= may, f"{path} shows {shown - may}"
            if self._quiet(path):
                must -= {"resources", "scans"}
                assert must <= shown, f"{path} does not show {must - shown}"
        if self._calm(path):
            await self._lose(path)

    async def _lose(self, path: Path) -> None:
        """Record the resources that the mount must drop once it has listed this directory of the present server."""
        if len(path) > 2:
            return
        await trio.sleep(1)
        listed = self.model.present.names["projects",]
        gone = {p[:2] for m in self.model.moments for p in m.files if p[1] not in listed}
        homes = [home for home in gone if self._calm(home)] if len(path) == 1 else [path]
        files = {(p[:2], f.resource) for m in self.model.moments for p, f in m.files.items()}
        below = {resource for home, resource in files if home in homes}
        self._gone |= below - self.model.present.resources - self._single()

    def _single(self) -> set[str]:
        """Return the resources that are gone from items that still exist."""
        there = {p[:4] for p in self.model.present.names}
        return {f.resource for m in self.model.moments for p, f in m.files.items() if p[:4] in there}

    async def stat(self, file: int) -> None:
        path = self._path(file)
        with self._trying(path, there=path in self.model.present.files):
            size = await self.kernel.size(path)
            sizes = {len(each) for each in self.model.contents(path, self._since(path), trio.current_time())}
            assert size in sizes, f"{path} shows {size} bytes"

    def _path(self, file: int) -> Path:
        paths = self.model.paths()
        return paths[file % len(paths)]

    # -- reading -------------------------------------------------------------------------------------------------

    async def _open(self, path: Path, kernel: Kernel | None = None) -> Handle | None:
        since, kernel = self._since(path), kernel or self.kernel
        there = path in self.model.present.files
        with self._trying(path, there=there):
            opened = await kernel.open(path)
            moments = self.model.between(since, trio.current_time())
            found = {moment.files[path].resource for moment in moments if path in moment.files}
            content = self._content(path) if there and self._calm(path) else None
            handle = Handle(path, kernel, opened, since, found, kernel.seen[opened.inode].size, content)
            self._check_read(handle)
            return handle
        return None

    def _content(self, path: Path) -> bytes | None:
        there = self.model.present.files.get(path)
        return there.content if there else None

    def _check_read(self, handle: Handle) -> None:
        """Check that all that was read of a file is of one version that the server had."""
        if not handle.read:
            return  # of a big file nobody knows before it has come whole that its length is wrong
        digests = self.network.honest_digests
        if digests and handle.size > 2 * PAGE and self.network.harmed_at > handle.since and not handle.is_whole():
            return  # nor that its bytes are; who reads all of it hears of that before the end
        versions = self.model.contents(handle.path, handle.since, trio.current_time())
        # Of a big file that came with a wrong length a part may be read, but not to its end.
        sized = [each for each in versions if len(each) == handle.size or not handle.reached_end()]
        assert sized, f"{handle.path} was not there of {handle.size} bytes"
        assert any(all(each[offset : offset + len(data)] == data for offset, data in handle.read) for each in sized), (
            f"what was read of {handle.path} is of no version"
        )

    async def _read(self, handle: Handle, offset: int, length: int) -> bool:
        """Read a range, check the result, and return whether the read succeeded."""
        gone = self._is_gone(handle)
        there = handle.content is not None and handle.content == self._content(handle.path) and not handle.failed
        handle.failed = True  # unless it ends well
        with self._trying(handle.path, there=there):
            data = await handle.kernel.read(handle.opened, offset, length)
            assert not gone, f"{handle.path} was read though it was taken away"
            assert len(data) == max(0, min(offset + length, handle.size) - offset)
            handle.read.append((offset, data))
            self._check_read(handle)
            handle.failed = False
            return True
        return False

    def _is_gone(self, handle: Handle) -> bool:
        """Return whether a file was removed so long ago that the mount must know, while the server was reachable."""
        now = trio.current_time()
        resources = {each for moment in self.model.between(now - TTL - 1, now) for each in moment.resources}
        return not (handle.resources & resources) and self._calm(handle.path)

    async def open(self, file: int) -> None:
        if (handle := await self._open(self._path(file))) is not None:
            self.handles.append(handle)

    async def reopen(self, handle: int) -> None:
        """Open an open file again, as by way of /proc/self/fd."""
        if self.handles:
            chosen = self.handles[handle % len(self.handles)]
            gone = self._is_gone(chosen)
            with self._trying(chosen.path, there=False):
                opened = await self.kernel.open_inode(chosen.opened.inode)
                assert not gone, f"{chosen.path} was opened though it was taken away"
                self.handles.append(replace(chosen, opened=opened, content=None, failed=False, read=[]))

    async def read(self, handle: int, place: int, length: int) -> None:
        if self.handles:
            chosen = self.handles[handle % len(self.handles)]
            await self._read(chosen, chosen.size * place // 100, length)

    async def read_whole(self, handle: int) -> None:
        if self.handles:
            await self._whole(self.handles[handle % len(self.handles)])

    async def _whole(self, handle: Handle, pause: float = 0) -> None:
        for offset in range(0, handle.size + 1, 4 * PAGE):
            if not await self._read(handle, offset, 4 * PAGE):
                return
            await trio.sleep(pause)

    async def tail_first(self, handle: int) -> None:
        if self.handles:
            chosen = self.handles[handle % len(self.handles)]
            if await self._read(chosen, max(0, chosen.size - 100), 100):
                await self._read(chosen, 0, 2 * PAGE)

    async def ordered(self, file: int, order: str, seed: int) -> None:
        """Read a file in the given order with one program, or in two orders with two; failed reads do not stop them."""
        path = self._path(file)
        async with trio.open_nursery() as nursery:
            for each in ("forward", "backward") if order == "two" else (order,):
                nursery.start_soon(self._in_order, path, each, seed)

    async def _in_order(self, path: Path, order: str, seed: int) -> None:
        if (handle := await self._open(path)) is None:
            return
        places = list(range(0, handle.size, PAGE))
        if order == "backward":
            places.reverse()
        elif order == "tail first":
            places = places[-1:] + places[:-1]
        elif order == "random":
            random.Random(seed).shuffle(places)
        for place in places:
            await self._read(handle, place, PAGE)
        await handle.kernel.close(handle.opened)

    async def close(self, handle: int) -> None:
        if self.handles:
            closed = self.handles.pop(handle % len(self.handles))
            await closed.kernel.close(closed.opened)

    async def walk(self, directory: int) -> None:
        """Copy each file of a resource, one after the other."""
        homes = sorted({path[:-1] for path in self.model.paths()})
        home = homes[directory % len(homes)]
        shown: list[str] = []
        with self._trying(home, there=home in self.model.present.names):
            shown = await self.kernel.names(home)
        for name in shown:
            if (*home, name) in self.model.paths():
                await self._copy((*home, name))

    async def _copy(self, path: Path, pause: float = 0, kernel: Kernel | None = None) -> None:
        if (handle := await self._open(path, kernel)) is not None:
            try:
                await self._whole(handle, pause)
            finally:
                with trio.CancelScope(shield=True):
                    await handle.kernel.close(handle.opened)

    async def copy(self, file: int) -> None:
        await self._copy(self._path(file))

    async def elsewhere(self, file: int) -> None:
        """Another mount of the same cache directory reads it, which this one finds there then."""
        async with open_site(self._config, Credentials(USER, PASSWORD), self.network) as site:
            site.content.clock = self.site.content.clock
            await self._copy(self._path(file), kernel=Kernel(Operations(Root(site), Ownership(0, 0))))

    async def beside(self, file: int, pause: float) -> None:
        """Start a program that copies a file while the story goes on."""
        self._readers.start_soon(self._copy, self._path(file), pause)

    async def together(self, files: list[int]) -> None:
        """Copy several files in parallel."""
        async with trio.open_nursery() as nursery:
            for file in files:
                nursery.start_soon(self._copy, self._path(file))

    async def interrupted(self, file: int, after: float) -> None:
        """Copy a file with a program that is killed after some seconds."""
        with trio.move_on_after(after):
            await self._copy(self._path(file))

    # -- time, and what the kernel does by itself ------------------------------------------------------------------

    async def wait(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def forget(self) -> None:
        await self.kernel.forget()

    # -- the server ----------------------------------------------------------------------------------------------

    async def add(self, resource: int, name: int) -> None:
        found = self.model.resources()
        if found:
            chosen, session = found[resource % len(found)]
            path = f"new{name}.dcm"
            if all(entry.path != path for entry in chosen.entries):
                Archive.file(chosen, path, self.model.content(1000 + name))
                self.model.note(session.project)

    async def replace(self, file: int, longer: int) -> None:
        if (found := self.model.entry(self._path(file))) is not None:
            entry, _, session = found
            self.model.replace(entry, session, entry.length() + longer)

    async def delete(self, file: int) -> None:
        if (found := self.model.entry(self._path(file))) is not None:
            entry, resource, session = found
            resource.entries.remove(entry)
            self.model.note(session.project)

    async def rename(self, resource: int, name: int) -> None:
        found = self.model.resources()
        if found:
            chosen, session = found[resource % len(found)]
            chosen.label = f"RENAMED{chosen.id}-{name}"
            self.model.note(session.project)

    async def delete_session(self, session: int) -> None:
        found = list(self.model.archive.experiments.values())
        if found:
            gone = found[session % len(found)]
            del self.model.archive.experiments[gone.id]
            self.model.note(gone.project)

    async def move_session(self, session: int) -> None:
        found = list(self.model.archive.experiments.values())
        if found:
            moved = found[session % len(found)]
            moved.project = "Q" if moved.project == "P" else "P"
            self.model.note("P", "Q")

    async def revoke(self, project: int, protected: bool) -> None:
        self.model.close("PQ"[project], protected=protected)

    async def grant(self, project: int) -> None:
        self.model.reopen("PQ"[project])

    async def change(self, file: int, what: str) -> None:
        """Change a file, or the item that it is in."""
        path = self._path(file)
        found = self.model.entry(path)
        if found is None:
            return
        entry, resource, session = found
        if not self.network.dates:
            self.network.harmed_at = trio.current_time()  # as below: what is joined of two versions, a digest tells
        project = "PQ".index(path[1])
        place = list(self.model.archive.experiments).index(session.id)
        match what:
            case "replaced":
                self.model.replace(entry, session, entry.length())
            case "longer" | "shorter":
                self.model.replace(entry, session, entry.length() + (700 if what == "longer" else -7))
            case "older":  # put back by a program that keeps dates
                self.model.replace(entry, session, entry.length() + 500, entry.modified - 100)
            case "again":
                if int(now()) != int(entry.modified):
                    await trio.sleep(1 - now() % 1)  # there is most of a second left, for the next time
                if self.model.replace_again(entry, session):
                    self._silent.add(path)
                    self.network.harmed_at = trio.current_time()
            case "deleted":
                await self.delete(file)
            case "renamed":
                resource.label = f"NEW-{resource.label}"
                self.model.note(session.project)
            case "session deleted":
                await self.delete_session(place)
            case "moved":
                await self.move_session(place)
            case "revoked" | "protected":
                await self.revoke(project, what == "protected")

    async def shorten(self, resource: int, how: str) -> None:
        """Omit the files of a resource, which is listed as having some, from lists of files."""
        found = [each for each, _ in self.model.resources() if each.entries]
        if found:
            self.network.short[str(found[resource % len(found)].id)] = how
            await trio.sleep(TTL)  # what was listed before is out of date

    async def complete(self) -> None:
        self.network.short.clear()
        self.network.met_at = trio.current_time()

    async def end_sessions(self) -> None:
        """End all sessions, as an administrator can."""
        self.model.demo.sessions.end_all()

    async def expire(self) -> None:
        """Idle until the session has expired by the server's clock."""
        await trio.sleep(self.model.demo.site.session_ttl + 1)

    async def site_open(self, on: bool) -> None:
        """Open or close the site to guests, who see public projects: none here."""
        self.model.demo.site.require_login = not on

    async def digests(self, on: bool) -> None:
        self.model.demo.site.digests = on
        self.network.honest_digests = False
        self._digestless = float("inf") if not on else trio.current_time()
        self.model.note("")

    async def dates(self, on: bool) -> None:
        self.network.dates = on
        self.network.met_at = trio.current_time()  # what came without is open for a while

    async def ranges(self, on: bool) -> None:
        self.model.demo.site.ranges = on

    async def fail(self, kind: str, count: int, place: str) -> None:
        self.network.fail(kind, count, place)

    async def mend(self) -> None:
        self.network.mend()


async def inline(work: Any, *arguments: Any, **options: Any) -> Any:
    """Run a function in place of a thread, so that the clock may jump when all is idle, and stories are deterministic.

    It takes a while, as threads do: readers go on before the verdict on the last bytes is in.
    """
    await trio.sleep(THREAD)
    return work(*arguments)


def tell(
    directory: Directory,
    steps: list[tuple[str, dict[str, Any]]],
    *,
    crowded: bool = False,
    digests: bool = True,
    odd: bool = False,
) -> None:
    """Play a story in a new world.

    Args:
        directory: The cache directory.
        steps: The names of the steps, each with its arguments.
        crowded: Whether the cache holds only a part of all there is.
        digests: Whether the server computes digests.
        odd: Whether there are also files whose names some route takes for others.
    """

    async def main() -> None:
        world = World(directory, ROOM if crowded else 10**9, digests, odd)
        with world.handed.watched():
            await world.play(steps)

    with pytest.MonkeyPatch.context() as patch, answered():
        for (module, name), value in SCALED.items():
            patch.setattr(module, name, value)
        patch.setattr(trio.to_thread, "run_sync", inline)
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
