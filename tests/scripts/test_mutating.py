"""Test scripts/mutation without mutmut: a weak test is found, a hanging mutant is ended, the count is right."""

import subprocess
import sys
from pathlib import Path

import yaml

from scripts.mutating.mutant import Mutant
from scripts.mutating.report import read_argued, row, table

ROOT = Path(__file__).parents[2]

PLANTED = """
from contextlib import contextmanager


class Account:
    def __init__(self):
        self.money = 0

    def pay(self, sum):
        if sum < 0:
            raise ValueError("sum")
        self.money += sum

    @property
    def rich(self):
        return self.money > 100

    @contextmanager
    def spending(self):
        yield self.money
        self.money = 0

    def never(self):
        return 1
"""

TESTS = """
from planted import Account


def test_pay():
    account = Account()
    account.pay(5)
    assert account.money == 5
    assert not account.rich
    with account.spending() as money:
        assert money == 5
"""

# What is changed, and what the tests above say to it. That of a negative sum is the one that no test covers.
CHANGES = {
    ("Account.pay", 10, "def pay(self, sum):\\n    self.money += sum\\n"): "survived",
    ("Account.pay", 12, "def pay(self, sum):\\n    self.money -= sum\\n"): "killed",
    ("Account.rich", 16, "def rich(self):\\n    return self.money > 4\\n"): "killed",
    ("Account.spending", 20, "def spending(self):\\n    yield None\\n    self.money = 0\\n"): "killed",
    ("Account.spending", 21, "def spending(self):\\n    while True:\\n        pass\\n    yield\\n"): "timeout",
    ("Account.never", 24, "def never(self):\\n    return 2\\n"): "not executed",
}

RUN = """
import pytest
from scripts.mutating import trial
from scripts.mutating.mutant import Mutant
trial.EXTRA_PROCESSOR_SECONDS = 0.2
mutants = [Mutant("planted", name, "", "", 0, (line, line), text) for name, line, text in {changes}]
tell = lambda mutant, verdict, by: print("verdict", mutant.lines[0], verdict)
trials = trial.Trials(["planted"], mutants, tell, jobs=2)
assert pytest.main(["-s", "-q", "-p", "no:cacheprovider", "test_planted.py"], plugins=[trials]) == 0
assert trials.unfit == []
"""


def test_what_no_test_notices_is_found(tmp_path):
    (tmp_path / "planted.py").write_text(PLANTED)
    (tmp_path / "test_planted.py").write_text(TESTS)
    changes = "[" + ", ".join(f'("{name}", {line}, "{text}")' for name, line, text in CHANGES) + "]"
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(changes=changes)],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = dict(line.split(" ", 2)[1:] for line in done.stdout.splitlines() if line.startswith("verdict "))
    assert told == {str(line): verdict for (_, line, _), verdict in CHANGES.items()}
    assert (tmp_path / "planted.py").read_text() == PLANTED


def test_an_argued_mutant_is_counted_but_not_as_a_survivor(tmp_path):
    mutants = [Mutant("m", "f", f"was {n}", "becomes", 0, (n, n), "") for n in range(5)]
    found = {mutants[0].name: "killed", mutants[1].name: "timeout", mutants[2].name: "survived"}
    (tmp_path / "argued.yaml").write_text(yaml.safe_dump({"m": {"f": [["was 3", "becomes", "it is the same"]]}}))
    found_row = row("m", mutants, found, read_argued(tmp_path / "argued.yaml"))
    assert table({"g": [found_row, found_row]}).splitlines()[2:] == [
        "| m | 5 | 1 | 1 | 1 | 1 | 1 | 50.0% |",
        "| m | 5 | 1 | 1 | 1 | 1 | 1 | 50.0% |",
        "| **g, all** | 10 | 2 | 2 | 2 | 2 | 2 | 50.0% |",
    ]


def test_every_argument_is_one_line_and_of_code_that_is_there():
    for (module, function, was, _), why in read_argued(ROOT / "scripts/mutating/argued.yaml").items():
        text = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
        assert "".join(was.split()) in "".join(text.split()), (module, function, was)
        assert why
        assert "\n" not in why
