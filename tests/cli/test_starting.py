"""Test what the programs import before they do what they are for: imports are most of the time of a start."""

import sys
from pathlib import Path

import pytest

from tests.support.mounting import environment, run
from xnatfs.cli.ctl.main import NOUNS, commands

# Of these, each takes a tenth of the time that a start may take, or more.
HEAVY = {"trio", "httpx", "ssl", "asyncio", "rich", "keyring", "yaml", "sqlite3", "pyfuse3", "pydicom", "argcomplete"}
TREE = {"xnatfs.site", "xnatfs.tree", "xnatfs.rest.client", "xnatfs.transfer"}


# What the library has for compression, sockets, processes and the like. Help and a wrong option need none of it.
LIBRARY = {"shutil", "socket", "subprocess", "tempfile", "hashlib", "ctypes", "html", "csv", "xnatfs.rest.models"}

REPORTING = """if True:
    import atexit, sys
    atexit.register(lambda: print(*sys.modules, sep="\\n", file=sys.stderr))
    from xnatfs.cli import main, main_xnatctl
    sys.exit({"xnatfs": main, "xnatctl": main_xnatctl}[sys.argv[1]](sys.argv[2:]))
"""


def modules(home: Path, *words: str) -> set[str]:
    """Run a program, and return the modules that it has imported by its end."""
    return set(run(sys.executable, "-c", REPORTING, *words, env=environment(home)).stderr.splitlines())


@pytest.mark.parametrize(
    ("words", "module"),
    [
        ("xnatfs --help", "xnatfs.cli.commands"),
        ("xnatfs mount --help", "xnatfs.cli.commands"),
        ("xnatfs mount", "xnatfs.cli.commands"),
        ("xnatfs exec --at", "xnatfs.cli.commands"),
        ("xnatfs status", "xnatfs.cli.control.client"),
        ("xnatfs refresh /", "xnatfs.cli.control.client"),
        ("xnatfs cache info", "xnatfs.cli.control.client"),
        ("xnatctl --help", "xnatfs.cli.ctl.main"),
        ("xnatctl session", "xnatfs.cli.ctl.archive"),
        ("xnatctl scan download --help", "xnatfs.cli.ctl.transfers"),
        ("xnatctl prearchive archive --help", "xnatfs.cli.ctl.prearchive"),
        ("xnatctl session upload", "xnatfs.cli.ctl.uploads"),
        ("xnatctl sesion list", "xnatfs.cli.ctl.archive"),
    ],
)
def test_what_sends_no_request_imports_nothing_that_does(tmp_path, words, module):
    found = modules(tmp_path, *words.split())
    assert module in found
    assert found & (HEAVY | TREE) == set()


@pytest.mark.parametrize(
    "words",
    [
        *("xnatfs --help", "xnatfs --version", "xnatfs mount --help", "xnatfs doctor --hepl", "xnatfs exec --at"),
        *("xnatctl --help", "xnatctl --version", "xnatctl session list --help", "xnatctl scan list --foo"),
        *("xnatctl session", "xnatctl resource show", "xnatctl config set --help"),
    ],
)
def test_help_and_wrong_options_import_little_of_the_library(tmp_path, words):
    assert modules(tmp_path, *words.split()) & (HEAVY | TREE | LIBRARY) == set()


def test_a_command_imports_the_commands_of_its_noun_only(tmp_path):
    found = modules(tmp_path, "xnatctl", "session", "list", "--help")
    assert "xnatfs.cli.ctl.archive" in found
    assert found & {"xnatfs.cli.ctl.account", "xnatfs.cli.ctl.prearchive", "xnatfs.cli.ctl.completion"} == set()
    assert not [name for name in modules(tmp_path, "xnatctl", "--help") if name.startswith("xnatfs.rest")]


def test_the_help_of_the_program_has_every_command():
    assert {command.noun or command.verb for command in commands()} == NOUNS.keys()
    assert {command.verb: command.help for command in commands() if not command.noun}.items() <= NOUNS.items()


def test_a_mount_imports_no_view_before_it_is_looked_at(tmp_path):
    """Import what a mount needs as its daemon does: each module takes time before the mount answers."""
    program = "import sys; sys.modules['httpx._main'] = None; import xnatfs.fuse.mount; print(*sys.modules, sep='\\n')"
    found = set(run(sys.executable, "-c", program, env=environment(tmp_path)).stdout.splitlines())
    assert "xnatfs.tree.projects" in found
    assert [name for name in found if name.startswith(("xnatfs.tree.bids", "xnatfs.demo")) or name == "html"] == []
