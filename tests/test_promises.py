"""What is promised, as stories: any mix of programs, changes of the server and faults of the network."""

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.model import KINDS, PLACES
from tests.world import tell

any_file = st.integers(0, 40)
some = st.integers(0, 7)


class Story(RuleBasedStateMachine):
    """A step is a rule. They are played when the story is complete, in one event loop and virtual time."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[str, dict[str, object]]] = []
        self.crowded = False

    @initialize(crowded=st.booleans())
    def begin(self, crowded: bool) -> None:
        self.crowded = crowded

    def teardown(self) -> None:
        note(f"tell(tmp_path, {self.steps!r}, crowded={self.crowded})")
        with tempfile.TemporaryDirectory() as directory:
            tell(Path(directory), self.steps, crowded=self.crowded)

    def step(self, name: str, **arguments: object) -> None:
        self.steps.append((name, arguments))

    # -- programs

    @rule(place=any_file)
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

    @rule(handle=some)
    def read_whole(self, handle: int) -> None:
        self.step("read_whole", handle=handle)

    @rule(handle=some)
    def tail_first(self, handle: int) -> None:
        self.step("tail_first", handle=handle)

    @rule(handle=some)
    def close(self, handle: int) -> None:
        self.step("close", handle=handle)

    @rule(directory=some)
    def walk(self, directory: int) -> None:
        self.step("walk", directory=directory)

    @rule(file=any_file, pause=st.sampled_from([0.0, 0.1, 5.0, 40.0]))
    def beside(self, file: int, pause: float) -> None:
        self.step("beside", file=file, pause=pause)

    @rule(files=st.lists(any_file, min_size=2, max_size=5))
    def together(self, files: list[int]) -> None:
        self.step("together", files=files)

    @rule(file=any_file, after=st.sampled_from([0.06, 0.11, 0.3, 1.0]))
    def interrupted(self, file: int, after: float) -> None:
        self.step("interrupted", file=file, after=after)

    # -- time

    @rule(seconds=st.sampled_from([0.05, 0.1, 0.3, 1.0, 8.0, 30.0, 61.0, 130.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.step("wait", seconds=seconds)

    @rule()
    def forget(self) -> None:
        self.step("forget")

    @rule()
    def remount(self) -> None:
        self.step("remount")

    # -- the server

    @rule(resource=some, name=st.integers(0, 3))
    def add(self, resource: int, name: int) -> None:
        self.step("add", resource=resource, name=name)

    @rule(file=any_file, longer=st.sampled_from([0, 0, 1, -1, 9000]))
    def replace(self, file: int, longer: int) -> None:
        self.step("replace", file=file, longer=longer)

    @rule(file=any_file)
    def delete(self, file: int) -> None:
        self.step("delete", file=file)

    @rule(resource=some, name=st.integers(0, 1))
    def rename(self, resource: int, name: int) -> None:
        self.step("rename", resource=resource, name=name)

    @rule(session=some)
    def delete_session(self, session: int) -> None:
        self.step("delete_session", session=session)

    @rule(session=some)
    def move_session(self, session: int) -> None:
        self.step("move_session", session=session)

    @rule(project=st.integers(0, 1), protected=st.booleans())
    def revoke(self, project: int, protected: bool) -> None:
        self.step("revoke", project=project, protected=protected)

    @rule(project=st.integers(0, 1))
    def grant(self, project: int) -> None:
        self.step("grant", project=project)

    @rule()
    def end_sessions(self) -> None:
        self.step("end_sessions")

    @rule()
    def expire(self) -> None:
        self.step("expire")

    @rule(open=st.booleans())
    def site_open(self, open: bool) -> None:
        self.step("site_open", open=open)

    @rule(on=st.booleans())
    def digests(self, on: bool) -> None:
        self.step("digests", on=on)

    @rule(on=st.booleans())
    def ranges(self, on: bool) -> None:
        self.step("ranges", on=on)

    # -- the network

    @rule(kind=st.sampled_from(KINDS), count=st.sampled_from([1, 1, 2, 5, 50]), place=st.sampled_from(PLACES))
    def fail(self, kind: str, count: int, place: str) -> None:
        self.step("fail", kind=kind, count=count, place=place)

    @rule()
    def mend(self) -> None:
        self.step("mend")


STORIES = int(os.environ.get("XNATFS_STORIES", "60"))

TestStory = Story.TestCase
TestStory.settings = settings(
    max_examples=STORIES,
    stateful_step_count=25,
    deadline=None,
    derandomize=STORIES == 60,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


def test_a_quiet_day(tmp_path):
    """Nothing happens: everything is read, several ways."""
    steps = [("names", {"place": place}) for place in range(30)]
    steps += [("walk", {"directory": directory}) for directory in range(6)]
    steps += [("open", {"file": 8}), ("tail_first", {"handle": 0}), ("read_whole", {"handle": 0})]
    tell(tmp_path, steps)
