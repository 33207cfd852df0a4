"""Run the stress test: scripts/stress [--minutes M] [--seed N] [--readers N] [--report]."""

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from scripts.stressing import report
from scripts.stressing.run import Options, run

# Minutes. A shorter run is a quick look, and does not support the claims of docs/dev/STRESS.md.
LONG_ENOUGH = 30.0
FEWER = "not each comes about, of a small file none that is cut behind its end (default: 0.07, which makes 0.05)"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/stress", description="Many readers on one mount, with faults; what must hold is checked."
    )
    parser.add_argument("--minutes", type=float, default=2.0, metavar="M", help="of load (default: 2)")
    parser.add_argument("--seed", type=int, metavar="N", help="of all that is done at random (default: another one)")
    parser.add_argument("--readers", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument("--sessions", type=int, default=8, metavar="N", help="of 246 MB each (default: 8)")
    parser.add_argument("--cache-size", default="200M", metavar="SIZE", help="of the mount (default: 200M)")
    parser.add_argument("--faults", type=float, default=0.07, metavar="SHARE", help=f"of answers; {FEWER}")
    parser.add_argument("--local", type=float, default=10.0, metavar="S", help="on a local directory (default: 10)")
    parser.add_argument("--plant", default="", metavar="YAML", help="one more step for the fault server")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="keep what is written there")
    parser.add_argument(
        "--report", action="store_true", help=f"write docs/dev/STRESS.md; from {LONG_ENOUGH:g} minutes on"
    )
    arguments = parser.parse_args()
    if arguments.report and arguments.minutes < LONG_ENOUGH:
        parser.error(f"--report is for runs of {LONG_ENOUGH:g} minutes and more")
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    options = Options(
        arguments.minutes, seed, arguments.readers, arguments.sessions, arguments.cache_size, arguments.faults,
        arguments.plant, arguments.local,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that everything is taken down
    directory = _directory(arguments.directory)
    try:
        outcome = run(options, directory, lambda text: print(text, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        print("scripts/stress: interrupted; nothing is left mounted or running", file=sys.stderr)
        return 130
    finally:
        if arguments.directory is None:
            shutil.rmtree(directory, ignore_errors=True)
    command = shlex.join(["scripts/stress", *sys.argv[1:], *(["--seed", str(seed)] if arguments.seed is None else [])])
    if arguments.directory is not None:
        (directory / "summary.json").write_text(json.dumps(outcome.summary()))
    text = report.page(outcome, command).replace(str(directory), "...")
    print(text)
    if arguments.report:
        report.PAGE.write_text(text)
    return 0 if outcome.holds else 1


def _directory(given: Path | None) -> Path:
    """Create an empty directory that only this user can access."""
    if given is None:
        return Path(tempfile.mkdtemp(prefix="xnatfs-stress-"))
    shutil.rmtree(given, ignore_errors=True)
    given.mkdir(parents=True)
    os.chmod(given, 0o700)
    return Path(os.path.realpath(given))


if __name__ == "__main__":
    sys.exit(main())
