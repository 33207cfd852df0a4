"""Find nodes of the tree by their paths, without a mount."""

from xnatfs.site import Site
from xnatfs.tree import Root
from xnatfs.tree.node import Dir, Node


async def find(site: Site, path: str) -> Node:
    """Return the node at a path of the tree; the root for an empty one."""
    node: Node = Root(site)
    for name in path.split("/") if path else []:
        assert isinstance(node, Dir)
        node = await node.child(name)
    return node


async def names(site: Site, path: str) -> list[str]:
    """Return the names in a directory of the tree."""
    node = await find(site, path)
    assert isinstance(node, Dir)
    return list((await node.children()).nodes)
