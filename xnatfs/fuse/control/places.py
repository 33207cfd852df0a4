"""Find what a path of the mount names, and the listings that it is made of."""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

import trio

from xnatfs import tree
from xnatfs.common.errors import NotFound
from xnatfs.content import Version
from xnatfs.listings.keys import (
    AssessorsKey,
    ChildrenKey,
    FilesKey,
    ListKey,
    NodePath,
    ProjectsKey,
    ScansKey,
    experiment_keys,
)
from xnatfs.prefetch.file_version import version
from xnatfs.tree.catalogue_file import CatalogueFile
from xnatfs.tree.names import decode
from xnatfs.tree.node import Dir, File, Node
from xnatfs.tree.resources import ResourceDir
from xnatfs.tree.sessions import SessionDir

# Files that are yielded between two checkpoints: a millisecond.
FILES_PER_CHECKPOINT = 200


def split(path: str) -> NodePath:
    """Return the names of a path as the tree spells them. Raises NotFound for names that nothing can have."""
    try:
        return tuple(decode(name) for name in path.encode("utf-8", "surrogateescape").split(b"/") if name)
    except UnicodeEncodeError:
        raise NotFound(f"{path!r} is no path") from None


async def find(root: Dir, names: NodePath) -> Node:
    """Return what a path names, links followed. A name that is not listed is looked for in a new listing.

    Raises NotFound, and what the server's listings raise.
    """
    return await tree.find(root, names, _child)


async def _child(parent: Dir, name: str) -> Node:
    try:
        return await parent.child(name)
    except NotFound:
        keys = parent.sources()
        if not keys:
            raise
    await parent.site.renew(keys)
    parent.site.metadata.forget(ChildrenKey(parent.path))
    return await parent.child(name)


def ancestors(node: Node) -> Iterator[Node]:
    """Yield a node, and the directories that it is in, the nearest first."""
    each: Node | None = node
    while each is not None:
        yield each
        each = each.parent


def rounds_of(node: Node) -> tuple[Dir, Sequence[Sequence[ListKey]]]:
    """Return the directory that is renewed for a node, and its listings, in rounds that are requested together.

    Of a session and of all below it, these are its four lists. Those of files come last: they are compared with the
    list of resources.
    """
    session = next((each for each in ancestors(node) if isinstance(each, SessionDir)), None)
    if session is not None:
        keys = experiment_keys(session.experiment.id)
        if not session.experiment.is_imaging:  # servers have neither list of one that cannot have scans
            keys = [key for key in keys if not isinstance(key, ScansKey | AssessorsKey)]
        return session, _rounds(keys)
    for each in ancestors(node):
        if isinstance(each, ResourceDir):
            return each, _rounds([each.shown_by, *each.sources()])
        if isinstance(each, Dir) and (each.sources() or each.parent is None):
            return each, _rounds(each.sources() or [ProjectsKey()])
    raise NotFound(f"{'/'.join(node.path)} has no listing")  # a tree has a root


def _rounds(keys: Iterable[ListKey]) -> Sequence[Sequence[ListKey]]:
    found = list(keys)
    files = [key for key in found if isinstance(key, FilesKey)]
    return [part for part in ([key for key in found if key not in files], files) if part]


async def files_below(node: Node) -> AsyncIterator[File]:
    """Yield a file, or all files below a directory in the order of their listing; links are not followed.

    Files that are made from listings are left out: the cache of contents has none of them.
    """
    async for file in all_files_below(node):
        if not file.is_generated:
            yield file


async def all_files_below(node: Node) -> AsyncIterator[File]:
    """Yield a file, or all files below a directory, also those that are made from listings."""
    if isinstance(node, File):
        yield node
    elif isinstance(node, Dir):
        await trio.lowlevel.checkpoint()  # cached listings let no other task run
        for place, child in enumerate((await node.children()).listed(), 1):
            if place % FILES_PER_CHECKPOINT == 0:
                await trio.lowlevel.checkpoint()
            if isinstance(child, File):
                yield child
            else:
                async for file in all_files_below(child):
                    yield file


def content_version(file: File) -> Version:
    """Return the version of a file, as the cache of contents knows it."""
    assert isinstance(file, CatalogueFile)
    return version(file.row)
