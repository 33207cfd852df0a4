"""Run the event loop of a server in a thread, for callers that block.

A process has one portal for each endpoint: one thread, one login, one pool of connections and one cache for all its
threads. No thread survives fork(2), so a child starts its own portal with its first call, and never touches inherited
ones. The portals end with the interpreter, whatever they are doing.
"""

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar, TypeVarTuple

import trio

from xnatfs.api.endpoint import Endpoint
from xnatfs.common.errors import ConfigError, first_error
from xnatfs.site import Site, open_site
from xnatfs.tree import Root

log = logging.getLogger(__name__)

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

# Seconds that the end of the interpreter waits for the portals: closing one takes some 50 ms, unless its disk hangs.
EXIT_SECONDS = 0.8


class Portal:
    """One event loop in a thread, with one open site.

    Attributes:
        endpoint: The server and the login.
        root: The root of the tree; for functions that run in the portal only.
        site: The site, likewise.
        local_files: Descriptors of cached files whose paths were returned, by path; they keep the files there.
    """

    root: Root
    site: Site

    def __init__(self, endpoint: Endpoint) -> None:
        self.users = 0  # connections that end; the portal ends with the last one
        self.is_pinned = False  # used by objects without an end
        self.is_closed = False
        self.local_files: dict[str, int] = {}
        self._process = os.getpid()
        self.endpoint = endpoint
        self._url = endpoint.config.url
        self._calls: set[Future[Any]] = set()
        self._opened: Future[None] = Future()
        self._started = threading.Event()
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery
        self._token: trio.lowlevel.TrioToken
        self._thread = threading.Thread(target=self._run, args=(endpoint,), name=f"xnatfs {self._url}", daemon=True)
        self._thread.start()

    def wait_until_open(self) -> None:
        """Wait for the login. Raises XnatError."""
        self._opened.result()

    def call(self, function: Callable[[*Ts], Awaitable[R]], *args: *Ts) -> R:
        """Run an async function in the portal and return its result or raise its error.

        An exception of a signal handler, such as that of Ctrl-C, cancels it.

        Raises:
            ValueError: The portal has ended.
        """
        future: Future[R] = Future()
        scope = trio.CancelScope()
        self._calls.add(future)
        try:
            if not self.post(self._begin, future, scope, function, args):
                raise self._ended()
            return future.result()
        finally:
            self._calls.discard(future)
            if not future.done():
                self.post(scope.cancel)

    def post(self, function: Callable[[*Ts], object], *args: *Ts) -> bool:
        """Schedule a call of a function that does not block; return False if the portal has ended."""
        if os.getpid() != self._process:
            return False
        try:
            self._token.run_sync_soon(function, *args)
        except trio.RunFinishedError:
            return False
        return True

    def close(self, seconds: float) -> None:
        """End the portal and the calls that are under way, and wait for up to `seconds`."""
        if os.getpid() == self._process and self._started.wait(seconds):
            self.post(self._scope.cancel)
            self._thread.join(seconds)

    def _ended(self) -> ValueError:
        return ValueError(f"the connection to {self._url} is closed")

    def _run(self, endpoint: Endpoint) -> None:
        try:
            trio.run(self._serve, endpoint)
            failure: BaseException = self._ended()
        except BaseException as error:
            failure = first_error(error)
            if self._opened.done():
                log.error("the connection to %s has ended", self._url, exc_info=error)
        self.is_closed = True
        for future in (self._opened, *self._calls):
            if not future.done():
                future.set_exception(failure)

    async def _serve(self, endpoint: Endpoint) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._started.set()
        with self._scope:
            if sys.platform != "linux":
                raise ConfigError("files are read in Python on Linux only; xnatctl downloads them here")
            login = endpoint.find_login()
            async with (
                open_site(endpoint.config, login.credentials, sessions=login.sessions) as self.site,
                trio.open_nursery() as self._nursery,
            ):
                await self.site.xnat.log_in()
                self.site.start_background_tasks(persists=False)
                self.root = Root(self.site)
                self._opened.set_result(None)
                try:
                    await trio.sleep_forever()
                finally:
                    self.is_closed = True
                    for descriptor in self.local_files.values():
                        os.close(descriptor)

    def _begin(
        self, future: Future[R], scope: trio.CancelScope, function: Callable[[*Ts], Awaitable[R]], args: tuple[*Ts]
    ) -> None:
        if self.is_closed:
            future.set_exception(self._ended())
        else:
            self._nursery.start_soon(self._answer, future, scope, function, args)

    async def _answer(
        self, future: Future[R], scope: trio.CancelScope, function: Callable[[*Ts], Awaitable[R]], args: tuple[*Ts]
    ) -> None:
        try:
            with scope:
                future.set_result(await function(*args))
        except Exception as error:
            future.set_exception(error)
        finally:
            if not future.done():
                future.set_exception(self._ended())


_portals: dict[Endpoint, Portal] = {}
_lock = threading.Lock()


def get_portal(endpoint: Endpoint, *, users: int = 0, pins: bool = False) -> Portal:
    """Return the portal of an endpoint in this process, logged in; start it if there is none.

    Args:
        endpoint: The server and the login.
        users: 1 for a user that ends with `release_portal`.
        pins: True for a user without an end.

    Raises:
        XnatError: The site cannot be opened, or the login is missing or refused.
    """
    with _lock:
        portal = _portals.get(endpoint)
        if portal is None or portal.is_closed:
            portal = _portals[endpoint] = Portal(endpoint)
        portal.users += users
        portal.is_pinned |= pins
    portal.wait_until_open()
    return portal


def release_portal(portal: Portal) -> None:
    """End the use of a portal, and the portal if nothing else uses it."""
    with _lock:
        portal.users -= 1
        is_unused = not portal.users and not portal.is_pinned
        if is_unused and _portals.get(portal.endpoint) is portal:
            del _portals[portal.endpoint]  # before it ends: a user that comes now gets another one
    if is_unused:
        portal.close(EXIT_SECONDS)


def _forget_portals() -> None:
    """Start without portals in a forked child: none of their threads exists, and one may have held a lock."""
    global _lock
    _lock = threading.Lock()
    # Never destroyed: closing an inherited object, such as the database, would close the parent's.
    _inherited.extend(_portals.values())
    _portals.clear()


_inherited: list[Portal] = []


def close_portals() -> None:
    """End all portals of this process, as at its exit; a file system that is used afterwards opens another one."""
    until = time.monotonic() + EXIT_SECONDS
    for portal in list(_portals.values()):
        portal.close(max(until - time.monotonic(), 0.0))


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forget_portals)
atexit.register(close_portals)
