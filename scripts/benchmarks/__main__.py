"""scripts/bench [--quick] [--case NAME]"""

import argparse
import sys

from scripts.benchmarks import report, rig
from scripts.benchmarks.cases import CASES, Bench


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Times xnatfs beside its peers and the limit.")
    parser.add_argument("--quick", action="store_true", help="small files, once each; under two minutes")
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; repeatable")
    arguments = parser.parse_args()
    bench = Bench(rig.cache(), arguments.quick)
    rows = []
    for name in arguments.case or CASES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += CASES[name](bench)
    print(report.table(rows))
    if not arguments.case and not arguments.quick:
        report.write(rows, "scripts/bench")
    return 0 if all(row.reached is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
