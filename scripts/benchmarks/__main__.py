"""Run the benchmarks: scripts/bench [--quick] [--case NAME]."""

import argparse
import fcntl
import os
import signal
import sys
import time
import traceback

from scripts.benchmarks import peers, report, rig
from scripts.benchmarks.cases import CASES
from scripts.benchmarks.cases.bench import Bench
from scripts.benchmarks.report import Row


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Times xnatfs beside its peers and the limit.")
    parser.add_argument("--quick", action="store_true", help="small files, once each; under two minutes")
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; repeatable")
    parser.add_argument("--page", action="store_true", help="with --case: replace the rows of these on the page")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.exit(2, "scripts/bench: only root can drop the kernel's caches and pace a link\n")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every start compiles, which no installed program does
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that mounts, servers and the link are removed
    directory = rig.cache()
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at a time would disturb each other
        rows: list[Row] = []
        try:
            measure(Bench(directory, arguments.quick), arguments.case or list(CASES), rows)
        except KeyboardInterrupt:
            print(report.table(rows))
            return 130
        versions = peers.versions(directory)
    print(report.table(rows))
    if not arguments.quick and (arguments.page or not arguments.case):
        rows = report.merged(report.saved(), rows, list(CASES)) if arguments.case else rows
        cases = {name: case.__doc__ or "" for name, case in CASES.items()}
        report.PAGE.write_text(report.page(rows, "scripts/bench", versions, cases, peers.COMMANDS))
        report.save(rows)
        try:
            peers.plot(directory, report.FIGURES)
        except rig.MeasurementFailed as why:  # the page is written, and keeps the plots of the run before
            print(why, file=sys.stderr)
    return 0 if report.all_reached(rows) else 1


def measure(bench: Bench, names: list[str], rows: list[Row]) -> None:
    """Run these cases and add their rows. A case that fails adds a row, too, and the next one runs."""
    for name in names:
        began = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        try:
            rows += CASES[name](bench)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            rows.append(report.failed(name, str(error)))
        for row in rows:  # the directory is specific to this machine
            row.notes = [note.replace(str(bench.directory), "...") for note in row.notes]
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
