"""python -m scripts.stressing.server: the demo with the working set, which changes, and forgets logins now and then.

Prints its URL. What it does is written to a journal, a line of JSON each, with the time on the clock that all
processes share. Over its standard input it is told "still" (no more changes) and "told" (print how it stands).
"""

import argparse
import json
import random
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.stressing.archive import Published
from xnatfs.demo.server.app import DemoXnat, Record
from xnatfs.demo.server.socket import serve

USER = "demo-owner"
# Seconds between two changes of a file, and between two expiries of all logins.
CHANGE, EXPIRE = 1.0, 20.0


class Journal:
    """The journal of a process, in a file. It is thread-safe."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w", buffering=1)  # noqa: SIM115  (as long as the process)
        self._lock = threading.Lock()

    def write(self, what: str, **facts: Any) -> None:
        with self._lock:
            self._file.write(json.dumps({"what": what, "at": time.monotonic()} | facts) + "\n")


class Server:
    """The demo, with its changes over time."""

    def __init__(self, sessions: int, seed: int, journal: Journal) -> None:
        self.journal = journal
        self.published = Published(sessions, USER)
        self.demo = DemoXnat(self.published.archive)
        self.demo.watch = self._asked
        self.still = threading.Event()
        self._chance = random.Random(seed)
        self._counts = {"requests": 0}
        journal.write("resources", numbers=self.published.resources, sessions=self.published.numbers)

    def change(self) -> None:
        """Replace files in turn. Each resource has the same chance, so large files are replaced often enough."""
        by_resource: dict[str, list[str]] = {}
        for file in self.published.files.values():
            if file.base:
                by_resource.setdefault(file.resource, []).append(file.path)
        while not self.still.wait(self._chance.uniform(0.5, 1.5) * CHANGE):
            made = self.published.replace(self._chance.choice(by_resource[self._chance.choice(list(by_resource))]))
            self.journal.write("made", **asdict(made))

    def expire(self) -> None:
        while not self.still.wait(self._chance.uniform(0.5, 1.5) * EXPIRE):
            ended = self.demo.sessions.end_all(USER)
            self.journal.write("expired", count=len(ended))

    def told(self) -> dict[str, Any]:
        sessions = self.demo.sessions
        alive = {user: sessions.alive(user) for user in (USER, "guest")}
        return {"sessions": alive[USER], "guests": alive["guest"], "logins": sessions.logins, **self._counts}

    def _asked(self, record: Record) -> None:
        self._counts["requests"] += 1
        self.demo.requests.clear()  # a run sends more requests than fit in memory
        if record.query.get("format") == "json":
            self.journal.write("listed", path=record.path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts.stressing.server", description=__doc__)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    arguments = parser.parse_args()
    server = Server(arguments.sessions, arguments.seed, Journal(arguments.journal))
    with serve(server.demo) as url:
        print(url, flush=True)
        for work in (server.change, server.expire):
            threading.Thread(target=work, daemon=True).start()
        for line in sys.stdin:
            if line.strip() == "still":
                server.still.set()
            print(json.dumps(server.told()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
