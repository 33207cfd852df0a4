"""Parse the script of a fault server: YAML steps, and which of them a request meets.

    - match: GET .*/files/.*   # a regular expression, found at the beginning of "METHOD PATH?QUERY"
      fault: cut
      after: 100000            # what a fault needs to know, see Step
      times: 1                 # how often; for ever where it is not said
      skip: 2                  # after so many that match
      chance: 0.05             # of each that matches, by a seeded generator
      in_flight: 3             # only while more requests than that are under way
      ranged: true             # only requests with a Range that begins after the first byte; false: only others

The first step that matches and is not used up decides; a request that meets none passes.
"""

import random
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import yaml

from tests.faults.messages import Head

# fmt: off
FAULTS = frozenset((
    "refuse", "reset", "stall", "drip", "slow", "cut", "cut-chunked", "cut-unframed", "short-length", "short-chunked",
    "endless", "restart", "html", "login-page", "redirect", "status", "guest", "wrong-json", "huge-json", "corrupt",
    "changed", "resized", "gzip", "clock", "range-ignored", "range-wrong", "range-shifted", "range-unclamped",
    "unframed", "rechunked", "range-empty", "range-beyond", "range-negative", "range-500",
))
# fmt: on


@dataclass(frozen=True, slots=True)
class Step:
    """One step. Bytes are those of the answer's body, times are seconds."""

    fault: str
    match: str = ".*"
    times: int | None = None
    skip: int = 0
    chance: float = 1.0
    in_flight: int = 0
    ranged: bool | None = None  # only requests with a Range that begins after the first byte, or only others
    # reset, stall, drip, cut...: after so many bytes; -1: before the head of the answer.
    after: int = 0
    # reset, stall: when so many bytes of the request's body have come; the server behind never gets the request.
    received: int | None = None
    # reset and stall before the head, status, html and so on: whether the server behind has carried it out already.
    carried_out: bool | None = None
    seconds: float | None = None  # of a stall, slow answer, refusal or restart; a stall has no end without
    rate: int = 1000  # of drip and endless, in bytes a second; 0: as fast as it is taken
    at: int = 0  # corrupt: the byte of the file, wherever an answer begins
    by: int = 1000  # resized, range-*: bytes more (or less); clock: seconds; range-beyond: length of the file by now
    dates: str = ""  # Last-Modified: "absent", or "fresh", of the second in which it is sent, whatever comes
    status: int = 503
    reason: str = ""
    retry_after: str | int = ""
    body: str = ""
    to: str = "/app/template/Login.vm"
    length: int = 100_000_000  # of huge-json

    def fits(self, head: Head) -> bool:
        if self.ranged is not None and self.ranged != (
            head.get("range") != "" and not head.get("range").startswith("bytes=0-")
        ):
            return False
        return re.match(self.match, f"{head.method} {head.target}", re.DOTALL) is not None


class Script:
    """Steps, and how often each has occurred. Every method may be called by any thread."""

    def __init__(self, steps: str | Iterable[dict[str, Any]], seed: int) -> None:
        self._steps = parse(steps)
        self._matched = [0] * len(self._steps)
        self._used = [0] * len(self._steps)
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def pick(self, head: Head, in_flight: int) -> Step | None:
        with self._lock:
            for number, step in enumerate(self._steps):
                if self._used[number] == step.times or not step.fits(head) or in_flight <= step.in_flight:
                    continue
                self._matched[number] += 1
                if self._matched[number] > step.skip and self._random.random() < step.chance:
                    self._used[number] += 1
                    return step
        return None


def parse(steps: str | Iterable[dict[str, Any]]) -> list[Step]:
    """Parse the steps; raise ValueError where one is invalid: a fault that never occurs is worse than no test."""
    found = yaml.safe_load(steps) if isinstance(steps, str) else list(steps)
    return [_step(each) for each in found or []]


def _step(cells: dict[str, Any]) -> Step:
    known = {field.name for field in fields(Step)}
    named = {str(key).replace("-", "_"): value for key, value in cells.items()}
    if unknown := named.keys() - known:
        raise ValueError(f"{cells}: a step has no {', '.join(sorted(unknown))}")
    if named.get("fault") not in FAULTS:
        raise ValueError(f"{cells}: {named.get('fault')!r} is no fault")
    re.compile(named.get("match", ""))
    return Step(**named)
