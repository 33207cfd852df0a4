"""Spell the commands `xnatfs` and `xnatctl` as the user's shell finds them, and run modules in other processes.

Installed by pip, they are scripts in one directory. As one file (`scripts/build`), they are that file, which has
unpacked itself, with a module beside the packages that runs others.
"""

import os
import shlex
import sys
from pathlib import Path

PROGRAM_MODULES = {"xnatfs": "xnatfs", "xnatctl": "xnatfs.cli"}
# It is there only where xnatfs came as one file, which this variable then names.
RUNNER, FILE_VARIABLE = Path(__file__).parents[2] / "run_bundled.py", "XNATFS_FILE"


def run_module(name: str) -> list[str]:
    """Return the command that runs a module in a process of its own, and nothing of the current directory."""
    if RUNNER.exists():
        return [sys.executable, "-P", str(RUNNER), name]
    return [sys.executable, "-P", "-m", name]


def find(name: str) -> list[str]:
    """Return the command that starts a program of xnatfs from any directory and environment."""
    if RUNNER.exists():
        return [os.environ.get(FILE_VARIABLE, "xnatfs"), *([] if name == "xnatfs" else ["ctl"])]
    script = _script(name)
    return [str(script)] if os.access(script, os.X_OK) else [sys.executable, "-m", PROGRAM_MODULES[name]]


def spell(name: str) -> str:
    """Return the command that starts a program of xnatfs from the current directory, quoted for a shell.

    That is the program's name where PATH leads to the script beside the running one, else the path of that script, else
    `python -m` and its module.
    """
    if RUNNER.exists():
        return shlex.join(find(name))
    script = _script(name)
    if not os.access(script, os.X_OK):
        return f"{shlex.quote(sys.executable)} -m {PROGRAM_MODULES[name]}"
    from shutil import which  # imports compression, which help does without

    if (found := which(name)) and os.path.samefile(found, script):
        return name
    here = Path.cwd()
    return shlex.quote(str(script.relative_to(here) if script.is_relative_to(here) else script))


def _script(name: str) -> Path:
    """Return where the script of a program is, or would be: beside the running one."""
    from sysconfig import get_path

    started = Path(sys.argv[0])
    directory = started.parent if started.name in PROGRAM_MODULES else Path(get_path("scripts"))
    return (directory / name).absolute()
