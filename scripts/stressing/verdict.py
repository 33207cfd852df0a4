"""What was seen, held against what was really the matter: each version against the times at which it was the file's,
each error against the faults that the server met and the changes that it made.
"""

import json
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from scripts.stressing.archive import File
from scripts.stressing.faults import EVERYBODY, STALL, TIMEOUT, errnos
from scripts.stressing.programs import Event

# How the mount is run: short times, so that a run has many of each.
TTL, REVALIDATE = 10.0, 20.0
# What may lie between what somebody is told and what he does with it: busy processors, and a reader that is one of 32.
SLACK = 5.0
# How long a fault may be felt: it is tried again for TIMEOUT, once for a listing and once for the file; a refusal is
# remembered for 5 s.
FELT = STALL + 2 * TIMEOUT + SLACK
# What a program may see while a file is replaced under it: the bytes disagree with the catalogue, or another length.
OF_CHANGES = frozenset({"EIO", "ESTALE", "CHANGED", "SHRANK"})

ITEM = re.compile(r"/data/experiments/([^/?]+)(?:(?:/scans/[^/?]+)?/resources/([^/?]+)/files(?:/([^?]+))?)?")


@dataclass
class Finding:
    """One invariant, and what is to be said of it."""

    what: str
    holds: bool
    said: str


@dataclass(frozen=True)
class Met:
    """A fault that came about. `path` is the file's, `sessions` whose listings they were; neither: everybody's."""

    at: float
    fault: str
    errnos: frozenset[str]
    path: str = ""
    sessions: frozenset[str] = frozenset()

    def may_be(self, error: str) -> bool:
        """Whether that may come of it. To somebody in the middle of a file only what befell the file, or everybody."""
        if error in ("SHRANK", "ESTALE") and not (self.path or self.fault in EVERYBODY):
            return False
        return error in self.errnos or (error == "SHRANK" and bool(self.errnos))

    def felt_at(self, path: str) -> bool:
        if self.path:
            return path == self.path
        return not self.sessions or any(path == each or path.startswith(f"{each}/") for each in self.sessions)


@dataclass
class Truth:
    """What the servers' journals tell: when each version came, and which faults were met when."""

    files: dict[str, File]
    made: dict[str, list[float]] = field(default_factory=dict)  # when each version after the first came, by path
    met: list[Met] = field(default_factory=list)  # in order
    silent: int = 0  # faults in archives, which nobody sees: their files are fetched singly
    kinds: Counter[str] = field(default_factory=Counter)
    expired: list[float] = field(default_factory=list)  # when all logins were forgotten
    listed: list[float] = field(default_factory=list)  # when the session for `stat` was, or all

    def __post_init__(self) -> None:
        self._times: list[float] = []

    @classmethod
    def read(cls, files: dict[str, File], server: Path, proxy: Path, still: str = "STILL") -> "Truth":
        truth = cls(files)
        names: dict[str, str] = {}
        resources: dict[str, str] = {}
        for line in journal(server):
            match line["what"]:
                case "resources":
                    names = {accession: session for session, accession in line["sessions"].items()}
                    resources = {str(number): directory for directory, number in line["numbers"].items()}
                case "made":
                    truth.made.setdefault(line["path"], []).append(line["at"])
                case "expired":
                    truth.expired.append(line["at"])
                case "listed" if still in line["path"] or names.get(_item(line["path"]), still) == still:
                    truth.listed.append(line["at"])
        for line in journal(proxy):
            truth.kinds[line["fault"]] += 1
            met = _met(line, names, resources)
            if met is None:
                truth.silent += 1
            else:
                truth.met.append(met)
        truth.met.sort(key=lambda met: met.at)
        return truth

    def left_behind(self) -> int:
        """Sessions that a client gave up because it was told that they are dead, since they last were."""
        since = max(self.expired, default=0.0)
        return sum(met.fault == "status 401" and met.at > since - 1.0 for met in self.met)

    # -- versions ----------------------------------------------------------------------------------------------------

    def wrong(self, event: Event) -> str:
        """Why what was read is of no version that it may be of; '' if it is."""
        if event.wrong or event.version is None:
            return event.wrong
        made = self.made.get(event.path, [])
        if event.version > len(made):
            return f"{event.path}: version {event.version}, which was never made"
        if event.version and made[event.version - 1] > event.ended + SLACK:
            return f"{event.path}: version {event.version} before it was made"
        if event.version < len(made):
            old = event.began - made[event.version]
            if old > self.longest(event.path):
                return f"{event.path}: version {event.version}, {old:.1f} s after it was replaced"
        return ""

    def longest(self, path: str) -> float:
        """How long after it was replaced a version may be read."""
        return TTL + SLACK + (0 if self.files[path].digest else REVALIDATE)

    # -- errors ------------------------------------------------------------------------------------------------------

    def cause(self, event: Event) -> str:
        """The fault that an error comes of, or the change; '' if there is none."""
        if event.error in OF_CHANGES:
            made = self.made.get(event.path, [])
            first = bisect_left(made, event.began - TTL - FELT)
            if first < len(made) and made[first] <= event.ended + SLACK:
                return "changed"
        for met in self._around(event):
            if met.may_be(event.error) and met.felt_at(event.path):
                return met.fault
        return ""

    def _around(self, event: Event) -> Iterator[Met]:
        if len(self._times) != len(self.met):
            self._times = [met.at for met in self.met]
        first = bisect_left(self._times, event.began - TTL - FELT)
        last = bisect_right(self._times, event.ended + 1.0)
        for met in reversed(self.met[first:last]):
            if not met.path or met.at > event.began - FELT:
                yield met


def journal(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def events(logs: Iterable[Path]) -> Iterator[Event]:
    for log in logs:
        for line in journal(log):
            yield Event(**line)


def _item(path: str) -> str:
    found = ITEM.match(path)
    return found[1] if found else ""


def _met(line: dict[str, Any], names: dict[str, str], resources: dict[str, str]) -> Met | None:
    """As the proxy noted it; None where nobody may see it."""
    fault, target = line["fault"], line["path"]
    caused = errnos(fault)
    found = ITEM.match(target)
    if fault in EVERYBODY or not found:
        return Met(line["at"], fault, caused)
    accessions, resource, inner = found.groups()
    if inner:
        return Met(line["at"], fault, caused, path=f"{resources.get(resource, '?')}/{unquote(inner)}")
    if "format=tar" in target:
        # Files whose names no URL carries come this way only.
        directory = resources.get(resource or "", "")
        path = f"{directory}/100% sure.txt" if directory.endswith("/notes") else ""
        return Met(line["at"], fault, caused, path=path) if path else None
    known = [names[each] for each in accessions.split(",") if each in names]
    return Met(line["at"], fault, caused, sessions=frozenset(known))


# -- invariants ------------------------------------------------------------------------------------------------------


def bytes_right(truth: Truth, seen: Sequence[Event]) -> Finding:
    wrong = [text for event in seen if (text := truth.wrong(event))]
    count = sum(event.bytes for event in seen if event.program != "find")
    said = f"{count / 1e9:.1f} GB compared" if not wrong else f"{len(wrong)} times, the first: {'; '.join(wrong[:5])}"
    return Finding("no wrong byte, name or size", not wrong, said)


def errors_caused(truth: Truth, seen: Sequence[Event]) -> tuple[Finding, Counter[tuple[str, str]]]:
    """And how often each errno was seen, by cause."""
    found: Counter[tuple[str, str]] = Counter()
    without: list[Event] = []
    for event in seen:
        if event.error and not event.wrong:
            cause = truth.cause(event)
            found[event.error, cause] += 1
            if not cause:
                without.append(event)
    said = f"{sum(found.values())} errors, each beside a fault or a change of its path"
    if without:
        told = [f"{e.program} {e.path}: {e.error} at {e.began:.1f}-{e.ended:.1f}" for e in without[:5]]
        said = f"{len(without)} of {sum(found.values())} without a cause: {'; '.join(told)}"
    return Finding("no error that was not caused", not without, said), found


def sessions_left(alive: int, after: int, left_behind: int) -> Finding:
    """On the server, after the unmount and after a logout. One that a 401 was made up for stays, until it has idled."""
    said = f"{alive} after the unmount, which leaves one; {after} after `xnatctl auth logout`"
    if left_behind:
        said += f"; {left_behind} times a client was told that its own was dead"
    return Finding("no session left on the server", alive <= 1 + left_behind and after <= left_behind, said)


def percentiles(times: Sequence[float]) -> tuple[float, float, float]:
    """p50, p99, and the longest; zeros of none."""
    if not times:
        return (0.0, 0.0, 0.0)
    found = sorted(times)
    return (found[len(found) // 2], found[min(len(found) - 1, len(found) * 99 // 100)], found[-1])


def cached_stats(truth: Truth, seen: Iterable[Event]) -> list[float]:
    """How long `stat` took, where no listing that it needs was under way: seconds."""
    times = sorted(truth.listed)
    found = []
    for event in seen:
        if event.program == "stat":
            first = bisect_left(times, event.began - 0.01)
            if first == len(times) or times[first] > event.ended + 0.01:
                found.append(event.ended - event.began)
    return found
