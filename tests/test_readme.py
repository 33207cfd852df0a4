"""The README is true: its examples run, its commands exist, its tables are those of the code."""

import argparse
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.demos import serving
from tests.mounting import SCRIPTS, end, environment, run
from xnatfs.cli import EXIT_STATUS, INTERRUPTED, ctl, mounts
from xnatfs.config import read_profiles
from xnatfs.fuse.operations import ERRNOS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The examples in one language, indented ones excepted."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for name in ("xnat-demo", "xnat"):
        end(tmp_path / name, tmp_path)


def same(text: str, home: Path) -> str:
    """Text without what differs from one run to the next."""
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
def test_a_real_server_is_mounted_as_printed(home):
    (block,) = blocks("sh")
    with serving() as demo:
        script = block.replace("https://xnat.example.org", demo.url).replace("MYPROJECT", "BRAINS")
        env = environment(home, XNAT_USER=demo.login["user"], XNAT_PASS=demo.login["password"])
        done = run("sh", "-e", "-c", script, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "BRAINS" in done.stdout
    assert list(home.glob("*.nii*")) != []


def test_the_profile_is_one(tmp_path):
    (block,) = blocks("yaml")
    path = tmp_path / "config.yaml"
    path.write_text(block)
    profiles, _ = read_profiles(path)
    assert profiles["production"].url == "https://xnat.example.org"
    assert profiles["production"].username == "jdoe"


def commands() -> dict[str, argparse.ArgumentParser]:
    parsers = argparse.ArgumentParser().add_subparsers()
    mounts.add_parsers(parsers)
    return dict(parsers.choices)


@pytest.mark.parametrize("name", commands())
def test_every_command_is_mentioned_and_every_option_has_help(name):
    assert f"xnatfs {name}" in README
    for action in commands()[name]._actions:
        assert action.help, action


def test_the_table_of_xnatctl_has_every_command():
    table = README.partition("## Work with a server")[2].partition("\n\nEach has")[0]
    listed = re.findall(r"`xnatctl ([a-zA-Z -]+)`", table)
    assert sorted(listed) == sorted(f"{command.noun} {command.verb}".strip() for command in ctl.commands())


def every_parser(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from every_parser(below)


def test_every_option_the_readme_names_exists():
    control = argparse.ArgumentParser()
    ctl.build(control)
    parsers = [*commands().values(), *every_parser(control)]
    known = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    mentioned = set(re.findall(r"`(--[a-z-]+)", README))
    assert mentioned - known == set()


def test_every_script_the_readme_names_exists():
    for name in set(re.findall(r"scripts/([a-z-]+)", README)):
        assert os.access(ROOT / "scripts" / name, os.X_OK), name


def test_the_tables_of_errors_are_those_of_the_code():
    table = README.partition("### Errors")[2].partition("### Limits")[0]
    promised = {getattr(errno, name) for name in re.findall(r"^\| `(E[A-Z]+)` \|", table, re.MULTILINE)}
    assert promised == set(ERRNOS.values()) - {errno.EINVAL}
    statuses = {int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert statuses == {0, ctl.PARTIAL, INTERRUPTED, *EXIT_STATUS.values()}
