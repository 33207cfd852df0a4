"""Mount as mount(8), systemd and autofs do it: `mount.xnatfs SOURCE DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`.

mount(8) starts a program of this name for the type `xnatfs` in /etc/fstab, or `mount.fuse.xnatfs` for `fuse.xnatfs`.
"""

import argparse
import getopt
import os
from collections.abc import Sequence

from xnatfs.cli import options
from xnatfs.common.errors import ConfigError

USAGE = "usage: mount.xnatfs URL DIR [-sfnv] [-o OPTION[,OPTION...]]"
# Sources that name no server: the profile does.
NO_SOURCE = {"none", "xnatfs"}
# Exit statuses of mount(8): a wrong invocation, an interrupt, and all other failures.
WRONG_USE, MOUNT_INTERRUPTED, FAILED = 1, 8, 32


def main(words: Sequence[str]) -> int:
    """Mount; return an exit status of mount(8)."""
    from xnatfs.cli import run, streams

    streams.open_missing()
    if not os.environ.get("HOME"):  # as at the boot
        os.environ.pop("HOME", None)
    try:
        command = translate(words)
    except (ConfigError, getopt.GetoptError) as error:
        streams.report(f"mount.xnatfs: {error} ({USAGE})")
        return WRONG_USE
    status = run.run_xnatfs(command) if command else 0
    return {0: 0, run.EXIT_STATUS[ConfigError]: WRONG_USE, run.INTERRUPTED: MOUNT_INTERRUPTED}.get(status, FAILED)


def translate(words: Sequence[str]) -> list[str]:
    """Return the command line of xnatfs for one of mount(8); none if nothing is to be mounted (-f).

    Raises ConfigError, and GetoptError for an unknown flag.
    """
    flags, places = getopt.gnu_getopt(list(words), "sfnvo:N:t:")
    if len(places) != 2:
        raise ConfigError("give one URL and one directory")
    source, directory = places
    given = [text for flag, text in flags if flag == "-o" and text]
    switches = {flag for flag, _ in flags}
    if "-s" in switches:
        given = [text for option in given for text in options.split_options(option) if _is_known(text)]
    command = ["mount", *([] if source in NO_SOURCE else ["--url", source])]
    command += [word for text in given for word in ("-o", text)]
    command += [*([] if "-v" in switches else ["--quiet"]), os.path.abspath(directory)]
    if "-f" not in switches:
        return command
    for text in given:
        _apply(text)
    return []


def _apply(text: str) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    options.add_server(parser)
    options.add_mount(parser)
    options.apply_mount_options(parser.parse_args(["-o", text]))


def _is_known(text: str) -> bool:
    """Return whether this is an option; -s asks to tolerate any other."""
    try:
        _apply(text)
    except ConfigError as error:
        return not str(error).endswith("no such option")
    return True
