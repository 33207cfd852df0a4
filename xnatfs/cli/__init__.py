"""Run the programs xnatfs and xnatctl."""

import gc
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run xnatfs."""
    return _run("xnatfs", argv)


def main_xnatctl(argv: Sequence[str] | None = None) -> int:
    """Run xnatctl."""
    return _run("xnatctl", argv)


def main_mount(argv: Sequence[str] | None = None) -> int:
    """Run mount.xnatfs, for mount(8)."""
    return _run("mount.xnatfs", argv)


def _run(program: str, argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    gc.disable()  # until all is imported: that stays alive, so a collection finds nothing, and costs 15 of 100 ms
    try:
        if program == "mount.xnatfs":
            from xnatfs.cli.host import helper

            return helper.main(words)
        from xnatfs.cli import run  # imports for a tenth of a second, in which Ctrl-C may be typed

        return run.run_xnatctl(words) if program == "xnatctl" else run.run_xnatfs(words)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130  # run.INTERRUPTED, which may not have been imported yet
    finally:
        gc.enable()
