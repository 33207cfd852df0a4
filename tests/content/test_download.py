"""Test what one download of the content cache knows of its readers, and when a parallel one is worth it."""

from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.support.content_fakes import FakeSource
from xnatfs.content.byte_ranges import Spans
from xnatfs.content.download import (
    AHEAD,
    LONGEST_STEP,
    NEAR,
    STEADY_READS,
    STEADY_SECONDS,
    STEP_SECONDS,
    WINDOW,
    Stream,
)
from xnatfs.content.parallel import GAIN, HELPERS, LOOK, Abreast
from xnatfs.content.stats import DAMAGED, Stats


@pytest.fixture
def source() -> FakeSource:
    return FakeSource(b"")


# -- one download ------------------------------------------------------------------------------------------------


async def test_a_download_begins_where_it_was_asked_to(autojump_clock, source):
    await trio.sleep(7)
    stream = Stream(100, 200, source)
    assert (stream.origin, stream.cursor, stream.step, stream.used, stream.stop) == (100, 100, 100, 100, 200)
    assert (stream.begun, stream.wanted, stream.source) == (trio.current_time(), trio.current_time(), source)
    assert (stream.reads, stream.moved.is_set()) == (0, False)


@pytest.mark.parametrize(
    ("offset", "stop", "step", "reached"),
    [
        (99, None, 0, False),
        (100, None, 0, True),
        (100 + NEAR, None, 0, True),
        (101 + NEAR, None, 0, False),
        (101 + NEAR, None, 101 + NEAR, True),
        (102 + NEAR, None, 101 + NEAR, False),
        (149, 150, 0, True),
        (150, 150, 0, True),  # what follows is requested when this has come
        (149 + WINDOW, 150, 0, True),
        (150 + WINDOW, 150, 0, False),
    ],
)
async def test_what_is_near_comes_soon(source, offset, stop, step, reached):
    stream = Stream(100, stop, source)
    stream.step = step
    assert stream.reaches(offset) is reached


@pytest.mark.parametrize(
    ("came", "seconds", "step"),
    [
        (0, 0, NEAR),
        (NEAR, 10, NEAR),
        (300 * 2**20, 3, int(100 * 2**20 * STEP_SECONDS)),
        (300 * 2**20, 0.5, LONGEST_STEP),
        (6 * 2**20, 0.01, 6 * 2**20),  # no pace is told by less than a step's time
    ],
)
async def test_a_step_is_what_comes_in_its_time(autojump_clock, source, came, seconds, step):
    await trio.sleep(5)
    stream = Stream(1000, None, source)
    stream.cursor += came
    await trio.sleep(seconds)
    assert stream.next_step() == stream.cursor + step
    stream.most = 1
    assert stream.next_step() == stream.cursor + NEAR


async def test_enough_is_ahead_of_a_reader_when_it_is_about_as_much_as_was_read(source):
    """The last quarter is not worth a step of its own, but at the end of the file."""
    stream = Stream(1000, None, source)
    for used, ahead in ((1000, AHEAD), (AHEAD, AHEAD), (2 * AHEAD, 2 * AHEAD)):
        stream.used = used
        assert stream.enough() == used + ahead
        for size, left in ((-1, ahead // 4), (stream.enough() + 1, ahead // 4), (stream.enough(), 0)):
            stream.cursor = used + ahead - left - 1
            assert not stream.ahead(size)
            stream.cursor += 1
            assert stream.ahead(size)
    stream.stop = stream.cursor + 1
    assert not stream.ahead(-1), "a window comes to its end"
    stream.most = 8
    stream.cursor = stream.used + 5
    assert not stream.ahead(-1)
    stream.cursor += 1
    assert stream.ahead(-1)


async def test_who_reads_on_is_noted_and_wakes_a_download_that_is_half_way(source):
    stream = Stream(0, None, source)
    stream.cursor = AHEAD
    stream.note(0, AHEAD // 2)
    assert (stream.used, stream.moved.is_set()) == (AHEAD // 2, False)
    stream.note(0, 10)
    assert stream.used == AHEAD // 2, "what was asked for before is no news"
    stream.note(0, AHEAD // 2 + 1)
    assert (stream.used, stream.moved.is_set()) == (AHEAD // 2 + 1, True)
    stream.moved = trio.Event()
    stream.note(0, AHEAD // 2 + 1)
    assert not stream.moved.is_set()
    stream.note(AHEAD + NEAR + 1, AHEAD + NEAR + 2)
    assert stream.used == AHEAD // 2 + 1, "that far ahead is another download's"
    stream.note(AHEAD + NEAR, AHEAD + NEAR + 1)
    assert stream.used == AHEAD + NEAR + 1


async def test_a_read_counts_once_wherever_it_waits(autojump_clock, source):
    stream = Stream(0, None, source)
    for offset, reads in ((1, 1), (1, 1), (5, 2), (1, 3)):
        await trio.sleep(1)
        stream.mark(offset)
        assert (stream.reads, stream.wanted) == (reads, trio.current_time())


@pytest.mark.parametrize(
    ("wait", "needed"),
    [
        ((0, 100), False),
        ((0, 101), True),
        ((100 + NEAR, 100 + NEAR + 1), True),
        ((101 + NEAR, 101 + NEAR + 1), False),
    ],
)
async def test_who_waits_near_it_needs_it(source, wait, needed):
    stream = Stream(100, None, source)
    assert stream.needed([wait]) is needed
    assert not stream.needed([])


async def test_a_steady_reader_needs_it_for_a_moment_after_each_read(autojump_clock, source):
    await trio.sleep(5)
    stream = Stream(0, None, source)
    for offset in range(STEADY_READS):
        assert not stream.needed([])
        stream.mark(offset)
    assert stream.needed([])
    await trio.sleep(STEADY_SECONDS - 0.01)
    assert stream.needed([])
    await trio.sleep(0.01)
    assert not stream.needed([])


# -- several -----------------------------------------------------------------------------------------------------


def looked(abreast: Abreast, now: float, came: int) -> int:
    abreast.look(now, came)
    return abreast.helpers


def test_a_helper_is_added_after_a_look_and_has_a_moment_to_begin():
    """Ignore the bytes of the second that follows."""
    abreast = Abreast()
    assert looked(abreast, 10, 1000) == 0
    assert looked(abreast, 10 + LOOK - 0.01, 5000) == 0
    assert looked(abreast, 10 + 2 * LOOK, 3000) == 1
    assert looked(abreast, 10 + 3 * LOOK, 3000) == 1
    assert looked(abreast, 10 + 4 * LOOK, 3000 + int(1000 * GAIN)) == 2


def test_a_helper_that_brings_no_fifth_more_is_the_last():
    abreast = Abreast()
    looked(abreast, 0, 0)
    assert looked(abreast, LOOK, 1000) == 1
    looked(abreast, 2 * LOOK, 1000)
    assert looked(abreast, 3 * LOOK, 1000 + int(1000 * GAIN) - 1) == 0
    for seconds in range(4, 20):
        assert looked(abreast, seconds * LOOK, 10**6 * seconds) == 0


def test_there_are_so_many_helpers_at_most():
    abreast = Abreast()
    helpers = [looked(abreast, seconds * LOOK, 2**seconds) for seconds in range(12)]
    assert helpers == [0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    assert HELPERS == 2
    assert looked(abreast, 100 * LOOK, 2**5) == HELPERS, "decided: it is not looked at any more"


# -- what is counted ---------------------------------------------------------------------------------------------


def test_so_many_damaged_files_are_remembered_the_last_ones():
    stats = Stats()
    for number in range(DAMAGED + 1):
        stats.damage(str(number))
    assert stats.damaged == [str(number) for number in range(1, DAMAGED + 1)]
    stats.damage("5")
    assert (len(stats.damaged), stats.damaged[-1], stats.damaged.count("5")) == (DAMAGED, "5", 1)
    stats.sound("5")
    stats.sound("never heard of")
    assert "5" not in stats.damaged


# -- what is there -----------------------------------------------------------------------------------------------


def test_nothing_is_neither_added_nor_removed():
    spans = Spans()
    spans.add(5, 5)
    assert list(spans.parts()) == []
    spans.add(0, 10)
    spans.remove(5, 5)
    assert list(spans.parts()) == [(0, 10)]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(0, 60))))
def test_spans_are_a_set_of_offsets(changes):
    """Compare the spans with a set of offsets."""
    spans, reference = Spans(), set[int]()
    for added, start, end in changes:
        if added:
            spans.add(start, end)
            reference |= set(range(start, end))
        else:
            spans.remove(start, end)
            reference -= set(range(start, end))
        parts = list(spans.parts())
        assert {o for a, b in spans.gaps(0, 70) for o in range(a, b)} == set(range(70)) - reference
        assert [o for a, b in parts for o in range(a, b)] == sorted(reference)
        assert all(a < b for a, b in parts)
        assert all(end < start for (_, end), (start, _) in pairwise(parts)), "they are joined where they touch"
        assert spans.total() == len(reference)
        for offset in range(70):
            assert spans.next_gap(offset) == min(set(range(offset, 200)) - reference)
            assert spans.covers(offset, offset + 3) == ({offset, offset + 1, offset + 2} <= reference)
