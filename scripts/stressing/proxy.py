"""python -m scripts.stressing.proxy: the fault server of the tests, before the demo, in a process of its own.

Prints its URL. Each fault that came about is written to a journal. Over its standard input it is told "still": from
then on everything passes, but for what was planted.
"""

import argparse
import sys
import threading
import time
from pathlib import Path

from scripts.stressing.faults import steps
from scripts.stressing.server import Journal
from tests.faults import Faulty, Met, faulty

# Seconds between two checks for new faults.
LOOK = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts.stressing.proxy", description=__doc__)
    parser.add_argument("url", help="of the server behind")
    parser.add_argument("--share", type=float, required=True, help="of answers that meet a fault")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--plant", default="", help="a step of YAML beside the others")
    parser.add_argument("--journal", type=Path, required=True)
    arguments = parser.parse_args()
    journal = Journal(arguments.journal)
    with faulty(arguments.url, steps(arguments.share, arguments.plant), seed=arguments.seed) as server:
        print(server.url, flush=True)
        threading.Thread(target=_note, args=(server, journal), daemon=True).start()
        for _ in sys.stdin:
            server.script(steps(0.0, arguments.plant))  # a planted step is a bug, not a fault, and stays
            print("still", flush=True)
    return 0


def _note(server: Faulty, journal: Journal) -> None:
    seen = 0
    while True:
        time.sleep(LOOK)
        for met in server.met[seen:]:
            seen += 1
            journal.write("met", at=met.at, fault=_name(met), path=met.path)


def _name(met: Met) -> str:
    """Return the name of a fault, with its status: the possible errors depend on that."""
    return f"{met.fault} {met.status}" if met.status else met.fault


if __name__ == "__main__":
    sys.exit(main())
