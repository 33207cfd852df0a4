"""Print what a directory tree holds, as a program sees it: a JSON list of entries, to compare with another."""

import errno
import hashlib
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

# Files that xnatfs makes from listings: left out unless they are asked for.
MADE = {"session.json", "session.xml", "scans.tsv", "subjects.tsv", "sessions.tsv"}
# Views that show the files of `projects` under other names: left out where a mount is walked as a whole.
OTHER_VIEWS = {"bids"}
KINDS = {stat.S_IFDIR: "dir", stat.S_IFREG: "file", stat.S_IFLNK: "link"}


def walk(root: Path, read: bool, made: bool = False) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    pending = [root]
    while pending:
        directory = pending.pop()
        try:
            names = sorted(os.listdir(directory))
        except OSError as error:
            entries.append({"path": relative(directory, root), "error": errno.errorcode[error.errno or 0]})
            continue
        for name in names:
            if (name in MADE or (directory == root and name in OTHER_VIEWS)) and not made:
                continue
            path = directory / name
            entry = look(path, root)
            if entry["kind"] == "dir":
                pending.append(path)
            elif entry["kind"] == "file" and read:
                try:
                    entry["md5"] = digest(path)
                except OSError as error:
                    entry["error"] = errno.errorcode[error.errno or 0]
            entries.append(entry)
    return entries


def look(path: Path, root: Path) -> dict[str, Any]:
    status = os.lstat(path)
    entry: dict[str, Any] = {
        "path": relative(path, root),
        "kind": KINDS[stat.S_IFMT(status.st_mode)],
        "mode": stat.S_IMODE(status.st_mode),
        "mtime": status.st_mtime,
        "inode": status.st_ino,
        "nlink": status.st_nlink,
    }
    if entry["kind"] == "file":
        entry |= {"size": status.st_size, "blocks": status.st_blocks}
    if entry["kind"] == "link":
        entry["target"] = os.readlink(path)
    return entry


def relative(path: Path, root: Path) -> list[str]:
    return list(path.relative_to(root).parts)


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


if __name__ == "__main__":
    print(json.dumps(walk(Path(sys.argv[-1]), "--read" in sys.argv, "--made" in sys.argv)))
