"""Test the promises as stories: any mix of programs, changes of the server and faults of the network.

Stories that Hypothesis makes up are the same in each run of the suite. XNATFS_STORIES=1000 plays so many new ones, and
what is found is to become a story with a name at the end of this page.

Planted by tests at the end of this page: a hold-back by offset, a half as a whole, a resume without validator.
Broken by hand, to see whether it is found, and by what first:
- no digest is looked at (`Writer.verify`, `Bulk._take`): `test_every_fault_of_a_file[digests]`, most made up stories
- Content-Length is not (`_Arrival.chunks`, `Fill._ended`): `test_every_fault_of_a_file[no digests]`
- the cache is not dropped on revocation (`ContentCache.drop`): `test_every_change_of_a_file`, made up stories
- two versions are mixed (`_take_up_again`, `Fill._accept` without the date): `test_every_change_of_a_file[big-digests]`
- the key lacks the version (`entry.identity`): `test_every_fault_of_a_file`, most made up stories
- open files do not ask (`Operations.read`, `getattr`): `test_every_change_of_a_file`, made up stories
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.support.model import KINDS, PLACES, SHORT, Model
from tests.support.world import CHANGES, ORDERS, tell
from xnatfs.content import Blob, Version
from xnatfs.http import replies, resumable_download
from xnatfs.prefetch import file_version
from xnatfs.rest.models import FileRow
from xnatfs.tree import catalogue_file

Step = tuple[str, dict[str, Any]]

# 20 stories of 20 steps take 12 s here; a step of those that are several counts once.
IN_THE_SUITE = 20
STORIES = int(os.environ.get("XNATFS_STORIES", str(IN_THE_SUITE)))

BYTES = ("cut", "ended", "unframed", "shorter", "empty", "corrupt")  # faults of a body
any_file = st.integers(0, 2) | st.integers(0, 40)
some = st.integers(0, 7)


def again(file: int, what: str, seconds: float) -> list[Step]:
    """Read a file, let something happen to it and time pass, list directories, and read it again."""
    return [
        ("copy", {"file": file}),
        ("open", {"file": file}),
        ("change", {"file": file, "what": what}),
        ("wait", {"seconds": seconds}),
        ("names", {"place": 0}),
        ("names", {"place": 1}),
        ("copy", {"file": file}),
        ("read", {"handle": 7, "place": 0, "length": 100}),
    ]


def meanwhile(file: int, what: str, seconds: float, both: bool) -> list[Step]:
    """Change a file while a slow reader reads it, or a fast one as well, which fetches all of it."""
    return [
        *([("beside", {"file": file, "pause": 0.0})] if both else []),
        ("beside", {"file": file, "pause": 5.0}),
        ("wait", {"seconds": seconds}),
        ("change", {"file": file, "what": what}),
        ("wait", {"seconds": 130.0}),
    ]


def badly(file: int, kind: str, count: int) -> list[Step]:
    """Serve a file badly, once or for a while, and then as it is."""
    return [
        ("fail", {"kind": kind, "count": count, "place": "files"}),
        ("copy", {"file": file}),
        ("copy", {"file": file}),
        ("mend", {}),
        ("wait", {"seconds": 130.0}),
        ("copy", {"file": file}),
    ]


def disorderly(file: int, kind: str, count: int, order: str, seed: int) -> list[Step]:
    """Serve it badly and read in some order; that it was read before, in part, changes nothing."""
    read: Step = ("ordered", {"file": file, "order": order, "seed": seed})
    return [
        ("fail", {"kind": kind, "count": count, "place": "files"}),
        read,
        ("ordered", {"file": file, "order": "random", "seed": seed + 1}),
        ("mend", {}),
        ("wait", {"seconds": 130.0}),
        read,
    ]


def twice_in_a_second(file: int, order: str, pause: float) -> list[Step]:
    """Replace a file, read it, and replace it again within a second of the server's clock."""
    return [
        ("wait", {"seconds": 300.0}),  # neither listing nor copy of before is trusted
        ("change", {"file": file, "what": "again"}),
        ("beside", {"file": file, "pause": pause}),
        ("wait", {"seconds": 0.6}),  # it is listed by then, and a part of it has come
        ("change", {"file": file, "what": "again"}),
        ("ordered", {"file": file, "order": order, "seed": 0}),
        ("wait", {"seconds": 130.0}),
    ]


def reading(order: str) -> list[Step]:
    """Read a big file and a small one in some order: as they are, damaged once, and until they are mended."""
    steps: list[Step] = []
    for file in (0, 1):
        steps.append(("ordered", {"file": file, "order": order, "seed": file}))
        for kind in BYTES:
            for count in (1, 9):
                steps += [("change", {"file": file, "what": "replaced"}), ("wait", {"seconds": 300.0})]
                steps += disorderly(file, kind, count, order, count)
    return steps


def replacing() -> list[Step]:
    """Replace a file while it is read: in every order, with pauses in which downloads end, and where they break."""
    steps: list[Step] = []
    for order in ORDERS:
        for pause in (0.0, 0.3, 5.0):
            steps += twice_in_a_second(0, order, pause)
        steps.append(("fail", {"kind": "cut", "count": 1, "place": "files"}))
        steps += twice_in_a_second(0, order, 0.0)
    return steps


class Story(RuleBasedStateMachine):
    """A story to which each rule adds steps, to be played when it is complete, in one event loop and virtual time."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.world: dict[str, bool] = {}

    @initialize(crowded=st.booleans(), digests=st.booleans(), odd=st.booleans())
    def begin(self, **world: bool) -> None:
        self.world = world

    def teardown(self) -> None:
        note(f"tell(tmp_path, {self.steps!r}, **{self.world!r})")
        with tempfile.TemporaryDirectory() as directory:
            tell(Path(directory), self.steps, **self.world)

    def step(self, name: str, /, **arguments: object) -> None:
        self.steps.append((name, arguments))

    @rule(file=any_file, what=st.sampled_from(CHANGES), seconds=st.sampled_from([1.0, 130.0, 400.0]))
    def again(self, file: int, what: str, seconds: float) -> None:
        self.steps += again(file, what, seconds)

    @rule(file=any_file, what=st.sampled_from(CHANGES), seconds=st.sampled_from([0.3, 1.0, 10.0]), both=st.booleans())
    def meanwhile(self, file: int, what: str, seconds: float, both: bool) -> None:
        self.steps += meanwhile(file, what, seconds, both)

    @rule(file=any_file, kind=st.sampled_from(KINDS), count=st.sampled_from([1, 1, 9]))
    def badly(self, file: int, kind: str, count: int) -> None:
        self.steps += badly(file, kind, count)

    @rule(
        file=any_file,
        kind=st.sampled_from(KINDS),
        count=st.sampled_from([1, 1, 9]),
        order=st.sampled_from(ORDERS),
        seed=st.integers(0, 9),
    )
    def disorderly(self, file: int, kind: str, count: int, order: str, seed: int) -> None:
        self.steps += disorderly(file, kind, count, order, seed)

    @rule(file=any_file, order=st.sampled_from(ORDERS), pause=st.sampled_from([0.0, 0.3, 5.0]))
    def twice_in_a_second(self, file: int, order: str, pause: float) -> None:
        self.steps += twice_in_a_second(file, order, pause)

    # -- programs

    @rule(file=any_file, order=st.sampled_from(ORDERS), seed=st.integers(0, 9))
    def ordered(self, file: int, order: str, seed: int) -> None:
        self.step("ordered", file=file, order=order, seed=seed)

    @rule(place=st.integers(0, 1) | st.integers(0, 40))
    def names(self, place: int) -> None:
        self.step("names", place=place)

    @rule(file=any_file)
    def stat(self, file: int) -> None:
        self.step("stat", file=file)

    @rule(file=any_file)
    def open(self, file: int) -> None:
        self.step("open", file=file)

    @rule(handle=some)
    def reopen(self, handle: int) -> None:
        self.step("reopen", handle=handle)

    @rule(handle=some, place=st.integers(0, 110), length=st.sampled_from([1, 100, 4096, 20_000]))
    def read(self, handle: int, place: int, length: int) -> None:
        self.step("read", handle=handle, place=place, length=length)

    @rule(handle=some, tail_first=st.booleans())
    def read_whole(self, handle: int, tail_first: bool) -> None:
        self.step("tail_first" if tail_first else "read_whole", handle=handle)

    @rule(handle=some)
    def close(self, handle: int) -> None:
        self.step("close", handle=handle)

    @rule(directory=some)
    def walk(self, directory: int) -> None:
        self.step("walk", directory=directory)

    @rule(files=st.lists(any_file, min_size=1, max_size=5))
    def together(self, files: list[int]) -> None:
        self.step("together", files=files)

    @rule(file=any_file, after=st.sampled_from([0.06, 0.11, 0.3, 1.0]))
    def interrupted(self, file: int, after: float) -> None:
        self.step("interrupted", file=file, after=after)

    @rule(file=any_file)
    def elsewhere(self, file: int) -> None:
        self.step("elsewhere", file=file)

    @rule(seconds=st.sampled_from([0.1, 1.0, 8.0, 61.0, 130.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.step("wait", seconds=seconds)

    @rule(remount=st.booleans())
    def forget(self, remount: bool) -> None:
        self.step("remount" if remount else "forget")

    # -- the server

    @rule(file=any_file, what=st.sampled_from(CHANGES))
    def change(self, file: int, what: str) -> None:
        self.step("change", file=file, what=what)

    @rule(resource=some, name=st.integers(0, 3))
    def add(self, resource: int, name: int) -> None:
        self.step("add", resource=resource, name=name)

    @rule(project=st.integers(0, 1))
    def grant(self, project: int) -> None:
        self.step("grant", project=project)

    @rule(what=st.sampled_from(["end_sessions", "expire"]))
    def log_out(self, what: str) -> None:
        self.step(what)

    @rule(what=st.sampled_from(["site_open", "ranges", "dates"]), on=st.booleans())
    def switch(self, what: str, on: bool) -> None:
        self.step(what, on=on)

    @rule(resource=some, how=st.sampled_from(SHORT))
    def shorten(self, resource: int, how: str) -> None:
        self.step("shorten", resource=resource, how=how)

    @rule()
    def complete(self) -> None:
        self.step("complete")

    @rule(on=st.booleans())
    def digests(self, on: bool) -> None:
        self.step("digests", on=on)

    # -- the network

    @rule(kind=st.sampled_from(KINDS), count=st.sampled_from([1, 1, 2, 5, 50]), place=st.sampled_from(PLACES))
    def fail(self, kind: str, count: int, place: str) -> None:
        self.step("fail", kind=kind, count=count, place=place)

    @rule()
    def mend(self) -> None:
        self.step("mend")


TestStory = Story.TestCase
TestStory.settings = settings(
    max_examples=STORIES,
    stateful_step_count=20,
    deadline=None,
    derandomize=STORIES == IN_THE_SUITE,
    database=None,
    suppress_health_check=list(HealthCheck),
    # In the suite a failure is told as it is: to shorten it takes minutes.
    phases=[Phase.generate] if STORIES == IN_THE_SUITE else [Phase.generate, Phase.shrink],
)


def test_a_quiet_day(tmp_path):
    """Read everything several ways, without any event."""
    steps: list[Step] = [("names", {"place": place}) for place in range(30)]
    steps += [("walk", {"directory": directory}) for directory in range(6)]
    steps += [("open", {"file": 0}), ("tail_first", {"handle": 0}), ("read_whole", {"handle": 0})]
    tell(tmp_path, steps)


@pytest.mark.parametrize("digests", [True, False], ids=["digests", "no digests"])
def test_every_fault_of_a_file(tmp_path, digests):
    """Read a big file and a small one with each fault once, and the big one and a tiny one until it is mended."""
    steps: list[Step] = []
    for kind in KINDS:
        for file, count in ((0, 1), (1, 1), (0, 9), (2, 9)):
            steps += badly(file, kind, count)
            steps += [("change", {"file": file, "what": "replaced"}), ("wait", {"seconds": 300.0})]  # not kept, so far
    tell(tmp_path, steps, digests=digests)


@pytest.mark.parametrize("digests", [True, False], ids=["digests", "no digests"])
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_reading(tmp_path, order, digests):
    tell(tmp_path, reading(order), digests=digests)


@pytest.mark.parametrize("digests", [True, False], ids=["digests", "no digests"])
@pytest.mark.parametrize("dates", [True, False], ids=["dates", "no dates"])
def test_a_file_that_is_replaced_within_a_second(tmp_path, dates, digests):
    tell(tmp_path, [("dates", {"on": dates}), *replacing()], digests=digests)


@pytest.mark.parametrize("digests", [True, False], ids=["digests", "no digests"])
@pytest.mark.parametrize("file", [0, 1], ids=["big", "small"])
def test_every_change_of_a_file(tmp_path, file, digests):
    steps: list[Step] = []
    for what in CHANGES[:5]:
        for seconds, both in ((0.3, True), (1.0, False), (10.0, False)):
            steps += [("change", {"file": file, "what": "replaced"}), ("wait", {"seconds": 300.0})]  # not kept, so far
            steps += meanwhile(file, what, seconds, both)
        steps += again(file, what, 400.0)
    steps += again(file, "revoked", 130.0)
    steps += [("grant", {"project": 0}), ("wait", {"seconds": 130.0}), *again(file, "protected", 130.0)]
    steps += [("grant", {"project": 0}), ("wait", {"seconds": 130.0}), *again(file, "renamed", 130.0)]
    steps += again(file, "moved", 130.0)
    tell(tmp_path, steps, digests=digests)


@pytest.mark.parametrize("how", SHORT)
def test_lists_that_lack_files(tmp_path, how):
    """Show all files of each resource in turn, or an error, in every folder."""
    steps: list[Step] = []
    for resource in range(6):
        steps += [("shorten", {"resource": resource, "how": how})]
        steps += [("names", {"place": place}) for place in range(30)]
        steps += [("complete", {}), ("wait", {"seconds": 130.0})]
        steps += [("names", {"place": place}) for place in range(30)]
    tell(tmp_path, steps)


@pytest.mark.parametrize("digests", [True, False], ids=["digests", "no digests"])
def test_names_that_some_route_takes_for_others(tmp_path, digests):
    """Read each by itself, in its series, and after it was replaced."""
    files = range(len(Model(odd=True).paths()))
    steps: list[Step] = [("copy", {"file": file}) for file in files]
    steps += [("change", {"file": file, "what": "replaced"}) for file in files]
    steps += [("wait", {"seconds": 300.0}), *(("walk", {"directory": directory}) for directory in range(12))]
    steps += [("change", {"file": file, "what": "longer"}) for file in files]
    steps += [("wait", {"seconds": 300.0}), ("together", {"files": list(files)})]
    steps += [("remount", {}), *(("walk", {"directory": directory}) for directory in range(12))]
    tell(tmp_path, steps, digests=digests, odd=True)


# -- what is planted, and must be found ------------------------------------------------------------------------------


def is_found(directory: Path, steps: list[Step], **world: bool) -> bool:
    """Play a story that must not end well; return whether it ends as a broken promise."""
    try:
        tell(directory, steps, **world)
    except AssertionError:
        return True
    except BaseExceptionGroup as group:
        return group.subgroup(AssertionError) is not None
    return False


@pytest.mark.parametrize("order", ["tail first", "backward", "random", "two"])
def test_a_hold_back_by_offset_is_found(tmp_path, monkeypatch, order):
    """Plant a hold-back by offset: a reader that has the end before the rest arrives gets all of a damaged file."""

    def is_servable(blob: Blob, offset: int, end: int) -> bool:
        if blob.complete or blob.is_served_whole or not blob.present.covers(offset, end):
            return blob.complete
        held = blob.size - 512
        return end <= held or blob.contiguous_end < held

    monkeypatch.setattr(Blob, "_is_servable", is_servable)
    assert is_found(tmp_path, reading(order))


def test_a_half_that_is_taken_as_a_whole_is_found(tmp_path, monkeypatch):
    """Plant a download whose length is not compared with the one that the listing states."""

    def version(row: FileRow) -> Version:
        return replace(file_version.version(row), size=None)

    monkeypatch.setattr(catalogue_file, "version", version)
    assert is_found(tmp_path, reading("forward"), digests=False)


def test_a_resume_without_validator_is_found(tmp_path, monkeypatch):
    """Plant a resume that takes later bytes for the same file, whatever date the server states."""
    for module in (replies, resumable_download):
        monkeypatch.setattr(module, "last_modified", lambda response: "Sat, 01 Jan 2000 00:00:00 GMT")
    assert is_found(tmp_path, replacing(), digests=False)


# -- what stories have found ---------------------------------------------------------------------------------------


def test_an_empty_reply_makes_no_empty_file(tmp_path):
    """Raise an error although no byte is read: the digest went unchecked, and `cp` made an empty copy."""
    tell(tmp_path, [("fail", {"kind": "empty", "count": 9, "place": "files"}), ("copy", {"file": 1})])


def test_a_guests_refusal_takes_nothing_away(tmp_path):
    """Log in before a request could reveal whose answer it was, when an open site has dropped the session."""
    steps: list[Step] = [("site_open", {"on": True}), ("open", {"file": 1}), ("read_whole", {"handle": 0})]
    for _ in range(2):
        steps += [("wait", {"seconds": 130.0}), ("end_sessions", {}), ("read_whole", {"handle": 0})]
        steps += [("names", {"place": 0}), ("copy", {"file": 1})]
    tell(tmp_path, steps)


@pytest.mark.parametrize("file", [0, 1], ids=["big", "small"])
def test_a_date_of_two_versions_does_not_join_them(tmp_path, file):
    """Replaced twice within a second, the file had one date, and so one inode, with pages of both."""
    steps: list[Step] = [("wait", {"seconds": 300.0}), ("change", {"file": file, "what": "again"})]
    steps += [("open", {"file": file}), ("read", {"handle": 0, "place": 0, "length": 100})]
    steps += [("change", {"file": file, "what": "again"}), ("wait", {"seconds": 300.0}), ("copy", {"file": file})]
    tell(tmp_path, [*steps, ("read_whole", {"handle": 0}), ("copy", {"file": file})], digests=False)


def test_bytes_that_no_digest_confirmed_are_not_left_in_the_kernel(tmp_path):
    """A big file came damaged and was given up; another mount fetched it, and what was read of it here was shown on."""
    steps: list[Step] = [("fail", {"kind": "corrupt", "count": 2, "place": "files"}), ("open", {"file": 0})]
    steps += [("read", {"handle": 0, "place": 0, "length": 50_000}), ("wait", {"seconds": 1.0})]
    for closed in ([("close", {"handle": 0})], []):
        tell(tmp_path / str(len(closed)), [*steps, *closed, ("elsewhere", {"file": 0}), ("copy", {"file": 0})])
