"""Pack packages into one file that Python runs: equal packages give equal bytes."""

import hashlib
import io
import os
import re
import stat
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).parent
SHEBANG = b"#!/usr/bin/env python3\n"
# Of the metadata of a package: what its own code asks for, and what its licence demands.
KEPT_METADATA = ("METADATA", "entry_points.txt")
LICENCE_NAMES = ("licen", "copying", "notice", "authors", "copyright")
# The glibc of the oldest system that the file runs on, RHEL 8; and how a compiled file names the versions it needs.
OLDEST_GLIBC = (2, 28)
_GLIBC = re.compile(rb"\0GLIBC_(\d+(?:\.\d+)+)(?=\0)")
# Packages that state their licence, and have no file of its text in their wheels.
WITHOUT_TEXT: frozenset[str] = frozenset()


def zipped(files: Mapping[str, bytes], moment: float, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip of these files, in the order of their names, all of one time."""
    out = io.BytesIO()
    date = time.gmtime(max(moment, 315532800))[:6]  # 1980 is as far as a zip goes back
    with zipfile.ZipFile(out, "w") as made:
        for name, content in sorted(files.items()):
            info = zipfile.ZipInfo(name, date)
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            made.writestr(info, content, compression, 9)
    return out.getvalue()


def packages(wheels: Iterable[Path]) -> dict[str, bytes]:
    """Return the files of wheels by their path, without what only installers need.

    Wheels of one version for several Pythons differ in their compiled modules, whose names tell them apart.
    """
    found: dict[str, bytes] = {}
    for wheel in sorted(wheels):
        with zipfile.ZipFile(wheel) as packed:
            for name in packed.namelist():
                if name.endswith("/") or not _is_kept(name):
                    continue
                content = packed.read(name)
                if found.setdefault(name, content) != content and not name.endswith("/METADATA"):
                    raise SystemExit(f"scripts/build: {wheel.name} has another {name} than a wheel before it")
    return found


def _is_kept(name: str) -> bool:
    directory, _, rest = name.partition("/")
    if directory.endswith(".dist-info"):
        return rest in KEPT_METADATA or _is_licence(rest)
    return not directory.endswith(".data") and not name.endswith((".pyx", ".pxd", ".pxi", ".c", ".h"))


def _is_licence(path: str) -> bool:
    return path.startswith("licenses/") or path.rpartition("/")[2].lower().startswith(LICENCE_NAMES)


def check_glibc(files: Mapping[str, bytes]) -> None:
    """Raise SystemExit if a compiled module or library needs a newer glibc than OLDEST_GLIBC."""
    for name, content in sorted(files.items()):
        if ".so" in name:
            needed = [tuple(map(int, found.split(b"."))) for found in _GLIBC.findall(content)]
            if max(needed, default=(0,)) > OLDEST_GLIBC:
                newest = ".".join(map(str, max(needed)))
                raise SystemExit(f"scripts/build: {name} needs glibc {newest}, and the oldest system has 2.28")


def licences(files: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    """Yield each distribution, and the texts of its licence. Raises SystemExit if one has none."""
    for metadata in sorted(name for name in files if name.endswith(".dist-info/METADATA")):
        directory = metadata.rpartition("/")[0]
        texts = [
            name
            for name in sorted(files)
            if name.startswith(f"{directory}/") and _is_licence(name[len(directory) + 1 :])
        ]
        stated = [
            line
            for line in files[metadata].decode().partition("\n\n")[0].splitlines()
            if line.startswith(("License: ", "License-Expression: ", "Classifier: License"))
        ]
        distribution = directory.removesuffix(".dist-info")
        if not stated and not texts:
            raise SystemExit(f"scripts/build: {distribution} states no licence")
        yield (
            distribution,
            "\n\n".join(["\n".join(stated), *(files[name].decode("utf-8", "replace") for name in texts)]),
        )


def bundle(files: Mapping[str, bytes], version: str, target: Path, moment: float) -> None:
    """Write the one file.

    Args:
        files: The packages.
        version: The version of xnatfs.
        target: The file to write.
        moment: The time of all that is in it, in seconds since the epoch.
    """
    runner = (HERE / "run_bundled.py").read_bytes()
    packed = zipped({**files, "run_bundled.py": runner}, moment)
    build = f"{version}-{hashlib.sha256(packed).hexdigest()[:16]}"
    main = (HERE / "bootstrap.py").read_text().replace("@BUILD@", build)
    texts = "".join(f"{'=' * 80}\n{name}\n{'=' * 80}\n\n{text}\n\n" for name, text in licences(files))
    # Stored: the packages are compressed already, and are read as a zip within the zip.
    outer = zipped(
        {"__main__.py": main.encode(), "packages.zip": packed, "LICENCES.txt": texts.encode()},
        moment,
        zipfile.ZIP_STORED,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    made = target.with_name(f".{target.name}")
    made.write_bytes(SHEBANG + outer)
    made.chmod(0o755)
    os.replace(made, target)
