"""Renew what a mount shows, at once and not when its listings expire: in the daemon, and in the kernel.

The kernel remembers names, also absent ones, for as long as the daemon has allowed. It drops all that it knows below a
directory, of which no program has anything open, together with the entry of that directory.
"""

import logging
import os
from collections.abc import Callable, Collection, Hashable
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import FileNameT

from xnatfs.common.errors import NotFound
from xnatfs.common.mountinfo import all_mounts
from xnatfs.common.tasks import run_and_log_errors
from xnatfs.fuse.control.places import ancestors, find, rounds_of, split
from xnatfs.fuse.control.protocol import Message
from xnatfs.fuse.inodes import ROOT
from xnatfs.fuse.operations import Operations
from xnatfs.listings.keys import (
    AllExperimentsKey,
    AllSubjectsKey,
    BidsMapKey,
    ChildrenKey,
    ExperimentsKey,
    FoldersKey,
    FramesKey,
    GeneratedKey,
    ImageLabelsKey,
    LinkKey,
    LinksOfProjectKey,
    ListKey,
    NodePath,
    PrearchiveKey,
    ProjectsKey,
    ReceivedFilesKey,
    ReceivedResourcesKey,
    SessionLabelsKey,
    SubjectsKey,
    experiment_keys,
    item_keys,
    keys_below,
)
from xnatfs.listings.ttl_cache import Listing
from xnatfs.rest.models import Item
from xnatfs.site import Site
from xnatfs.tree.bids.dataset import Dataset, SessionFolder
from xnatfs.tree.bids.view import BidsProjects, BidsSessionDir, BidsSubjectDir, DatasetDir
from xnatfs.tree.names import encode
from xnatfs.tree.node import Dir, Node
from xnatfs.tree.projects import ProjectDir, Projects, SubjectDir
from xnatfs.tree.sessions import SessionDir

log = logging.getLogger(__name__)

# Nodes that are looked through between two checkpoints: a millisecond.
NODES_AT_ONCE = 10_000


class Refresher:
    """Renews what one mount shows.

    Args:
        site: Its server.
        operations: Its calls of the kernel.
        mountpoint: Its place.
        nursery: Runs the tasks that outlast a call.
    """

    def __init__(self, site: Site, operations: Operations, mountpoint: Path, nursery: trio.Nursery) -> None:
        self._site = site
        self._operations = operations
        self._mountpoint = mountpoint
        self._nursery = nursery

    @property
    def root(self) -> Dir:
        """Return the root of the tree."""
        root = self._operations.inodes[ROOT].node
        assert isinstance(root, Dir)
        return root

    async def refresh(self, path: str) -> Message:
        """Request the listings of a path anew, and have those below it requested when they are used next.

        Return when the new ones are served. If a request fails, what was shown stays.
        """
        node = await find(self.root, split(path))
        directory, rounds = rounds_of(node)
        before = self._site.xnat.requests
        try:
            for keys in rounds:
                await self._site.renew(keys)
        except NotFound:
            if parent := next(
                (each for each in ancestors(directory) if each is not directory and each.sources()), None
            ):
                await self._site.renew(parent.sources())  # where it is no longer listed
                await self._show(parent)
            raise
        self._site.outdate()
        for key in self._below(directory):
            self._site.listings.expire(key)
        await self._show(directory)
        return {"path": "/".join(directory.path), "requests": self._site.xnat.requests - before}

    async def _show(self, node: Node) -> None:
        """Make anew what was made of the listings of a directory, and have the kernel forget what it knows of it."""
        path = node.path
        self._forget_derived(lambda made: made[: len(path)] == path)
        await self._drop(path)

    async def change(self, projects: Collection[str], experiments: Collection[str]) -> Message:
        """Forget the listings of items that another program has changed on the server; no request is sent.

        Args:
            projects: IDs of projects; '*' for all of them.
            experiments: Accession IDs.
        """
        if "*" in projects:
            projects = {*projects, *self._projects()}
        items: list[Item] = [("experiments", each) for each in experiments]
        items += [("projects", each) for each in projects]
        keys: set[ListKey] = {PrearchiveKey(), *([ProjectsKey()] if "*" in projects else [])}
        for item in items:
            keys.update(item_keys(item))
        for project in projects:
            keys |= {SubjectsKey(project), ExperimentsKey(project), *self._below_project(project)}
        if experiments:  # of unknown projects, in whose datasets they may be new
            keys |= {made(project) for project in self._projects() for made in (ImageLabelsKey, SessionLabelsKey)}
        self._site.outdate()
        for key in keys:
            self._site.listings.expire(key)
        self._forget_derived(lambda made: made != ("projects",) or "*" in projects)
        paths = await self._known_paths(projects, experiments)
        for path in paths:
            await self._drop(path)
        log.info("changed by another program: %s", ", ".join("/".join(item) for item in items) or "nothing")
        return {"paths": ["/".join(path) for path in paths]}

    # -- listings ------------------------------------------------------------------------------------------------

    def _projects(self) -> list[str]:
        found = self._site.metadata.peek(ProjectsKey())
        return [row.id for row in found.rows] if isinstance(found, Listing) else []

    def _below(self, directory: Dir) -> set[ListKey]:
        """Return the keys of the lists below a directory, but not of its own."""
        match directory:
            case ProjectDir():
                return self._below_project(directory.project.id)
            case SubjectDir():
                of_subject = self._site.known_experiments(directory.project_dir.project.id)
                rows = of_subject.groups.get(directory.subject.id, ()) if of_subject else ()
                return {key for row in rows for key in experiment_keys(row.id)} | set(
                    item_keys(("subjects", directory.subject.id))
                )
            case DatasetDir():
                return {BidsMapKey(""), *self._below_project(directory.dataset.project.id)}
            case BidsSubjectDir():
                project = directory.dataset.project.id
                return {ImageLabelsKey(project), SessionLabelsKey(project), *self._below(directory.subject.home)}
            case SessionDir():
                return set()
        if not isinstance(directory.parent, Dir) or isinstance(directory, Projects | BidsProjects):
            found: set[ListKey] = {AllSubjectsKey(), AllExperimentsKey(), BidsMapKey(""), PrearchiveKey()}
            for project in self._projects():
                found |= {*keys_below(ProjectsKey(), project), *self._below_project(project)}
            return found
        return set()

    def _below_project(self, project: str) -> set[ListKey]:
        subjects, experiments = self._site.known_subjects(project), self._site.known_experiments(project)
        found = set(item_keys(("projects", project)))
        for key, listing in ((SubjectsKey(project), subjects), (ExperimentsKey(project), experiments)):
            for row in listing.rows if listing else ():
                found.update(keys_below(key, row.id))
        return found

    def _forget_derived(self, is_concerned: Callable[[NodePath], bool]) -> None:
        """Drop everything derived from listings: directories of these paths, links, and the prearchive."""

        def which(key: Hashable, value: object) -> bool:
            if isinstance(key, ChildrenKey | FoldersKey | GeneratedKey):
                return is_concerned(key.path)
            others = LinkKey | LinksOfProjectKey | FramesKey | ReceivedResourcesKey | ReceivedFilesKey
            return isinstance(key, others)

        self._site.metadata.forget_all(which)
        self._operations.dir_cache.clear()

    # -- the kernel ----------------------------------------------------------------------------------------------

    async def _known_paths(self, projects: Collection[str], experiments: Collection[str]) -> list[NodePath]:
        """Return the paths of these items as far as the kernel knows them."""
        found: set[NodePath] = {("experiments",), ("subjects",), ("prearchive",)}
        if "*" in projects:
            return [*found, ("projects",), ("bids",)]
        for count, node in enumerate(self._operations.inodes.nodes(), 1):
            if count % NODES_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            match node:
                case ProjectDir(project=row) | DatasetDir(dataset=Dataset(project=row)):
                    is_changed = row.id in projects
                case SessionDir(experiment=row) | BidsSessionDir(session=SessionFolder(experiment=row)):
                    is_changed = row.id in experiments
                case _:
                    is_changed = False
            if is_changed:
                found.add(node.path)
        return sorted(found)

    async def _drop(self, path: NodePath) -> None:
        """Have the kernel forget a directory and what is below it."""
        for each in [path] if path else [(node.name,) for node in (await self.root.children()).listed()]:
            inodes = self._operations.inodes
            if (parent := inodes.find(each[:-1])) is None:
                continue  # the kernel does not know it, nor anything below it
            if self._holds_mounts(each):
                log.info("%s: names are renewed as they expire, since something is mounted below", "/".join(each))
                continue
            is_known = inodes.find(each) is not None
            await trio.to_thread.run_sync(_invalidate, parent, encode(each[-1]), abandon_on_cancel=True)
            if is_known:  # a directory that a program works in has no path until its name is looked up again
                self._nursery.start_soon(
                    run_and_log_errors, "looking up what was refreshed", logging.DEBUG, self._look_up, each
                )

    def _holds_mounts(self, path: NodePath) -> bool:
        """Return whether anything is mounted in a directory: the kernel would unmount it with the name."""
        place = self._mountpoint.joinpath(*path)
        return any(each.is_relative_to(place) for each in all_mounts())

    async def _look_up(self, path: NodePath) -> None:
        place = os.path.join(os.fsencode(self._mountpoint), *map(encode, path))
        await trio.to_thread.run_sync(os.path.lexists, place, abandon_on_cancel=True)


def _invalidate(parent: pyfuse3.InodeT, name: bytes) -> None:
    try:
        pyfuse3.invalidate_entry(parent, FileNameT(name))
    except OSError as error:  # forgotten meanwhile
        log.debug("the kernel does not know %r: %s", name, error)
