"""Make a Debian package of the one file: the programs as links to it, their manual pages, and the helpers of mount."""

import gzip
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

FILE = "usr/lib/xnatfs/xnatfs.pyz"
LINKS = ("usr/bin/xnatfs", "usr/bin/xnatctl", "usr/sbin/mount.xnatfs", "usr/sbin/mount.fuse.xnatfs")
CONTROL = """\
Package: xnatfs
Version: {version}
Architecture: amd64
Maintainer: xnatfs developers <root@localhost>
Depends: python3 (>= 3.11), libc6 (>= 2.28), fuse3
Installed-Size: {size}
Section: science
Priority: optional
Description: mount an XNAT server as a local folder
 Projects, sessions, scans and files of an XNAT server as directories and files, and xnatctl, a client of it.
"""


def package(one_file: Path, manual: Path, version: str, target: Path, moment: int) -> None:
    """Write a package: equal files give equal bytes.

    Args:
        one_file: The one file.
        manual: The directory of the manual pages.
        version: The version of xnatfs.
        target: The package to write.
        moment: The time of all that is in it, in seconds since the epoch.
    """
    top = target.with_suffix(".tree")
    shutil.rmtree(top, ignore_errors=True)
    for name in ("DEBIAN", "usr/lib/xnatfs", "usr/bin", "usr/sbin", "usr/share/doc/xnatfs"):
        (top / name).mkdir(parents=True)
    shutil.copy(one_file, top / FILE)
    for name in LINKS:
        (top / name).symlink_to(os.path.relpath(FILE, Path(name).parent))
    for page in manual.iterdir():
        section = top / f"usr/share/man/man{page.suffix[1:]}"
        section.mkdir(parents=True, exist_ok=True)
        (section / f"{page.name}.gz").write_bytes(gzip.compress(page.read_bytes(), mtime=0))
    with zipfile.ZipFile(one_file) as packed:
        (top / "usr/share/doc/xnatfs/copyright").write_bytes(packed.read("LICENCES.txt"))
    control = CONTROL.format(version=version, size=one_file.stat().st_size >> 10)
    (top / "DEBIAN/control").write_text(control)
    for path in (top, *top.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.name == Path(FILE).name else 0o644)
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(top), str(target)]  # it is compressed already
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "SOURCE_DATE_EPOCH": str(moment)})
    shutil.rmtree(top)
