"""Provide an XNAT of a few lines, whose every answer a test writes, for what a well-behaved server does not show."""

import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote

import httpx

from tests.support.wire import Wire
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.site import Site, open_site

URL = "https://xnat.example.org"
MODIFIED = "Tue, 02 Jan 2024 03:04:05 GMT"

Rows = list[dict[str, str]]


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Scripted:
    """Lists by path below /data, files by resource and path; whatever else is 404. It records the requests."""

    def __init__(self) -> None:
        self.lists: dict[str, Rows | int] = {
            "projects": [{"ID": "P"}],
            "projects/P/subjects": [
                {"ID": "X_S1", "label": "S", "project": "P", "insert_date": "2024-01-02 03:04:05.0"}
            ],
            "projects/P/experiments": [session("X_E1", "E")],
            "experiments/X_E1/scans": [{"ID": "1", "type": "T1"}],
            "experiments/X_E1/assessors": [],
            "experiments/X_E1/resources": [resource("7", "DICOM", cat_id="1")],
            "experiments/X_E1/files": [],
        }
        self.files: dict[tuple[str, str], bytes] = {}
        self.answers: dict[str, Callable[[httpx.Request], httpx.Response]] = {}  # by path, before all else
        self.by_pattern: list[tuple[str, Callable[[httpx.Request], httpx.Response]]] = []  # then these
        self.modified = MODIFIED
        self.asked: list[str] = []

    def add(
        self,
        path: str,
        content: bytes,
        *,
        number: str = "7",
        scan: str = "1",
        size: str | None = None,
        digest: str | None = None,
    ) -> None:
        """Add a file to a resource of a scan, listed with its true size and digest by default."""
        self.files[number, path] = content
        rows = self.lists["experiments/X_E1/files"]
        assert isinstance(rows, list)
        rows.append(
            {
                "Name": path.rpartition("/")[2],
                "Size": str(len(content)) if size is None else size,
                "digest": md5(content) if digest is None else digest,
                "URI": f"/data/experiments/X_E1/scans/{scan}/resources/{number}/files/{path}",
                "cat_ID": number,
            }
        )

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.decode().partition("?")[0].removeprefix("/data/")
        if path == "JSESSION":
            return httpx.Response(200, text="A" * 32)
        if path == "/xapi/users/username":
            return httpx.Response(200, text="u")
        self.asked.append(f"{request.method} {path}")
        if path in self.answers:
            return self.answers[path](request)
        for pattern, answer in self.by_pattern:
            if re.fullmatch(pattern, path):
                return answer(request)
        if match := re.fullmatch(r".*/resources/(\d+)/files/(.+)", path):
            return self._file(request, match[1], unquote(match[2]))
        found = self.lists.get(path, 404)
        if isinstance(found, int):
            return httpx.Response(found, html="<html>")
        return httpx.Response(200, json={"ResultSet": {"Result": found}})

    def _file(self, request: httpx.Request, number: str, path: str) -> httpx.Response:
        content = self.files.get((number, path))
        if content is None:
            return httpx.Response(404, html="<html><h3>Unable to find file.</h3>")
        headers = {"last-modified": self.modified, "content-length": str(len(content))}
        return httpx.Response(200, headers=headers, content=b"" if request.method == "HEAD" else content)

    def forget_requests(self) -> None:
        self.asked.clear()


def subject(accession: str, label: str, project: str = "P") -> dict[str, str]:
    return {"ID": accession, "label": label, "project": project, "insert_date": "2024-01-02 03:04:05.0"}


def session(accession: str, label: str, subject: str = "X_S1", **more: str) -> dict[str, str]:
    return {
        "ID": accession,
        "label": label,
        "xsiType": "xnat:mrSessionData",
        "subject_ID": subject,
        "subject_label": "S",
        **more,
    }


def resource(number: str, label: str, category: str = "scans", cat_id: str = "") -> dict[str, str]:
    return {"xnat_abstractresource_id": number, "label": label, "category": category, "cat_id": cat_id}


@asynccontextmanager
async def opened(server: Scripted, directory: Path) -> AsyncIterator[Site]:
    config = Config(URL, cache_dir=directory, timeout=5.0)
    async with open_site(config, Credentials("u", "p"), Wire(server)) as site:
        yield site
