"""Explain what is the matter with a path of a mount."""

from datetime import UTC, datetime
from errno import errorcode

from xnatfs.common.clock import now
from xnatfs.common.errnos import errno_of
from xnatfs.common.errors import Unreachable, XnatError
from xnatfs.fuse.control.error_log import Failure
from xnatfs.fuse.control.places import content_version, find, split
from xnatfs.fuse.control.protocol import Message
from xnatfs.fuse.operations import Operations
from xnatfs.listings.keys import NodePath
from xnatfs.site import Site
from xnatfs.tree.node import Dir, File, Node


async def explain(root: Dir, operations: Operations, path: str) -> Message:
    """Return the findings about a path, as lines for a user: its last errors, and what prevents access now.

    The path is looked up as a program would, with the same requests.
    """
    names = split(path)
    failures = operations.errors.below(names) or _above(operations, names)
    server = _server(root.site)
    found: Node | None = None
    lookup = ""
    try:
        found = await find(root, names)
    except XnatError as error:
        lookup = f"a program gets {errorcode[errno_of(error)]} for it: {error}"
        if isinstance(error, Unreachable) and server:
            lookup = f"a program gets {errorcode[errno_of(error)]} for it"  # the server's line has the reason
    lines = [_failed(failure) for failure in failures]
    lines += [line for line in (server, lookup) if line]
    lines += _described(found) if found is not None else []
    is_fine = not (failures or server or lookup)
    return {"path": "/".join(names), "fine": is_fine, "findings": lines}


def _above(operations: Operations, names: NodePath) -> list[Failure]:
    """Return the error of the nearest directory of a path that has one."""
    for length in range(len(names) - 1, 0, -1):
        if failure := operations.errors.find(names[:length]):
            return [failure]
    return []


def _failed(failure: Failure) -> str:
    times = f", {failure.count} times" if failure.count > 1 else ""
    return f"{_time(failure.at)}{times}: {failure.errno} for {'/'.join(failure.path)}: {failure.reason}"


def _server(site: Site) -> str:
    breaker, login = site.xnat.transport.breaker, site.xnat.login
    if breaker.is_open:
        return f"the server has been unreachable since {_time(breaker.outage_began_at)}: {breaker.reason}"
    return f"the login is refused: {login.refusal}" if login.refusal else ""


def _described(node: Node) -> list[str]:
    lines = []
    since = node.get_stale_time()
    if since:
        lines.append(f"it is shown as it was listed at {_time(since)}: the server does not answer")
    directory = node if isinstance(node, Dir) else node.parent
    left = directory.fresh_until() - now() if directory else 0.0
    if not since and 0 < left < float("inf"):
        lines.append(f"its listing is renewed in {left:.0f} s")
    if isinstance(node, File) and node.is_generated:
        lines.append(f"{node.measured_size} bytes, made from listings" if node.measured else "made when it is read")
    elif isinstance(node, File) and node.measured:
        is_cached = node.site.content.has(content_version(node))
        lines.append(f"{node.measured_size} bytes, {'cached' if is_cached else 'not cached'}")
    return lines


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
