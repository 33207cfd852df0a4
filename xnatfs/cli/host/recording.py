"""Record replies of a server for a report to the developers, without names, IDs, dates and secrets.

Only what is known to be the same on all servers is kept as it is: keys, routes, types of data. Every other text becomes
a pseudonym, the same one each time, so that it shows still which rows belong together.
"""

import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xnatfs.common.errors import ConfigError, XnatError
from xnatfs.common.files import write_private
from xnatfs.http.probe import RawReply, fetch_raw
from xnatfs.http.transport import Transport

# The longest reply to record, in bytes, and the most rows of each list.
MAX_RECORDED_BYTES = 16 * 2**20
MAX_RECORDED_ROWS = 5
# Keys whose values reveal nothing about a person, a project or a site.
KEPT_KEYS = {
    *("version", "format", "content", "xsiType", "xsitype", "element_name", "type_category", "category", "cat_desc"),
    *("quality", "modality", "file_count", "file_size", "Size", "collection", "totalRecords", "status"),
}
KEPT_HEADERS = {"server", "content-type", "content-length", "accept-ranges", "vary", "transfer-encoding", "location"}
# Segments of addresses that are routes of XNAT.
ROUTES = {
    *("data", "REST", "xapi", "archive", "projects", "subjects", "experiments", "scans", "assessors", "resources"),
    *("files", "users", "username", "in", "out", "siteConfig", "buildInfo"),
}
KNOWN_WORD = re.compile(r"(?i)|true|false|null|xnat:\w+|(application|text|image)/[\w.+-]+|DICOM|NIFTI|SNAPSHOTS|usable")
SUFFIX = re.compile(r"\.(dcm|nii|nii\.gz|json|xml|csv|tsv|txt|gif|png|jpg|zip|bval|bvec)$", re.IGNORECASE)


class Scrubber:
    """Replace texts by pseudonyms; one text has one pseudonym."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def value(self, value: Any, key: str = "") -> Any:
        """Scrub a JSON value."""
        if isinstance(value, Mapping):
            # Keys are XNAT's own, except where an object is a table of names.
            return {self._key(str(name)): self.value(each, str(name)) for name, each in value.items()}
        if isinstance(value, list):
            return [self.value(each, key) for each in value]
        if isinstance(value, str):
            return self._text(value, key)
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in KEPT_KEYS:
            return self._number(str(value))
        return value

    def path(self, text: str) -> str:
        """Scrub an address, segment by segment."""
        place = re.sub(r"^\w+://[^/]*", "", text).partition("?")[0]
        return "/".join(part if part in ROUTES else self._name(part) for part in place.split("/"))

    def _key(self, name: str) -> str:
        return name if re.fullmatch(r"[A-Za-z][A-Za-z_:/.]{0,60}", name) else self._name(name)

    def _text(self, text: str, key: str) -> str:
        if key in KEPT_KEYS or KNOWN_WORD.fullmatch(text):
            return text if len(text) < 100 and "/" not in text.replace("application/", "") else self._name(text)
        if re.fullmatch(r"[\d\s:./T+-]*\d[\d\s:./T+-]*", text):
            return self._number(text)
        return self.path(text) if "/" in text else self._name(text)

    def _number(self, text: str) -> str:
        """Return other digits in the same form."""
        if re.search(r"[-:/]", text):
            return re.sub(r"\d", "0", text)
        number = self._names.setdefault(f"number {text}", str(len(self._names) + 1))
        return re.sub(r"\d+", number.zfill(sum(map(str.isdigit, text))), text, count=1) if text.isdigit() else number

    def _name(self, text: str) -> str:
        if not text:
            return ""
        suffix = SUFFIX.search(text)
        return self._names.setdefault(text, f"name{len(self._names) + 1}") + (suffix[0].lower() if suffix else "")


async def collect(transport: Transport) -> list[tuple[str, str]]:
    """Fetch the routes that a mount uses, of one session; return a file name and its scrubbed text for each."""
    scrubber = Scrubber()
    found: list[tuple[str, str]] = []
    async for name, path, reply in _replies(transport):
        cells = {
            "path": scrubber.path(path),
            "status": reply.status,
            "headers": _headers(reply.headers, scrubber),
            "characters": reply.characters,
            "body": scrubber.value(_shortened(reply.body)),
        }
        found.append((f"{len(found) + 1:02d}-{name}.json", json.dumps(cells, indent=1) + "\n"))
    return found


def write(directory: Path, files: Sequence[tuple[str, str]]) -> None:
    """Write files that only this user can read to a directory, which is made. Raises ConfigError."""
    try:
        for name, text in files:
            write_private(directory / name, text)
    except OSError as error:
        raise ConfigError(f"cannot write to {directory}: {error.strerror}") from None


async def _replies(transport: Transport) -> AsyncIterator[tuple[str, str, RawReply]]:
    """Yield the name, the path and the reply of each route, down to the files of the first session that is found."""
    replies: dict[str, RawReply] = {}

    async def fetch(name: str, path: str, **params: str) -> tuple[str, str, RawReply]:
        try:
            replies[name] = await fetch_raw(transport, path, params, MAX_RECORDED_BYTES)
        except XnatError as error:
            replies[name] = RawReply(error.status or 0, {}, {"error": type(error).__name__}, 0)
        return name, path, replies[name]

    yield await fetch("buildInfo", "/xapi/siteConfig/buildInfo")
    yield await fetch("username", "/xapi/users/username")
    yield await fetch("projects", "/data/projects", format="json")
    for project in _ids(replies["projects"])[:MAX_RECORDED_ROWS]:
        below = f"/data/projects/{project}"
        found = await fetch("experiments", f"{below}/experiments", format="json")
        sessions = _ids(replies["experiments"], "Session") or _ids(replies["experiments"])
        if not sessions:
            continue
        yield await fetch("subjects", f"{below}/subjects", format="json")
        yield found
        session = f"/data/experiments/{sessions[0]}"
        for name in ("scans", "assessors"):
            yield await fetch(name, f"{session}/{name}", format="json")
        for name in ("resources", "files"):
            yield await fetch(name, f"{session}/{name}", format="json", all="true")
        return


def _rows(body: Any) -> list[Any]:
    rows = body.get("ResultSet", {}).get("Result", []) if isinstance(body, dict) else []
    return rows if isinstance(rows, list) else []


def _ids(reply: RawReply, kind: str = "") -> list[str]:
    """Return the IDs of a list, of those rows whose type contains `kind`."""
    rows = [row for row in _rows(reply.body) if isinstance(row, dict)]
    ids = [str(row.get("ID", "")) for row in rows if kind in str(row.get("xsiType", ""))]
    return [text for text in ids if re.fullmatch(r"[\w.-]+", text)]


def _shortened(body: Any) -> Any:
    if not _rows(body):
        return body
    return {**body, "ResultSet": {**body["ResultSet"], "Result": _rows(body)[:MAX_RECORDED_ROWS]}}


def _headers(headers: Mapping[str, str], scrubber: Scrubber) -> dict[str, str]:
    kept = {name: text for name, text in headers.items() if name in KEPT_HEADERS}
    return {name: scrubber.path(text) if name == "location" else text for name, text in kept.items()}
