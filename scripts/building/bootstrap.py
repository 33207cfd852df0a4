"""Unpack xnatfs, which has come as one file, and run it. Python runs this module of that file; Python 3.6 can parse it.

Compiled modules cannot be loaded out of a zip. So the packages are unpacked once for each build, into a directory that
only this user can write to; from then on a start costs what it costs where pip has installed them.
"""

import os
import sys

BUILD = "@BUILD@"  # version, and a digest of the packages
OLDEST = (3, 11)
PROGRAMS = {"xnatctl": "main_xnatctl", "mount.xnatfs": "main_mount", "mount.fuse.xnatfs": "main_mount"}


def use_a_newer_python() -> None:
    """Run this file again by a newer Python of PATH, where `python3` is an old one."""
    import shutil

    for minor in range(OLDEST[1] + 9, OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found:
            os.execv(found, [found, *sys.argv])
    sys.exit(f"xnatfs: it needs Python 3.11 or later, and this is {sys.version.partition(' ')[0]}")


def is_private(directory: str) -> bool:
    """Return whether only this user, or root, can have put anything into a directory."""
    status = os.lstat(directory)
    return status.st_uid in (0, os.getuid()) and status.st_mode & 0o170022 == 0o040000


def unpack(source: str, directory: str) -> None:
    """Unpack the packages. Of several processes that do so at the same time one is first, and the others use that."""
    import shutil
    import tempfile
    import zipfile

    place = os.path.dirname(directory)
    os.makedirs(place, 0o700, exist_ok=True)
    made = tempfile.mkdtemp(prefix=".new-", dir=place)
    try:
        with zipfile.ZipFile(source) as outer, outer.open("packages.zip") as stream:
            zipfile.ZipFile(stream).extractall(made)
        os.rename(made, directory)
    except OSError:
        if not os.path.isdir(directory):
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def find(source: str) -> str:
    """Return the directory of the packages, unpacked if need be."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    temporary = os.path.join(os.environ.get("TMPDIR") or "/tmp", f"xnatfs-program-{os.getuid()}")
    reasons = []
    for place in (os.path.join(cache, "xnatfs-program"), temporary):
        directory = os.path.join(place, BUILD)
        try:
            if not os.path.isdir(directory):
                unpack(source, directory)
            if is_private(place) and is_private(directory):
                return directory
            reasons.append(f"{directory} can be written by others")
        except OSError as error:
            reasons.append(str(error))
    sys.exit(f"xnatfs: it cannot be unpacked: {'; '.join(reasons)}")


def main() -> None:
    if sys.version_info < OLDEST:
        use_a_newer_python()
    if not sys.executable:  # mount(8) starts its helpers without PATH
        sys.executable = os.path.realpath("/proc/self/exe")
    source = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [find(source), *(each for each in sys.path if os.path.abspath(each or ".") != source)]
    os.environ["XNATFS_FILE"] = os.path.realpath(source)
    from xnatfs import cli

    program = PROGRAMS.get(os.path.basename(sys.argv[0]), "main")
    sys.exit(getattr(cli, program)())


if __name__ == "__main__":
    main()
