"""Route the requests that change the archive. The archive's lock serializes the changes."""

from collections.abc import Callable

from xnatfs.demo.archive.changes import Changes
from xnatfs.demo.archive.model import Archive
from xnatfs.demo.archive.places import resolve
from xnatfs.demo.archive.vault import Vault
from xnatfs.demo.content.deposits import Deposits
from xnatfs.demo.prearchive.imports import Imports
from xnatfs.demo.prearchive.inbox import Prearchive
from xnatfs.demo.prearchive.requests import PrearchiveRequests
from xnatfs.demo.rest.levels import Asked
from xnatfs.demo.rest.user_cache import UserCache
from xnatfs.demo.server.releases import Release
from xnatfs.demo.server.reply import Failed, Reply
from xnatfs.demo.server.request_bodies import Body


class Writing:
    """All handlers of changes, and the site's settings for them."""

    def __init__(
        self, archive: Archive, clock: Callable[[], float], wait: Callable[[float], None], release: Release
    ) -> None:
        self.archive = archive
        self.release = release
        self.vault = Vault()
        self.changes = Changes(archive, self.vault)
        self.deposits = Deposits(archive, self.vault, clock, release)
        self.prearchive = Prearchive(archive, self.vault, clock, wait)
        self.received = PrearchiveRequests(self.prearchive, release)
        self.received.site_url = lambda: self.changes.site_url
        self.cache = UserCache(archive, self.prearchive)
        self.imports = Imports(self.prearchive, self.received, self.cache, release)
        self._services = (self.imports, self.received, self.cache)

    def answer(self, path: str, asked: Asked, body: Body) -> Reply | None:
        """Return the reply to a change or of a service, or None. `path` may still have the alias /archive."""
        with self.archive.lock:
            self.prearchive.settle()
        parts = [part for part in path.split("/") if part]
        reply = next((made for one in self._services if (made := one.answer(asked, parts, body))), None)
        if reply is not None or asked.method in ("GET", "HEAD"):
            return reply
        with self.archive.lock:
            place, rest = resolve(self.archive, asked.user, asked.segments)
            try:
                if place is not None and _is_deposit(rest):
                    if place.item is None:
                        raise Failed(404, f"Unable to identify {place.kind}")
                    return self.deposits.answer(asked, place, rest, body)
                return self.changes.answer(asked, place, rest, body.small())
            finally:
                self.archive.changed()


def _is_deposit(rest: tuple[str, ...]) -> bool:
    return rest[:1] in (("resources",), ("files",)) or (
        rest[:1] in (("in",), ("out",)) and rest[1:2] in (("resources",), ("files",))
    )
