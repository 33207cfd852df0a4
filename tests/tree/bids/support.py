"""Make small archives of converted images, and read the view bids/ of them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.wire import Wire
from xnatfs.common.errors import Stale
from xnatfs.demo.archive.model import Archive, Experiment, Resource, Scan, User
from xnatfs.demo.server.app import DemoXnat
from xnatfs.settings.config import Config
from xnatfs.settings.credentials import Credentials
from xnatfs.site import Site, open_site
from xnatfs.tree import Root
from xnatfs.tree.node import Dir, File, Node


def archive() -> Archive:
    """Make a project P without subjects."""
    made = Archive()
    made.users["u"] = User("u", "p")
    made.project("P", "Project of images", u="Owners")
    return made


def resource(made: Archive, scan: Scan, label: str) -> Resource:
    found = next((each for each in scan.resources if each.label == label), None)
    return found or made.resource(scan.resources, label, label)


def convert(made: Archive, scan: Scan, *stems: str, apart: bool = True, **fields: object) -> None:
    """Add images to a scan, each with its sidecar: in a resource of its own, as XNAT's converter does, or beside it."""
    for stem in stems:
        made.file(resource(made, scan, "NIFTI"), f"{stem}.nii.gz", f"image {scan.id} {stem}".encode())
        label = "BIDS" if apart else "NIFTI"
        made.file(resource(made, scan, label), f"{stem}.json", json.dumps({"stem": stem, **fields}).encode())


def session(made: Archive, subject: str = "S1", label: str = "E1") -> Experiment:
    """Add a session, and its subject if it is new."""
    project = made.projects["P"]
    found = next((each for each in made.subjects.values() if each.label == subject), None)
    return made.experiment(found or made.subject(project, subject), label)


def put_map(made: Archive, project: str = "P", **lines: str) -> None:
    """Set the map of a project or, with '', of the site; blanks in descriptions stand as underscores."""
    text = [{"series_description": key.replace("_", " "), "bidsname": name} for key, name in lines.items()]
    made.configurations.put("bids", "bidsmap", json.dumps(text), project=project)


@asynccontextmanager
async def opened(made: Archive, cache: Path) -> AsyncIterator[tuple[Site, DemoXnat]]:
    demo = DemoXnat(made)
    config = Config("http://xnat", cache_dir=cache, timeout=5.0)
    async with open_site(config, Credentials("u", "p"), Wire(demo)) as site:
        yield site, demo


async def find(site: Site, path: str) -> Node:
    node: Node = Root(site)
    for name in path.split("/"):
        assert isinstance(node, Dir)
        node = await node.child(name)
    return node


async def tree(directory: Node, prefix: str = "") -> dict[str, File]:
    """Return all files below a directory by their paths."""
    assert isinstance(directory, Dir)
    found: dict[str, File] = {}
    for node in (await directory.children()).listed():
        if isinstance(node, File):
            found[f"{prefix}{node.name}"] = node
        else:
            found |= await tree(node, f"{prefix}{node.name}/")
    return found


async def content(node: Node) -> bytes:
    assert isinstance(node, File)
    try:
        blob = await node.open()
    except Stale:
        assert node.parent is not None
        return await content(await node.parent.child(node.name))
    try:
        return await blob.read(0, blob.size + 1)
    finally:
        blob.close()
