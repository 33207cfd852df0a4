"""Inode numbers and lookup counts."""

from typing import cast

from hypothesis import given
from hypothesis import strategies as st
from pyfuse3 import InodeT

from xnatfs.fuse.inodes import ROOT, Inodes
from xnatfs.site import Site
from xnatfs.tree.node import Dir, Node

SITE = cast(Site, None)  # nodes are asked for nothing here


class Version(Node):
    """A file of which there are several versions; the higher is the newer."""

    __slots__ = ("number",)

    def __init__(self, parent: Dir, name: str, number: int) -> None:
        super().__init__(SITE, parent, name)
        self.number = number

    @property
    def version(self) -> int:
        return self.number

    @property
    def rank(self) -> tuple[float, int]:
        return (0.0, self.number)

    def inode_hint(self) -> int:
        return 1000 + len(self.name)


def root() -> Dir:
    return Dir(SITE, None, "")


def look_up(inodes: Inodes, node: Node) -> InodeT:
    """Look a node up, as the kernel does."""
    known = inodes.known(node)
    inodes.refer(known, node)
    return known.inode


def test_the_same_identity_keeps_its_number_and_the_newest_node_serves_it():
    top = root()
    inodes = Inodes(top)
    old, new = Version(top, "a", 1), Version(top, "a", 1)
    assert look_up(inodes, old) == look_up(inodes, new)
    assert inodes[inodes.known(new).inode].node is new


def test_a_new_version_takes_the_number_over_and_its_pages_may_be_the_old_ones():
    top = root()
    inodes = Inodes(top)
    inode = look_up(inodes, Version(top, "a", 1))
    assert not inodes[inode].pages.suspect
    new = Version(top, "a", 2)
    assert look_up(inodes, new) == inode
    assert inodes[inode].node is new
    assert inodes[inode].pages.suspect


def test_a_new_version_has_a_number_of_its_own_for_as_long_as_the_old_one_is_open():
    top = root()
    inodes = Inodes(top)
    old = Version(top, "a", 1)
    inode = look_up(inodes, old)
    inodes[inode].pages.handles = 1
    beside = look_up(inodes, Version(top, "a", 2))
    assert beside != inode
    assert look_up(inodes, Version(top, "a", 2)) == beside  # and the same again
    assert look_up(inodes, Version(top, "a", 1)) == inode
    assert inodes[inode].node.version == 1
    third = look_up(inodes, Version(top, "a", 3))
    assert len({inode, beside, third}) == 3
    inodes[inode].pages.handles = 0
    assert look_up(inodes, Version(top, "a", 2)) == inode


def test_what_is_known_since_takes_no_number_back():
    """A listing that is read on since before the change names the old version."""
    top = root()
    inodes = Inodes(top)
    new = Version(top, "a", 2)
    inode = look_up(inodes, new)
    for opened in (0, 1):
        inodes[inode].pages.handles = opened
        assert look_up(inodes, Version(top, "a", 1)) == inode
        assert inodes[inode].node is new


def test_two_that_want_one_number_are_told_apart():
    top = root()
    inodes = Inodes(top)
    found = [look_up(inodes, Version(top, name, 1)) for name in "abc"]
    assert found[0] == 1001
    assert len(set(found)) == 3
    assert max(found) < 2**53


def test_a_number_is_free_after_the_last_reference_and_then_the_same_again():
    top = root()
    inodes = Inodes(top)
    inode = look_up(inodes, Version(top, "a", 1))
    look_up(inodes, Version(top, "a", 1))
    inodes.forget(inode, 1)
    assert len(inodes) == 2
    inodes.forget(inode, 1)
    assert len(inodes) == 1
    assert look_up(inodes, Version(top, "a", 1)) == inode


def test_the_root_is_never_forgotten():
    inodes = Inodes(root())
    inodes.forget(ROOT, 1000)
    assert inodes[ROOT].node.path == ()


def test_numbers_are_the_same_in_every_mount():
    one, other = Inodes(root()), Inodes(root())
    names = [Dir(SITE, root(), f"directory {n}") for n in range(100)]
    assert [look_up(one, node) for node in names] == [look_up(other, node) for node in reversed(names)][::-1]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 2), st.booleans())))
def test_what_the_kernel_knows_is_what_is_kept(steps):
    top = root()
    inodes, references = Inodes(top), dict[int, int]()
    for name, version, forgotten in steps:
        if forgotten and references:
            inode, count = references.popitem()
            inodes.forget(inode, count)
        else:
            inode = look_up(inodes, Version(top, name, version))
            references[inode] = references.get(inode, 0) + 1
        for inode in references:
            assert inodes[inode] is not None
        assert len(inodes) == len(references) + 1
