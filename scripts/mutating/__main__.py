"""Run mutation tests: scripts/mutation [--module NAME] [--jobs N] [--most SECONDS] [--fresh] [--report]."""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from scripts.mutating.mutant import Mutant
from scripts.mutating.report import Argued, Row, read_argued, row, table
from scripts.mutating.trial import Trials, Verdict

ROOT = Path(__file__).parent.parent.parent
STATE = ROOT / ".mutation"
ARGUED = Path(__file__).with_name("argued.yaml")

# The mutated files, and their tests: those without mounts, other programs and sockets. So the tests on small disks that
# are really full are left out, and those with a hundred simulated servers, which take half a minute for each mutant.
ELSEWHERE = ("test_property", "test_trouble")
GROUPS = {
    "names": (["xnatfs/tree/names.py"], ["tests/tree/test_names.py"]),
    "bids": (
        sorted(str(path.relative_to(ROOT)) for path in (ROOT / "xnatfs/tree/bids/rules").glob("[a-z]*.py")),
        ["tests/tree/bids/test_rules.py"],
    ),
    "content": (
        sorted(str(path.relative_to(ROOT)) for path in (ROOT / "xnatfs/content").rglob("[a-z]*.py")),
        sorted(
            str(path.relative_to(ROOT))
            for path in (ROOT / "tests/content").glob("test_*.py")
            if path.stem not in ELSEWHERE
        ),
    ),
    "client": (
        [f"xnatfs/rest/{name}.py" for name in ("client", "contents", "lists", "urls")],
        [
            *("tests/rest/test_client.py", "tests/rest/test_client_requests.py", "tests/rest/test_site_lists.py"),
            *("tests/prefetch/test_session_listings.py", "tests/listings/test_server_listings.py"),
            *("tests/tree/test_tree.py", "tests/tree/test_prearchive.py", "tests/tree/bids/test_view.py"),
            *("tests/tree/metadata/test_project_tables.py", "tests/tree/metadata/test_session_files.py"),
        ],
    ),
    "auth": (
        [f"xnatfs/http/{name}.py" for name in ("login", "login_request", "replies")],
        ["tests/http/test_login.py", "tests/http/test_replies.py", "tests/rest/test_client.py"],
    ),
    # The layers below the client.
    "transport": (
        [
            f"xnatfs/http/{name}.py"
            for name in ("transport", "documents", "resumable_download", "retry", "circuit_breaker", "failures")
        ],
        [
            "tests/rest/test_client.py",
            "tests/rest/test_client_requests.py",
            "tests/http/test_deadlines.py",
            "tests/http/test_circuit_breaker.py",
        ],
    ),
}


class Results:
    """The verdicts on the mutants of one module. A killed mutant is not tried again while the module is unchanged."""

    def __init__(self, module: str, source: str) -> None:
        self._file = STATE / "results" / f"{module}.jsonl"
        self._source = source
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self.found: dict[tuple[object, ...], Verdict] = {}
        if self._file.exists():
            for line in self._file.read_text().splitlines():
                entry = json.loads(line)
                if entry["source"] == source:
                    self.found[tuple(entry["mutant"])] = entry["verdict"]

    def add(self, mutant: Mutant, verdict: Verdict, by: str) -> None:
        self.found[mutant.name] = verdict
        with open(self._file, "a") as file:
            entry = {"source": self._source, "mutant": mutant.name, "verdict": verdict, "by": by}
            file.write(json.dumps(entry) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/mutation", description="Do tests notice small changes of the code?")
    parser.add_argument("--tools", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--module", action="append", help=f"only this module, or {', '.join(GROUPS)}; repeatable")
    parser.add_argument("--jobs", type=int, default=1, help="number of mutants to try in parallel (1)")
    parser.add_argument(
        "--most",
        type=float,
        default=60.0,
        help="limit of the processor time of the tests of one mutant, in seconds, fast tests first (60)",
    )
    parser.add_argument("--fresh", action="store_true", help="ignore earlier results")
    parser.add_argument("--report", action="store_true", help="run nothing, print what is known")
    arguments = parser.parse_args()
    sys.path.append(str(arguments.tools))
    argued = read_argued(ARGUED)
    found = {}
    for group, (files, tests) in GROUPS.items():
        chosen = [file for file in files if wanted(arguments.module, group, file)]
        if chosen:
            found[group] = run(chosen, files, tests, argued, arguments)
    print(table(found))
    return 0 if all(row.score == 1 for rows in found.values() for row in rows) else 1


def wanted(chosen: list[str] | None, group: str, file: str) -> bool:
    return not chosen or bool({group, module_of(file), Path(file).stem} & set(chosen))


def module_of(file: str) -> str:
    return ".".join(Path(file).with_suffix("").parts)


def digest(files: Iterable[str]) -> str:
    return hashlib.sha256(b"\0".join((ROOT / file).read_bytes() for file in files)).hexdigest()[:16]


def run(
    chosen: list[str], group: list[str], tests: list[str], argued: Argued, arguments: argparse.Namespace
) -> list[Row]:
    """Try the mutants without a verdict, and return a row for each file.

    Args:
        chosen: The files to mutate, all of one group.
        group: All files of the group.
        tests: The test files of the group.
        argued: The mutants that no test can kill.
        arguments: The command line.
    """
    from scripts.mutating.mutants import mutants  # the import is slow, and mutmut is missing when this module is tested

    found = {file: mutants(ROOT / file, module_of(file)) for file in chosen}
    results = {module_of(file): Results(module_of(file), digest([file])) for file in chosen}
    if arguments.fresh:
        for each in results.values():
            each.found.clear()
    untried = [
        mutant
        for file in chosen
        for mutant in found[file]
        if results[mutant.module].found.get(mutant.name) not in ("killed", "timeout") and mutant.name[:4] not in argued
    ]

    def tell(mutant: Mutant, verdict: Verdict, by: str) -> None:
        results[mutant.module].add(mutant, verdict, by)
        print(f"{verdict}: {mutant}", file=sys.stderr, flush=True)

    if arguments.report:
        for mutant in untried:
            print(f"{results[mutant.module].found.get(mutant.name, 'untried')}: {mutant}")
    elif untried:
        code = digest(group)
        first = {ROOT / test: STATE / "first" / f"{code}-{Path(test).stem}-{digest([test])}.json" for test in tests}
        trials = Trials(
            [module_of(file) for file in group],
            untried,
            tell,
            jobs=arguments.jobs,
            most=arguments.most,
            known=first.__getitem__,
        )
        (STATE / "first").mkdir(exist_ok=True)
        try_all(trials, tests)
    return [row(module_of(file), found[file], results[module_of(file)].found, argued) for file in chosen if found[file]]


def try_all(trials: Trials, tests: list[str]) -> None:
    options = ["-s", "-q", "--no-header", "-p", "no:cacheprovider", "-o", "tmp_path_retention_policy=none"]
    status = pytest.main([*options, *tests], plugins=[trials])
    for name in trials.unfit:
        print(f"fails without a mutant, and was left out: {name}", file=sys.stderr)
    if status != pytest.ExitCode.OK:
        sys.exit(f"scripts/mutation: pytest ended with {status!r}")


if __name__ == "__main__":
    sys.exit(main())
