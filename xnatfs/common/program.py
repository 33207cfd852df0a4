"""Name our own programs as the shell of the user finds them."""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

MODULES = {"xnatfs": "xnatfs", "xnatctl": "xnatfs.cli"}


def spell(name: str) -> str:
    """Return what calls one of our programs from the current directory, quoted for a shell.

    That is its name where PATH leads to the script beside this program's, else the script's path, else `python -m`.
    """
    started = Path(sys.argv[0])
    directory = started.parent if started.name in MODULES else Path(sysconfig.get_path("scripts"))
    script = (directory / name).absolute()
    if not os.access(script, os.X_OK):
        return f"{shlex.quote(sys.executable)} -m {MODULES[name]}"
    if (found := shutil.which(name)) and os.path.samefile(found, script):
        return name
    here = Path.cwd()
    return shlex.quote(str(script.relative_to(here) if script.is_relative_to(here) else script))
