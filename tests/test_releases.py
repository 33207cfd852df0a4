"""Each release of XNAT that the demo can be: the whole archive shows, and reads, the same through all of them."""

import errno
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.commanding import Shell, shell
from tests.demos import USER
from tests.wire import Wire
from xnatfs.config import Config
from xnatfs.credentials import Credentials
from xnatfs.demo.app import DemoXnat
from xnatfs.demo.content import PASSWORDS, DemoArchive
from xnatfs.demo.manifest import ManifestEntry
from xnatfs.demo.releases import Release
from xnatfs.errors import XnatError
from xnatfs.fuse.operations import errno_of
from xnatfs.site import Site, open_site
from xnatfs.tree import Root
from xnatfs.tree.node import Dir, File, Link, Node

Names = tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """One entry of the tree, as a program would see it."""

    kind: str
    size: int = 0
    md5: str = ""
    target: str = ""
    error: str = ""


@asynccontextmanager
async def opened(demo: DemoXnat, directory: Path) -> AsyncIterator[Site]:
    config = Config("http://xnat.example.org", cache_dir=directory, timeout=5.0)
    async with open_site(config, Credentials(USER, PASSWORDS[USER]), Wire(demo)) as site:
        yield site


async def walk(node: Node, path: Names = ()) -> dict[Names, Seen]:
    """Everything below a directory, files read whole."""
    if isinstance(node, Link):
        return {path: Seen("link", target=node.target)}
    if isinstance(node, File):
        return {path: await read(node)}
    assert isinstance(node, Dir)
    try:
        nodes = (await node.children()).nodes
        below = {name: nodes[name] for name in nodes}
    except XnatError as error:
        return {path: Seen("dir", error=errno.errorcode[errno_of(error)])}
    found = {path: Seen("dir")}
    for name, child in below.items():
        found |= await walk(child, (*path, name))
    return found


async def read(file: File) -> Seen:
    try:
        blob = await file.open()
        try:
            content = await blob.read(0, 2**26)
        finally:
            blob.close()
    except XnatError as error:
        return Seen("file", error=errno.errorcode[errno_of(error)])
    return Seen("file", len(content), hashlib.md5(content).hexdigest())


def expected(entry: ManifestEntry, release: Release) -> Seen:
    error = entry.error
    if not release.lists_digests and entry.path[-1].startswith("wrong-digest"):
        error = ""  # bytes that are not as the catalogue says cannot be told from others
    if entry.kind != "file" or error:
        return Seen(entry.kind, target=entry.target, error=error)
    return Seen("file", entry.size, entry.md5)


def with_pages(archive: DemoArchive) -> None:
    """Files that look like answers of the server itself."""
    session = archive.experiments["DEMO_E00002"]
    reports = archive.resource(session.resources, "reports")
    archive.file(reports, "report.html", b"<html><h3>All is well.</h3></html>")
    archive.file(reports, "empty.html", b"")
    archive.file(reports, "plots.xml", b"<plots/>")
    archive.file(reports, "table.json", b'{"ResultSet": {"Result": []}}')


async def test_the_tree_of_the_whole_archive(release, tmp_path):
    archive = DemoArchive()
    with_pages(archive)
    async with opened(DemoXnat(archive, release=release), tmp_path) as site:
        await walk(Root(site))  # what links lead to is known after that
        found = await walk(Root(site))
    wanted = {entry.path: expected(entry, release) for entry in archive.manifest(USER)}
    del found[()]
    assert found.keys() == wanted.keys()
    assert {path: (found[path], seen) for path, seen in wanted.items() if found[path] != seen} == {}
