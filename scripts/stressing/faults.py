"""Which faults answers meet, and what a program may see of each.

Left out are those that a client cannot tell from the truth, which are bugs of a site and not faults: another byte in a
file without a digest (a test plants that one), which an archive may hold, too; a date that lies. And those that take
ranges for what they are not: what is left of the run might be another run. The fault matrix has them all.
"""

from dataclasses import dataclass, field
from typing import Any

import yaml

# In seconds. The mount's is shorter than a stall, so that each stall is a fault and not a delay.
TIMEOUT, STALL = 5.0, 9.0

LIST = r"GET /data/.*format=json"
TAR = r"GET /data/.*/files\?format=tar"
FILE = r"GET /data/experiments/[^/]*(/scans/[^/]*)?/resources/[^/]*/files/"
# Of those, what is never fetched by ranges, since it is small.
IMAGE = FILE + r".*\.(dcm|raw|json|tsv|csv|txt)$"
# And those whose catalogue has their digest: nothing else tells that a byte is another. Not the volume of 48 MB:
# without --strict its bytes are handed out before all have come to be verified, and who reads a part of it, or is
# killed in the middle, never meets the error at its end (docs/dev/RELIABILITY.md: "late `EIO`").
WITH_DIGEST = FILE + r".*\.(dcm|gz|json|tsv|csv|txt)$"
SMALL_WITH_DIGEST = FILE + r".*\.(dcm|json|tsv|csv|txt)$"


@dataclass(frozen=True)
class Kind:
    """A fault, on which requests, how often compared with others; and the errnos that it may cause."""

    fault: str
    match: str
    weight: float
    errnos: frozenset[str]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As the proxy calls it."""
        return f"status {self.facts['status']}" if self.fault == "status" else self.fault


EIO = frozenset({"EIO"})
# Nobody has answered in time, however often he was asked: no program need see it, and this is what it sees then.
SILENCE = frozenset({"EIO", "ETIMEDOUT", "EHOSTUNREACH"})
GONE = frozenset({"EIO", "ENOENT", "ESTALE"})  # the last where some of the file has come
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
    # Of all answers, whatever was asked: everybody has to do with these.
    Kind("refuse", r"GET /data/", 0.3, SILENCE, {"seconds": 1.5}),
    Kind("restart", r"GET /data/", 0.3, SILENCE, {"seconds": 1.0}),
]
EVERYBODY = ("refuse", "restart")


def steps(share: float, plant: str = "") -> list[dict[str, Any]]:
    """The script of the fault server: of each class of answers so many meet a fault, by weight."""
    planted = yaml.safe_load(plant) if plant else []
    return [*planted, *({"match": kind.match, "fault": kind.fault, "chance": chance, **kind.facts}
                        for kind, chance in _chances(share))]  # fmt: skip


def _chances(share: float) -> list[tuple[Kind, float]]:
    """Each step has its chance when those before it have let the answer pass; small as they are, they add up."""
    total = {where: sum(kind.weight for kind in KINDS if _applies(kind, where)) for where in (LIST, TAR, FILE)}
    return [
        (kind, share * kind.weight / max(total[where] for where in total if _applies(kind, where))) for kind in KINDS
    ]


def _applies(kind: Kind, where: str) -> bool:
    return kind.match in (where, r"GET /data/") or (where == FILE and kind.match.startswith(FILE))


def errnos(fault: str) -> frozenset[str]:
    """What a program may see of a fault of this name."""
    return frozenset().union(*(kind.errnos for kind in KINDS if kind.name == fault))
