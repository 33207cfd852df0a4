"""Compare the readers' events with the servers' journals.

Each version that was read must have been the file's at that time, and each error must have a cause: a fault of a reply,
or a change of a file.
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

# The mount's options, in seconds: short lifetimes, so that each expires often in a run.
TTL, REVALIDATE = 10.0, 20.0
# Seconds between an answer to a program and its next step, with busy processors and 32 readers.
SLACK = 5.0
# Seconds that a fault may have an effect: requests are retried for TIMEOUT, once for a listing and once for the file; a
# refusal is cached for 5 s.
FELT = STALL + 2 * TIMEOUT + SLACK
# After a 401 the client takes its session for dead, whatever reply it was, that of an archive too. A restart may break
# the connection of a login, of which there is one at a time.
LEAVING_A_SESSION = frozenset({"status 401", "restart"})
# Errors that a program may see while a file is replaced: its bytes or its size differ from the catalogue's.
OF_CHANGES = frozenset({"EIO", "ESTALE", "CHANGED", "SHRANK"})

ITEM = re.compile(r"/data/experiments/([^/?]+)(?:(?:/scans/[^/?]+)?/resources/([^/?]+)/files(?:/([^?]+))?)?")


@dataclass
class Finding:
    """One invariant, whether it holds, and the observation."""

    what: str
    holds: bool
    said: str


@dataclass(frozen=True)
class Met:
    """A fault that occurred: on the file `path`, on listings of `sessions`, or, with neither, on every program."""

    at: float
    fault: str
    errnos: frozenset[str]
    path: str = ""
    sessions: frozenset[str] = frozenset()

    def may_be(self, error: str) -> bool:
        """Return true if the fault may cause the error.

        An error in the middle of a file can only come from a fault of that file, or from one that affects all programs.
        """
        if error in ("SHRANK", "ESTALE") and not (self.path or self.fault in EVERYBODY):
            return False
        return error in self.errnos or (error == "SHRANK" and bool(self.errnos))

    def felt_at(self, path: str) -> bool:
        if self.path:
            return path == self.path
        return not self.sessions or any(path == each or path.startswith(f"{each}/") for each in self.sessions)


@dataclass
class Truth:
    """The contents of the servers' journals: the times of all versions and of all faults."""

    files: dict[str, File]
    made: dict[str, list[float]] = field(default_factory=dict)  # times of all versions after the first, by path
    met: list[Met] = field(default_factory=list)  # in order
    silent: int = 0  # faults in archives, which no program sees: their files are fetched singly
    kinds: Counter[str] = field(default_factory=Counter)
    expired: list[float] = field(default_factory=list)  # times at which all logins expired
    given_up: list[float] = field(default_factory=list)  # times of faults that each leave at most one session behind
    listed: list[float] = field(default_factory=list)  # times of listings that concern the session for `stat`

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
            if line["fault"] in LEAVING_A_SESSION:
                truth.given_up.append(line["at"])
            met = _met(line, names, resources)
            if met is None:
                truth.silent += 1
            else:
                truth.met.append(met)
        truth.met.sort(key=lambda met: met.at)
        return truth

    def left_behind(self) -> int:
        """Count the sessions that a client may have given up alive since the last real expiry."""
        since = max(self.expired, default=0.0)
        return sum(at > since - 1.0 for at in self.given_up)

    # -- versions ----------------------------------------------------------------------------------------------------

    def wrong(self, event: Event) -> str:
        """Return why the version of the bytes is not permitted at that time; "" if it is."""
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
        """Return how long after its replacement a version may be read, in seconds."""
        return TTL + SLACK + (0 if self.files[path].digest else REVALIDATE)

    # -- errors ------------------------------------------------------------------------------------------------------

    def cause(self, event: Event) -> str:
        """Return the fault that caused an error, or "changed"; "" if there is none."""
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
    """Parse a line of the proxy's journal; None if no program may see the fault."""
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
    """Check that each error has a cause, and count the errnos by cause."""
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
    return Finding("every error has a cause", not without, said), found


def sessions_left(alive: int, after: int, left_behind: int) -> Finding:
    """Check the server's sessions after the unmount and after a logout; some faults leave one alive."""
    said = f"{alive} after the unmount, which leaves one; {after} after `xnatctl auth logout`"
    if left_behind:
        said += f"; faults that leave a session behind: {left_behind}"
    return Finding("no session left on the server", alive <= 1 + left_behind and after <= left_behind, said)


def percentiles(times: Sequence[float]) -> tuple[float, float, float]:
    """Return the 50th and the 99th percentile and the maximum; zeros if there are no values."""
    if not times:
        return (0.0, 0.0, 0.0)
    found = sorted(times)
    return (found[len(found) // 2], found[min(len(found) - 1, len(found) * 99 // 100)], found[-1])


def cached_stats(truth: Truth, seen: Iterable[Event]) -> list[float]:
    """Return the durations of `stat` in seconds, if no listing that it needs was in progress."""
    times = sorted(truth.listed)
    found = []
    for event in seen:
        if event.program == "stat":
            first = bisect_left(times, event.began - 0.01)
            if first == len(times) or times[first] > event.ended + 0.01:
                found.append(event.ended - event.began)
    return found
