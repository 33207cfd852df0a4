"""What was asked of a server, by nginx's log."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """One line of nginx's log."""

    method: str
    uri: str
    status: int
    began: float  # seconds since the epoch, to the millisecond, as the next
    ended: float
    sent: int
    kept: str  # HIT where it came out of the replica

    @property
    def path(self) -> str:
        return self.uri.partition("?")[0]

    @property
    def data(self) -> bool:
        """Whether it asks for bytes of files: one, or an archive of them."""
        archive = any(f"format={kind}" in self.uri for kind in ("tar", "zip"))
        return self.method == "GET" and (archive or "/files/" in self.path)

    @property
    def archive(self) -> bool:
        return self.data and "/files/" not in self.path

    @property
    def login(self) -> bool:
        return self.path.startswith(("/data/JSESSION", "/data/services/auth", "/data/auth", "/xapi/"))


def logged(log: Path) -> list[Request]:
    """In the order in which they ended."""
    found = []
    for line in log.read_text().splitlines():
        row = json.loads(line)
        ended, took = float(row["ended"]), float(row["took"])
        spans = (ended - took, ended)
        found.append(Request(row["method"], row["uri"], int(row["status"]), *spans, int(row["sent"]), row["kept"]))
    return found


def in_sequence(requests: Sequence[Request]) -> int:
    """How many of them, at most, came one after the other: the round trips that somebody waited for."""
    count, last = 0, float("-inf")
    for request in sorted(requests, key=lambda request: request.ended):
        if request.began >= last - 0.002:  # the log knows milliseconds
            count, last = count + 1, request.ended
    return count
