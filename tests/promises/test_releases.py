"""Show and read the whole archive through each release of XNAT that the demo can be."""

import errno
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.commanding import LABEL, OWNER, SESSION, Shell, received, shell
from tests.support.demos import USER
from tests.support.manifest import ManifestEntry, manifest
from tests.support.wire import Wire
from tests.transfer.test_download import DOWNLOAD, files, truth
from xnatfs.common.errnos import errno_of
from xnatfs.common.errors import XnatError
from xnatfs.demo.fixtures.lab import PASSWORDS, DemoArchive
from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.releases import XNAT_1_8, Release
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.settings.views import ViewOptions
from xnatfs.site import Site, open_site
from xnatfs.tree import Root
from xnatfs.tree.node import Dir, File, Link, Node

Names = tuple[str, ...]


@dataclass(frozen=True)
class SeenEntry:
    """An entry of the tree, as a program sees it."""

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


async def walk(node: Node, path: Names = ()) -> dict[Names, SeenEntry]:
    """Walk everything below a directory, and read files whole."""
    if isinstance(node, Link):
        return {path: SeenEntry("link", target=await node.follow())}
    if isinstance(node, File):
        return {path: await read(node)}
    assert isinstance(node, Dir)
    try:
        nodes = (await node.children()).nodes
        below = {name: nodes[name] for name in nodes}
    except XnatError as error:
        return {path: SeenEntry("dir", error=errno.errorcode[errno_of(error)])}
    found = {path: SeenEntry("dir")}
    for name, child in below.items():
        if child.is_generated:  # of listings that are compared themselves
            continue
        found |= await walk(child, (*path, name))
    return found


async def read(file: File) -> SeenEntry:
    try:
        blob = await file.open()
        try:
            content = await blob.read(0, 2**26)
        finally:
            blob.close()
    except XnatError as error:
        return SeenEntry("file", error=errno.errorcode[errno_of(error)])
    return SeenEntry("file", len(content), hashlib.md5(content).hexdigest())


# Files of one resource that no URL names. The tar of an old release ends before them, at a name that is too long, and
# what comes by their number in the list is told from the others by nothing: its server states neither name nor digest.
BEYOND_THE_TAR = ("back\\slash.txt", "new\nline.txt")


def expected(entry: ManifestEntry, digests: bool, release: Release) -> SeenEntry:
    error = entry.error
    if release.tar_name and entry.path[-1] in BEYOND_THE_TAR:
        error = "EIO"
    if not digests and entry.path[-1].startswith("wrong-digest"):
        error = ""  # bytes that are not as the catalogue says cannot be told from others
    if entry.kind != "file" or error:
        return SeenEntry(entry.kind, target=entry.target, error=error)
    return SeenEntry("file", entry.size, entry.md5)


def with_pages(archive: DemoArchive) -> None:
    """Add files that look like answers of the server itself."""
    session = archive.experiments["DEMO_E00002"]
    reports = archive.resource(session.resources, "reports")
    archive.file(reports, "report.html", b"<html><h3>All is well.</h3></html>")
    archive.file(reports, "empty.html", b"")
    archive.file(reports, "plots.xml", b"<plots/>")
    archive.file(reports, "table.json", b'{"ResultSet": {"Result": []}}')


@pytest.mark.parametrize("digests", [True, False], ids=["digests", "no digests"])
async def test_the_tree_of_the_whole_archive(release, digests, tmp_path):
    archive = DemoArchive()
    with_pages(archive)
    digests = digests and release.lists_digests
    async with opened(DemoXnat(archive, release=release, digests=digests), tmp_path) as site:
        site.views = ViewOptions(("projects", "experiments", "subjects", "prearchive"))
        await walk(Root(site))  # what is there because it is shared is known after that
        found = await walk(Root(site))
    wanted = {entry.path: expected(entry, digests, release) for entry in manifest(archive, USER)}
    del found[()]
    assert found.keys() == wanted.keys()
    assert {path: (found[path], seen) for path, seen in wanted.items() if found[path] != seen} == {}


# -- xnatctl -----------------------------------------------------------------------------------------------------

LISTS = (
    ("whoami",),
    ("project", "list"),
    ("project", "show", "MYPROJECT"),
    ("subject", "list", "-P", "MYPROJECT"),
    ("subject", "show", "SUB001", "-P", "MYPROJECT"),
    ("session", "list", "-P", "MYPROJECT"),
    ("session", "show", "-E", LABEL, "-P", "MYPROJECT"),
    ("scan", "list", "-E", SESSION),
    ("resource", "list", "-E", SESSION),
    ("resource", "list", "-E", SESSION, "--scan", "1"),
    ("resource", "show", "-E", SESSION, "--scan", "1", "NIFTI"),
    ("prearchive", "list", "-P", "MYPROJECT"),
)


def said(prompt: Shell, words: Names) -> str:
    """Return what a command prints, without times and the name of the server."""
    out = prompt.ctl(*words, "-o", "json").out.replace(prompt.url, "URL")
    if not prompt.app.site.release.lists_digests:
        assert '"digest": null,' in out or "digest" not in out
    out = re.sub(r'"digest": (null|"[0-9a-f]*")', '"digest": ...', out)
    return re.sub(r"\d{8}_\d{9}|\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?", "TIME", out)


def test_lists_of_xnatctl_are_the_same(release, tmp_path):
    outputs: list[dict[Names, str]] = []
    for each in (XNAT_1_8, release):
        home = tmp_path / f"{each.name}-{len(outputs)}"
        home.mkdir()
        with shell(home, release=each) as prompt:
            received(prompt, "W")
            outputs.append({words: said(prompt, words) for words in LISTS})
    assert outputs[1] == outputs[0]
    assert all(len(output) > 2 for output in outputs[0].values())


def test_a_session_is_downloaded_whole_and_then_up_to_date(release, tmp_path):
    with shell(tmp_path, release=release) as prompt:
        prompt.ctl(*DOWNLOAD)
        assert files(tmp_path / "data" / SESSION) == truth(prompt)
        again = prompt.ctl(*DOWNLOAD, "-o", "json").rows
        assert (again["copied"], again["up_to_date"]) == (0, len(truth(prompt)))
        entry = prompt.session().scans[0].resources[0].entries[0]
        (tmp_path / "data" / SESSION / "scans/1/resources/DICOM/files" / entry.path).unlink()
        assert prompt.ctl(*DOWNLOAD, "-o", "json").rows["copied"] == 1
        assert files(tmp_path / "data" / SESSION) == truth(prompt)


def test_errors_of_xnatctl_have_the_servers_words(release, tmp_path):
    with shell(tmp_path, release=release) as prompt:
        missing = prompt.ctl("session", "list", "-P", "NOSUCH", status=5)
        assert "project NOSUCH not found" in missing.err
        prompt.app.archive.experiments[SESSION].scans[0].resources[0].broken = True
        broken = prompt.ctl("resource", "show", "-E", SESSION, "--scan", "1", "DICOM", status=5)
        assert "Unable to find file." in broken.err
        for err in (missing.err, broken.err):
            assert len(err.splitlines()) == 1
            assert "Tomcat" not in err
        prompt.env["XNAT_PASS"] = "wrong"
        refused = prompt.as_user(OWNER).start("project", "list")
        assert refused.status != 0
        assert "refused the login of jane" in refused.err


async def test_a_login_ends_and_begins_again(release, tmp_path):
    """Renew a session that has died, on a closed site and on an open one."""
    for require_login in (True, False):
        demo = DemoXnat(DemoArchive(), release=release, require_login=require_login)
        async with opened(demo, tmp_path / str(require_login)) as site:
            assert await site.xnat.username() == USER
            before = {project.id for project in await site.xnat.projects()}
            demo.sessions.end_all()
            assert {project.id for project in await site.xnat.projects()} == before or not require_login
            assert await site.xnat.session_lives() or not require_login
            assert {project.id for project in await site.xnat.projects()} == before


async def test_an_alias_token_logs_in(release, tmp_path):
    demo = DemoXnat(DemoArchive(), release=release)
    async with opened(demo, tmp_path / "first") as site:
        alias, secret = await site.xnat.issue_token()
        await site.xnat.invalidate_token((await site.xnat.issue_token())[0])
    config = Config("http://xnat.example.org", cache_dir=tmp_path / "second", timeout=5.0)
    async with open_site(config, Credentials(alias, secret), Wire(demo)) as site:
        assert await site.xnat.username() == USER
