"""Test the README and the pages: examples run, commands and links exist, tables equal those of the code."""

import argparse
import errno
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.changing import images
from tests.support.demos import serving
from tests.support.mounting import SCRIPTS, end, environment, run
from xnatfs.cli.commands import add_commands
from xnatfs.cli.ctl import main as ctl
from xnatfs.cli.parsing import PARTIAL_STATUS, STATUS_TEXTS, CommandParser
from xnatfs.cli.run import EXIT_STATUS, INTERRUPTED
from xnatfs.common.errnos import ERRNOS
from xnatfs.common.errors import UsageError
from xnatfs.settings.config import read_profiles

ROOT = Path(__file__).parents[2]
README_PATH = ROOT / "README.md"
README = README_PATH.read_text()
USER_PAGES = [README_PATH, *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*USER_PAGES, *sorted((ROOT / "docs").glob("*/*.md"))]
UNMOUNT = "xnatfs umount ~/xnat"


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    """Return the examples in one language; `test_no_command_is_only_indented` finds those without a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for name in ("xnat-demo", "xnat"):
        end(tmp_path / name, tmp_path)


def same(text: str, home: Path) -> str:
    """Remove from a text what differs from one run to the next."""
    text = text.replace(str(home), "/home/jdoe").replace("\xa0", " ")
    return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:38703", text)


@pytest.mark.fuse
def test_the_demo_runs_as_printed(home):
    (block,) = blocks("console")
    # The demo must be found where a newcomer has it: in this checkout, not on PATH.
    env = {**environment(home), "PATH": os.environ["PATH"].replace(f"{SCRIPTS}:", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    for part in block.removeprefix("$ ").split("\n$ "):
        command, _, expected = part.partition("\n")
        done = run("sh", "-c", command, cwd=ROOT, env=env)
        assert same(done.stdout + done.stderr, home).strip() == expected.strip(), command


@pytest.mark.fuse
def test_your_server_and_the_recipes_run_as_printed(home):
    for name, content in images().items():
        path = home / "dicom" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content)
    (python,) = blocks("python")
    with serving() as demo:
        login = {"XNAT_USER": demo.login["user"], "XNAT_PASS": demo.login["password"]}
        script = "".join(blocks("sh")).replace("https://xnat.example.org", demo.url)
        env = environment(home, **login, XNAT_URL=demo.url)
        done = run("sh", "-e", "-c", script.replace("MYPROJECT", "BRAINS"), env=env)
        assert done.returncode == 0, done.stderr
        assert "BRAINS" in done.stdout
        program = python.replace("/home/jdoe", str(home)).replace("MYPROJECT", "BRAINS")
        shape = run(sys.executable, "-c", program, env=env)
        assert shape.returncode == 0, shape.stderr
        assert re.fullmatch(r"\(\d+, \d+, \d+\)\n", shape.stdout)
        assert run("sh", "-c", UNMOUNT, env=env).returncode == 0
    assert list(home.glob("*.nii*")) != []
    assert list((home / "data").rglob("*.dcm")) != []
    project = next(project for project in demo.archive.projects.values() if project.id == "BRAINS")
    assert "SUB009_MR1" in {label for _, label in demo.archive.experiments_in(project.id)}


def test_logins_in_scripts_run_as_printed(tmp_path):
    (block,) = blocks("sh", page("AUTHENTICATION"))
    with serving() as demo:
        (tmp_path / ".secret").write_text(f"{demo.login['password']}\n")
        done = run("sh", "-e", "-c", block, env=environment(tmp_path, XNAT_URL=demo.url, XNAT_USER=demo.login["user"]))
        assert done.returncode == 0, done.stderr
        logins = [record for record in demo.app.requests if "authorization" in record.headers]
        assert len(logins) == 1, "the second command finds a session that is alive"


def test_the_crontab_line_for_metrics_runs_as_printed(tmp_path):
    (line,) = blocks("crontab", page("OPERATING"))
    here = line.removeprefix("* * * * * ").replace("/var/lib/node_exporter", str(tmp_path))
    done = run("sh", "-c", here, env=environment(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "# TYPE xnatfs_up gauge" in (tmp_path / "xnatfs.prom").read_text()


# Examples that cannot be executed here: installations, units of systemd. Their commands are parsed.
PARSED = {"text", "ini"}


# Pages whose examples `test_reference` parses: those of the help.
HELP = {"usage", "console"}
INDENTED_COMMAND = re.compile(r"^(?: {4}|\t)\s*(?:\$|xnat|mkdir|docker|python).*$", re.MULTILINE)


def test_every_example_of_a_page_is_executed():
    """Find no example but those that the tests above run, and those of PARSED and HELP."""
    executed = {
        README_PATH: {"sh", "console", "python"},
        ROOT / "docs" / "AUTHENTICATION.md": {"sh", "yaml"},
        ROOT / "docs" / "BIDS.md": {"sh", "json"},  # these four by test_examples.py
        ROOT / "docs" / "VIEWS.md": {"sh", "console"},
        ROOT / "docs" / "CACHE-AND-OFFLINE.md": {"sh"},
        ROOT / "docs" / "dev" / "RELIABILITY.md": {"sh"},
        ROOT / "docs" / "OPERATING.md": {"sh", "fstab", "yaml", "crontab"},  # by test_operating.py
        ROOT / "docs" / "PYTHON.md": {"python", "sh", "snakemake"},  # by tests/api
    }
    for path in PAGES:
        languages = set(re.findall(r"^```(\w+)", path.read_text(), re.MULTILINE))
        if path.parent.name == "cli":
            assert languages <= HELP, path.name
            continue
        assert languages - PARSED == executed.get(path, set()), path.name
        for line in "".join(blocks("text", path.read_text())).splitlines():
            module = re.search(r"python -m ((?:scripts|tests)[\w.]*)", line)
            assert re.match(r"pip |python3 -m venv |~/xnatfs/bin/pip |scripts/setup", line) or module, line
            assert module is None or find_spec(module[1]) is not None, line


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_command_is_only_indented(path):
    """Find every command within a fence with its language, by which a test finds it to run it."""
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert INDENTED_COMMAND.findall(prose) == []


@contextmanager
def suppress_missing_arguments() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        if "required" not in str(error):
            raise
    except SystemExit as ended:
        if ended.code:  # a group alone shows its help
            raise


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_command_line_in_a_sentence_is_accepted(path):
    """Parse them all; such a line may omit required arguments, and words in capitals stand for some."""
    xnatctl, xnatfs = (CommandParser(prog="xnatctl", allow_abbrev=False) for _ in range(2))  # whose errors are raised
    ctl.build(xnatctl)
    add_commands(xnatfs.add_subparsers())
    xnatctl.add_argument("--version", action="store_true")
    parsed = "".join(block for language in PARSED for block in blocks(language, path.read_text()))
    lines = re.findall(r"\b(xnatctl|xnatfs) ([a-z-][^>;|'#\n]*)", re.sub(r"#.*", "", parsed))
    for program, words in [*re.findall(r"`(xnatctl|xnatfs) ([a-z-][^`]*)`", path.read_text()), *lines]:
        if program == "xnatfs" and words.startswith("ctl"):
            program, words = "xnatctl", words.removeprefix("ctl").strip()
        parser = xnatctl if program == "xnatctl" else xnatfs
        with suppress_missing_arguments():
            parser.parse_args(shlex.split(re.sub(" --help$", "", words).replace(" USER", " demo-member")))


def test_the_variables_of_the_tests_exist():
    named = set(re.findall(r"XNATFS_[A-Z_]+", (ROOT / "docs" / "dev" / "CONTRIBUTING.md").read_text()))
    sources = "".join(path.read_text() for folder in ("tests", "scripts") for path in (ROOT / folder).rglob("*.py"))
    assert named
    assert {name for name in named if f'"{name}"' not in sources} == set()


def test_the_profile_is_one(tmp_path):
    (block,) = blocks("yaml", page("AUTHENTICATION"))
    path = tmp_path / "config.yaml"
    path.write_text(block)
    profiles, _ = read_profiles(path)
    assert profiles["production"].url == "https://xnat.example.org"
    assert profiles["production"].username == "jdoe"


def commands() -> dict[str, argparse.ArgumentParser]:
    parsers = argparse.ArgumentParser().add_subparsers()
    add_commands(parsers)
    return dict(parsers.choices)


def every_parser(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from every_parser(below)


def all_parsers() -> list[argparse.ArgumentParser]:
    control = argparse.ArgumentParser()
    ctl.build(control)
    return [*commands().values(), *every_parser(control)]


@pytest.mark.parametrize("path", USER_PAGES, ids=lambda path: path.stem)
def test_every_option_that_a_page_names_exists(path):
    known = {option for parser in all_parsers() for action in parser._actions for option in action.option_strings}
    assert set(re.findall(r"`(--[a-z-]+)", path.read_text())) - known == set()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_command_that_a_page_names_exists(path):
    verbs = {f"{command.noun} {command.verb}".strip() for command in ctl.commands()}
    nouns = {verb.partition(" ")[0] for verb in verbs} | set(ctl.PLURALS.values())
    for words in re.findall(r"`xnatctl ([a-z]+(?: [a-zA-Z-]+)?)", path.read_text()):
        noun, _, verb = words.partition(" ")
        assert noun in nouns, words
        assert not verb or words in verbs or noun in verbs, words
    assert set(re.findall(r"`xnatfs ([a-z-]+)\b", path.read_text())) <= commands().keys() | {"ctl"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_link_of_a_page_leads_somewhere(path):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / link).exists(), link


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_anchor_of_a_link_is_a_heading(path):
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", path.read_text()):
        target = path.parent / link if link else path
        assert anchor in anchors(target.read_text()), f"{link}#{anchor}"


def test_the_verdict_of_each_mechanism_names_its_section():
    table = page("dev/DECISIONS").partition("## Mechanisms that were judged again")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (?!mechanism|---)(.*) \|$", table, re.MULTILINE)
    assert len(rows) == 11
    for row in rows:
        assert re.search(r"\| (gone|kept|simplified)[^|]* \| [^|]+ \| (\[.*\]\(#.*\)|here)$", row), row


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_script_that_a_page_names_exists(path):
    for name in set(re.findall(r"scripts/([a-z-]+)\b(?!\.)", path.read_text())):
        assert (ROOT / "scripts" / name).exists(), name


def test_each_promise_has_its_test():
    table = page("SEMANTICS").partition("## Promises")[2].partition("## Sizes")[0]
    named = re.findall(r"\| `(test_\w+)` \|$", table, re.MULTILINE)
    rows = re.findall(r"^\| (?!promise|---)", table, re.MULTILINE)
    assert len(named) == len(rows) >= 10
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in named if f"def {name}(" not in sources] == []


def test_the_tables_of_errors_are_those_of_the_code():
    table = page("SEMANTICS").partition("## Errors")[2].partition("## Limits")[0]
    promised = {getattr(errno, name) for name in re.findall(r"^\| `(E[A-Z]+)` \|", table, re.MULTILINE)}
    assert promised == set(ERRNOS.values()) - {errno.EINVAL}
    statuses = {int(number): text for number, text in re.findall(r"^\| (\d+) \| (.*) \|", table, re.MULTILINE)}
    assert statuses == STATUS_TEXTS
    assert statuses.keys() == {0, PARTIAL_STATUS, INTERRUPTED, os.EX_SOFTWARE, *EXIT_STATUS.values()}
