"""Build what is given to others: wheels of xnatfs and pyfuse3, xnatfs as one file, and a Debian package of that.

The same checkout gives the same bytes: versions and digests of all that goes in are in `requirements.txt`, those of the
tools in `tools.txt`, and the time of everything is SOURCE_DATE_EPOCH, by default that of the last commit.
"""

import argparse
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.building import bare, deb, wheels
from scripts.building.bundle import bundle, check_glibc, packages
from xnatfs import __version__

ROOT = Path(__file__).parents[2]
ENDINGS = (".whl", ".pyz", ".deb")
WORK, DIST = ROOT / "build", ROOT / "dist"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/build", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="build twice, compare, and run it in a bare root (as root)"
    )
    parser.add_argument("--lock", action="store_true", help="take the newest versions of what goes in")
    parser.add_argument(
        "--system-libfuse", action="store_true", help="take this machine's libfuse, which may need a newer glibc"
    )
    arguments = parser.parse_args()
    if arguments.lock:
        wheels.lock(ROOT, WORK)
        return 0
    made = build(DIST, arguments.system_libfuse)
    print(f"{made} ({made.stat().st_size / 2**20:.1f} MiB)")
    if arguments.check:
        again = build(WORK / "again", arguments.system_libfuse)
        for one in sorted(each for each in DIST.iterdir() if each.suffix in ENDINGS):
            other = again.parent / one.name
            if one.read_bytes() != other.read_bytes():
                raise SystemExit(f"scripts/build: {one} and {other} differ")
        print("a second build is equal")
        bare.check(made, next(DIST.glob("*.deb")), WORK)
    return 0


@functools.cache  # a commit during a build would make it another one
def moment() -> int:
    """Return the time of all that is built, in seconds since the epoch."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return int(os.environ["SOURCE_DATE_EPOCH"])
    return int(subprocess.check_output(["git", "-C", ROOT, "log", "-1", "--format=%ct"]))


def build(target: Path, system_libfuse: bool) -> Path:
    """Build everything into a directory, and return the one file."""
    for directory in (target, WORK):
        directory.mkdir(parents=True, exist_ok=True)
    for old in (each for ending in ENDINGS for each in target.glob(f"*{ending}")):
        old.unlink()
    builder = wheels.Builder(ROOT, WORK, target, moment())
    pyfuse3 = builder.pyfuse3(system_libfuse)
    ours = builder.ours()
    made = target / f"xnatfs-{__version__}-linux-x86_64.pyz"
    files = packages([ours, pyfuse3, *builder.dependencies()])
    if not system_libfuse:
        check_glibc(files)
    bundle(files, __version__, made, moment())
    if shutil.which("dpkg-deb"):
        deb.package(made, ROOT / "docs/man", __version__, target / f"xnatfs_{__version__}_amd64.deb", moment())
    return made


if __name__ == "__main__":
    sys.exit(main())
