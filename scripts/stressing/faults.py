"""Define the faults that replies meet, and the errors that a program may see for each.

Faults that a client cannot detect are left out, being bugs of a site: a changed byte in a file without a digest (a test
plants that one), which an archive may contain, too, and a wrong date. So are faults that misinterpret ranges, after
which the rest of the run would not be comparable. The fault matrix has them all.
"""

from dataclasses import dataclass, field
from typing import Any

import yaml

# In seconds. The mount's timeout is shorter than a stall, so that each stall is a fault and not a delay.
TIMEOUT, STALL = 5.0, 9.0

LIST = r"GET /data/.*format=json"
TAR = r"GET /data/.*/files\?format=tar"
FILE = r"GET /data/experiments/[^/]*(/scans/[^/]*)?/resources/[^/]*/files/"
# Of those, files that are never fetched by ranges, since they are small.
IMAGE = FILE + r".*\.(dcm|raw|json|tsv|csv|txt)$"
# And those whose catalogue has their digest, which alone reveals a changed byte. Not the volume of 48 MB: without
# --strict its bytes are served before all have been verified, and a program that reads a part of it, or is killed in
# the middle, never meets the error at its end (docs/dev/RELIABILITY.md: "late `EIO`").
WITH_DIGEST = FILE + r".*\.(dcm|gz|json|tsv|csv|txt)$"
SMALL_WITH_DIGEST = FILE + r".*\.(dcm|json|tsv|csv|txt)$"


@dataclass(frozen=True)
class Kind:
    """A fault: its requests, its weight among all faults, and the errnos that it may cause."""

    fault: str
    match: str
    weight: float
    errnos: frozenset[str]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the name that the proxy reports."""
        return f"status {self.facts['status']}" if self.fault == "status" else self.fault


EIO = frozenset({"EIO"})
# The server did not answer in time, despite retries. Programs need not see it; if they do, they see one of these.
SILENCE = frozenset({"EIO", "ETIMEDOUT", "EHOSTUNREACH"})
GONE = frozenset({"EIO", "ENOENT", "ESTALE"})  # ESTALE if a part of the file was received
REFUSED = frozenset({"EACCES"})
NOTHING: frozenset[str] = frozenset()  # a delay, and no fault

KINDS = [
    *(
        kind
        for where in (LIST, TAR, FILE)
        for kind in (
            Kind("reset", where, 3, SILENCE, {"after": -1}),
            Kind("cut", where, 3, SILENCE, {"after": 20_000}),
            Kind("cut-chunked", where, 2, SILENCE, {"after": 30_000}),
            Kind("stall", where, 1, SILENCE, {"after": 10_000, "seconds": STALL}),
            Kind("stall", where, 1, SILENCE, {"after": -1, "seconds": STALL}),
            Kind("slow", where, 3, NOTHING, {"seconds": 1.0}),
            Kind("status", where, 2, SILENCE, {"status": 503, "retry_after": 1}),
            Kind("status", where, 1, SILENCE, {"status": 429, "retry_after": 1}),
            Kind("status", where, 1, SILENCE, {"status": 502}),
            Kind("status", where, 1, SILENCE, {"status": 504}),
            Kind("status", where, 2, REFUSED, {"status": 401}),  # twice in a row; once is a lost login
            Kind("status", where, 1, REFUSED, {"status": 403}),
            Kind("status", where, 1, GONE, {"status": 404}),
            Kind("login-page", where, 2, EIO),
            Kind("html", where, 2, EIO),
        )
    ),
    *(Kind("status", where, 2, EIO, {"status": 500}) for where in (LIST, TAR, FILE)),
    Kind("reset", FILE, 2, SILENCE, {"after": 2_000_000}),
    Kind("cut", FILE, 2, SILENCE, {"after": 9_000_000}),
    Kind("gzip", IMAGE, 1, EIO),
    Kind("corrupt", WITH_DIGEST, 3, EIO, {"at": 7_000}),
    Kind("resized", SMALL_WITH_DIGEST, 1, frozenset({"EIO", "ESTALE"}), {"by": 1000}),
    Kind("wrong-json", LIST, 3, EIO),
    # On all requests: these affect every program.
    Kind("refuse", r"GET /data/", 0.3, SILENCE, {"seconds": 1.5}),
    Kind("restart", r"GET /data/", 0.3, SILENCE, {"seconds": 1.0}),
]
EVERYBODY = ("refuse", "restart")


def steps(share: float, plant: str = "") -> list[dict[str, Any]]:
    """Return the fault server's script: in each class of replies, `share` of them meet a fault, by weight."""
    planted = yaml.safe_load(plant) if plant else []
    return [*planted, *({"match": kind.match, "fault": kind.fault, "chance": chance, **kind.facts}
                        for kind, chance in _chances(share))]  # fmt: skip


def _chances(share: float) -> list[tuple[Kind, float]]:
    """Return the chance of each fault. Steps apply in turn to replies that passed the others; small chances add up."""
    total = {where: sum(kind.weight for kind in KINDS if _applies(kind, where)) for where in (LIST, TAR, FILE)}
    return [
        (kind, share * kind.weight / max(total[where] for where in total if _applies(kind, where))) for kind in KINDS
    ]


def _applies(kind: Kind, where: str) -> bool:
    return kind.match in (where, r"GET /data/") or (where == FILE and kind.match.startswith(FILE))


def errnos(fault: str) -> frozenset[str]:
    """Return the errnos that a program may see for a fault with this name."""
    return frozenset().union(*(kind.errnos for kind in KINDS if kind.name == fault))
