"""Serve a file inside a zip inside a resource: `data.zip!/inner` or `data.zip/inner` (XNAT REST contract 6.6).

A folder named like a zip is not supported: files in `folder.zip/` cannot be addressed by name.
"""

import io
import re
import zipfile
from pathlib import Path

from xnatfs.demo.archive.entries import Entry
from xnatfs.demo.rest.tables import Query, table
from xnatfs.demo.server.reply import Failed, Reply, Slice

INNER = re.compile(r"(.*?\.(?:zip|jar|rar|ear|gar|mrb))!?/(.+)", re.IGNORECASE)


def split(path: str) -> tuple[str, str]:
    """Return the path of the archive and the path within it, which is "" for the archive itself."""
    match = INNER.fullmatch(path)
    return (match[1], match[2]) if match else (path, "")


def inner(entry: Entry, name: str) -> Entry:
    """Return a file of the archive as an entry. Raises Failed if there is none."""
    with _opened(entry) as opened:
        if name not in opened.namelist():
            raise Failed(404, "Unable to find catalog entry for given uri.")
        content = opened.read(name)
    return Entry(name, content, str(len(content)), "", entry.modified)


def contents(entry: Entry, query: Query) -> Reply:
    with _opened(entry) as opened:
        rows = [{"File Name": info.filename, "Size": str(info.file_size)} for info in opened.infolist()]
    return table(rows, query, columns=("File Name", "Size"), ordered=True)


def _opened(entry: Entry) -> zipfile.ZipFile:
    if entry.lost or entry.content is None:
        raise Failed(404, "Unable to find file.", empty=True)
    try:
        if isinstance(entry.content, Path):
            return zipfile.ZipFile(entry.content)
        return zipfile.ZipFile(io.BytesIO(b"".join(Slice.whole(entry.content).pieces())))
    except zipfile.BadZipFile:
        raise Failed(404, "Unable to find file.", empty=True) from None
