"""Read the requests to a server from nginx's log."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """One request, from a line of nginx's log."""

    method: str
    uri: str
    status: int
    began: float  # seconds since the epoch, to the millisecond, as the next
    ended: float
    sent: int
    kept: str  # HIT if the replica answered
    connection: int = 0  # its serial number

    @property
    def path(self) -> str:
        return self.uri.partition("?")[0]

    @property
    def data(self) -> bool:
        """Return true for a request for a file's bytes, or for an archive of files."""
        archive = any(f"format={kind}" in self.uri for kind in ("tar", "zip"))
        return self.method == "GET" and (archive or "/files/" in self.path)

    @property
    def archive(self) -> bool:
        return self.data and "/files/" not in self.path

    @property
    def login(self) -> bool:
        return self.path.startswith(("/data/JSESSION", "/data/services/auth", "/data/auth", "/xapi/"))


def logged(log: Path) -> list[Request]:
    """Return the requests of a log in the order in which they ended."""
    found = []
    for line in log.read_text().splitlines():
        row = json.loads(line)
        ended, took = float(row["ended"]), float(row["took"])
        spans = (ended - took, ended)
        found.append(Request(row["method"], row["uri"], int(row["status"]), *spans, int(row["sent"]), row["kept"],
                             int(row["connection"])))  # fmt: skip
    return found


def connections(requests: Sequence[Request]) -> int:
    """Return the number of connections that the requests came by."""
    return len({request.connection for request in requests})


def in_sequence(requests: Sequence[Request]) -> int:
    """Return the length of the longest sequence of requests that did not overlap: the number of round trips."""
    count, last = 0, float("-inf")
    for request in sorted(requests, key=lambda request: request.ended):
        if request.began >= last - 0.002:  # the log has milliseconds
            count, last = count + 1, request.ended
    return count
