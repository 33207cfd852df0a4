"""Run tests on mutants inside one pytest that has imported and collected everything: each mutant is a fork of it.

Tests are selected by the lines they execute: a first run of all tests, also in a fork, records the lines and the
duration of each. A mutant is tried with the tests that execute its lines, the fastest first, until one fails.
"""

import contextlib
import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from _pytest.runner import runtestprotocol
from coverage import Coverage

from scripts.mutating.mutant import Mutant

Verdict = Literal["killed", "timeout", "survived", "not executed"]

# The limit of a test on a mutant: seconds, plus a multiple of its usual duration. Other programs may load the machine;
# the limit of processor time detects a mutant in an endless loop.
EXTRA_SECONDS, TIMES = 6.0, 20.0
EXTRA_PROCESSOR_SECONDS, TIMES_PROCESSOR = 2.0, 10.0
# The limit of address space, in bytes: a mutant may allocate without end.
MEMORY = 8 * 2**30


@dataclass
class Usual:
    """The cost of a test without a mutant, and the lines it executes."""

    seconds: float
    processor: float
    lines: dict[str, list[int]] = field(default_factory=dict)  # by module

    def touches(self, mutant: Mutant) -> bool:
        first, last = mutant.lines
        return any(first <= line <= last for line in self.lines.get(mutant.module, ()))


class Trials:
    """A pytest plugin that tries mutants instead of running the tests once.

    Args:
        modules: The modules whose lines are recorded.
        mutants: The mutants to try.
        tell: Called with each mutant, its verdict, and the test that failed.
        jobs: The number of mutants to try in parallel.
        most: The limit of the usual processor time of the tests on one mutant, in seconds.
        known: Returns the file that persists the first run of a test file; None to persist nothing.
    """

    def __init__(
        self,
        modules: Sequence[str],
        mutants: Iterable[Mutant],
        tell: Callable[[Mutant, Verdict, str], None],
        *,
        jobs: int = 1,
        most: float = 60.0,
        known: Callable[[Path], Path] | None = None,
    ) -> None:
        self.unfit: list[str] = []  # tests that fail without a mutant
        self._modules = modules
        self._mutants = mutants
        self._tell = tell
        self._jobs = jobs
        self._most = most  # seconds of processor that the tests of one mutant take without it
        self._known = known  # where the first run of a test file is kept
        self._running: dict[int, tuple[Mutant, Path]] = {}

    def pytest_configure(self) -> None:
        # Reproducible examples, and no time spent on shrinking the failing one.
        from hypothesis import Phase, settings

        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutation", derandomize=True, database=None, phases=phases)
        settings.load_profile("mutation")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        self._scratch = Path(tempfile.mkdtemp(prefix="mutation-"))
        try:
            usual = self._first_run(items)
            gc.freeze()  # forks share the memory that the collector does not touch
            for mutant in self._mutants:
                chosen = self._chosen(mutant, usual)
                if not chosen:
                    self._tell(mutant, "not executed", "")
                    continue
                while len(self._running) >= self._jobs:
                    self._reap()
                self._start(mutant, [items[name] for name in chosen], usual)
            while self._running:
                self._reap()
        finally:
            for process in self._running:
                os.killpg(process, signal.SIGKILL)
            shutil.rmtree(self._scratch, ignore_errors=True)
        return True

    def _first_run(self, items: dict[str, pytest.Item]) -> dict[str, Usual]:
        """Run all tests once. Results are persisted by test file, so that a changed file invalidates only its own."""
        files: dict[Path, list[pytest.Item]] = {}
        for item in items.values():
            files.setdefault(item.path, []).append(item)
        found: dict[str, Any] = {}
        for path, tests in files.items():
            report = self._known(path) if self._known is not None else self._scratch / f"first-{path.name}"
            if not report.exists():
                process = os.fork()
                if not process:
                    with _Exiting(self._scratch):
                        report.write_text(json.dumps(self._watched(tests)))
                os.waitpid(process, 0)
            found |= json.loads(report.read_text())
        self.unfit = [name for name, values in found.items() if values is None]
        return {name: Usual(*values) for name, values in found.items() if values is not None}

    def _watched(self, items: list[pytest.Item]) -> dict[str, object]:
        watch = Coverage(data_file=None, config_file=False, include=[_file(module) for module in self._modules])
        spent: dict[str, tuple[float, float] | None] = {}
        watch.start()
        for item, following in zip(items, [*items[1:], None], strict=True):
            watch.switch_context(item.nodeid)
            began, used = time.monotonic(), time.process_time()
            failed = _fails(item, following)
            spent[item.nodeid] = None if failed else (time.monotonic() - began, time.process_time() - used)
        watch.stop()
        lines: dict[str, dict[str, list[int]]] = {name: {} for name in spent}
        for module in self._modules:
            for line, names in watch.get_data().contexts_by_lineno(_file(module)).items():
                for name in lines.keys() & names:
                    lines[name].setdefault(module, []).append(line)
        return {name: (*seconds, lines[name]) if seconds else None for name, seconds in spent.items()}

    def _chosen(self, mutant: Mutant, usual: dict[str, Usual]) -> list[str]:
        touching = sorted((each.processor, name) for name, each in usual.items() if each.touches(mutant))
        chosen: list[str] = []
        spent = 0.0
        for seconds, name in touching:
            spent += seconds
            if chosen and spent > self._most:
                break
            chosen.append(name)
        return chosen

    def _start(self, mutant: Mutant, items: list[pytest.Item], usual: dict[str, Usual]) -> None:
        by = self._scratch / f"by-{time.monotonic_ns()}"
        process = os.fork()
        if process:
            self._running[process] = (mutant, by)
            return
        with _Exiting(self._scratch):
            os.setpgid(0, 0)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            mutant.apply()
            for item, following in zip(items, [*items[1:], None], strict=True):
                by.write_text(item.nodeid)
                _limit(usual[item.nodeid])
                if _fails(item, following):
                    os._exit(1)

    def _reap(self) -> None:
        process, status = os.wait()
        if process not in self._running:
            return
        mutant, by = self._running.pop(process)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)  # processes that its tests have started
        late = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGPROF)
        verdict: Verdict = "timeout" if late else "killed" if status else "survived"
        self._tell(mutant, verdict, by.read_text() if by.exists() and status else "")


class _Exiting:
    """Run the rest of a forked process without output; it exits with 0 after the block, or with 1 on an exception.

    It gets a working directory of its own: a mutant that replaces a path by None creates "None" there.

    Args:
        scratch: The directory in which the working directory is made.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def __enter__(self) -> None:
        os.chdir(tempfile.mkdtemp(dir=self._scratch))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        os._exit(0 if kind is None else 1)


def _file(module: str) -> str:
    __import__(module)
    return str(sys.modules[module].__file__)


def _fails(item: pytest.Item, following: pytest.Item | None) -> bool:
    return any(report.failed for report in runtestprotocol(item, log=False, nextitem=following))


def _limit(usual: Usual) -> None:
    """Set timers that end this process by a signal if the next test exceeds its usual duration by far."""
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, EXTRA_SECONDS + TIMES * usual.seconds)
    signal.setitimer(signal.ITIMER_PROF, EXTRA_PROCESSOR_SECONDS + TIMES_PROCESSOR * usual.processor)
