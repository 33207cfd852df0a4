"""Route the requests that change the archive. The archive's lock serializes the changes."""

from xnatfs.demo.archive.addresses import resolve
from xnatfs.demo.archive.item_changes import Changes
from xnatfs.demo.archive.vault import Vault
from xnatfs.demo.content.resource_changes import Deposits
from xnatfs.demo.prearchive.imports import Imports
from xnatfs.demo.prearchive.requests import PrearchiveRequests
from xnatfs.demo.prearchive.sessions import Prearchive
from xnatfs.demo.rest.config_service import ConfigService
from xnatfs.demo.rest.resources import Asked
from xnatfs.demo.rest.user_cache import UserCache
from xnatfs.demo.server.reply import Failed, Reply
from xnatfs.demo.server.request_bodies import Body
from xnatfs.demo.server.site import DemoSite


class Writing:
    """All handlers of changes."""

    def __init__(self, site: DemoSite) -> None:
        self.archive = site.archive
        vault = Vault()
        self.changes = Changes(site, vault)
        self.deposits = Deposits(site, vault)
        self.prearchive = Prearchive(site, vault)
        received, cache = PrearchiveRequests(self.prearchive), UserCache(site, vault)
        self._services = (Imports(self.prearchive, received, cache), received, cache, ConfigService(site))

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
