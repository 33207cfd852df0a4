"""Test which ranges are requested next, as a table, and what one download knows of its readers."""

from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.support.content_fakes import FakeSource
from xnatfs.content.blob import SMALL_FILE_BYTES, Blob
from xnatfs.content.byte_ranges import ByteRanges
from xnatfs.content.planner import (
    MAX_DOWNLOADS,
    MAX_HELPERS,
    MAX_STEP_BYTES,
    MIN_GAIN,
    NEAR_BYTES,
    RATE_SECONDS,
    READ_AHEAD_BYTES,
    SHARE_BYTES,
    STEP_SECONDS,
    WINDOW_BYTES,
    NextDownload,
    ParallelTrial,
    Planner,
    RangeDownload,
)
from xnatfs.content.source import Version
from xnatfs.content.stats import MAX_DAMAGED_NAMES, CacheStats

MiB = 2**20
NOW = 100.0


def download(
    start: int = 0, stop: int | None = None, now: float = NOW, *, arrived: int = 0, is_share: bool = False
) -> RangeDownload:
    made = RangeDownload(start, stop, FakeSource(b""), now, is_share=is_share)
    made.position += arrived
    return made


# -- what is requested next ----------------------------------------------------------------------------------------


def planner(
    size: int = 500 * MiB,
    *,
    present: tuple[tuple[int, int], ...] = (),
    served: tuple[int, int] = (0, 0),
    waits: tuple[tuple[int, int], ...] = (),
    running: tuple[RangeDownload, ...] = (),
    seekable: bool = True,
    strict: bool = False,
    listed: bool = True,
) -> Planner:
    """Return the planner of a file that has one reader."""
    blob, source = Blob("k", lambda blob: None, strict=strict), FakeSource(b"")
    blob.size, blob.users, source.seekable = size, 1, seekable
    for each in present:
        blob.present.add(*each)
    blob.served.add(*served)
    made = Planner(blob, Version("k", size if listed else None, ""), source)
    made.downloads += running
    blob.waits += waits
    return made


@pytest.mark.parametrize(
    ("state", "plan"),
    [
        ({}, NextDownload(0, WINDOW_BYTES)),
        ({"size": SMALL_FILE_BYTES}, NextDownload(0, None)),
        ({"size": -1, "listed": False}, NextDownload(0, None)),
        ({"strict": True}, NextDownload(0, None)),
        ({"seekable": False}, NextDownload(0, None)),
    ],
)
def test_a_file_begins_with_a_window_where_that_can_be_requested(state, plan):
    assert planner(**state).plan_start() == plan


WINDOW = (0, MiB)


@pytest.mark.parametrize(
    ("state", "offset", "plan"),
    [
        ({"present": (WINDOW,)}, 100 * MiB, NextDownload(100 * MiB, 101 * MiB)),  # a seek
        ({"present": (WINDOW,)}, MiB, NextDownload(MiB, 3 * MiB)),  # a window is followed by one of twice the length
        ({"present": (WINDOW,), "served": WINDOW}, MiB, NextDownload(MiB, None)),  # all before was read
        ({"present": (WINDOW,), "served": (0, MiB // 2 - 4096)}, MiB, NextDownload(MiB, None)),  # half of it
        ({"present": (WINDOW,), "served": (0, MiB // 2 - 4097)}, MiB, NextDownload(MiB, 3 * MiB)),
        ({"present": (WINDOW,)}, 500 * MiB - 9, NextDownload(500 * MiB - 9, None)),  # the tail
        ({"present": (WINDOW, (10 * MiB, 20 * MiB))}, 9 * MiB + 5, NextDownload(9 * MiB, 10 * MiB)),  # backwards
        ({"present": (WINDOW, (10 * MiB, 20 * MiB))}, 15 * MiB, NextDownload(20 * MiB, 21 * MiB)),
        ({"running": (download(0, None),)}, NEAR_BYTES, None),  # it comes soon
        ({"running": (download(0, MiB),)}, 2 * MiB, NextDownload(2 * MiB, 3 * MiB)),  # a window does not reach there
        ({"running": (download(0, None),)}, NEAR_BYTES + 1, NextDownload(NEAR_BYTES + 1, NEAR_BYTES + 1 + MiB)),
        ({"seekable": False}, 100 * MiB, NextDownload(0, None)),
        ({"seekable": False, "running": (download(),)}, 100 * MiB, None),
        ({"strict": True, "running": (download(),)}, 100 * MiB, None),
        ({"strict": True, "present": (WINDOW,)}, 100 * MiB, NextDownload(MiB, None)),
        ({"strict": True, "present": ((0, 100 * MiB),), "running": (download(),)}, 0, None),  # it is on its way there
        ({"present": ((400 * MiB, 500 * MiB),)}, 450 * MiB, NextDownload(0, None)),  # what is left to verify it
        ({"size": 100, "present": ((0, 100),)}, 0, None),  # it is being verified
    ],
)
def test_what_a_waiting_reader_has_requested(state, offset, plan):
    made = planner(**state)
    made._blob.waits.append((offset, offset + 4096))
    assert made.plan_wait(offset, NOW) == plan


def test_the_download_that_was_needed_least_recently_makes_way():
    downloads = [download(MiB * 10 * number, now=NOW - number) for number in range(1, MAX_DOWNLOADS + 1)]
    made = planner(running=tuple(downloads))
    assert made.plan_wait(100 * MiB, NOW) == NextDownload(100 * MiB, 101 * MiB, cancel=downloads[-1])
    made._blob.present.add(0, 100 * MiB)
    made._blob.served.add(0, 100 * MiB)
    assert made.plan_wait(100 * MiB, NOW) == NextDownload(100 * MiB, None, cancel=downloads[-1])
    made._blob.waits += [(each.position, each.position + 1) for each in downloads]
    assert made.plan_wait(100 * MiB, NOW) is None, "readers wait for all of them"


@pytest.mark.parametrize(
    ("state", "read", "plan"),
    [
        ({"present": (WINDOW,)}, (0, MiB // 2), None),
        ({"present": (WINDOW,)}, (0, MiB // 2 + 1), NextDownload(MiB, None)),
        ({"present": (WINDOW,)}, (2 * MiB - 1, 2 * MiB), NextDownload(MiB, 3 * MiB)),  # a little was skipped
        ({"present": (WINDOW,)}, (2 * MiB, 2 * MiB + 1), None),  # a seek, which has a window of its own
        ({"present": (WINDOW,), "running": (download(MiB),)}, (0, MiB), None),
        ({"present": (WINDOW,), "seekable": False}, (0, MiB), None),
        (
            {"present": ((0, 300 * MiB),), "served": (0, 200 * MiB)},
            (0, 1),
            NextDownload(300 * MiB, None),
        ),  # mostly read
    ],
)
def test_what_is_requested_before_a_reader_waits_for_it(state, read, plan):
    assert planner(**state).plan_read(*read) == plan


@pytest.mark.parametrize(
    ("state", "paused", "plan"),
    [
        ({"present": (WINDOW,)}, False, None),
        ({"present": (WINDOW,), "waits": ((MiB, MiB + 1),)}, False, NextDownload(MiB, 3 * MiB)),
        ({"present": (WINDOW,), "waits": ((MiB, MiB + 1),)}, True, None),  # the reader looks again by itself
        ({"present": ((0, 500 * MiB - 1),)}, True, None),  # little is missing, nothing was read
        ({"strict": True, "present": (WINDOW,)}, True, NextDownload(MiB, None)),
        ({"strict": True, "present": (WINDOW,), "seekable": False}, True, NextDownload(0, None)),
        ({"seekable": False}, False, NextDownload(0, None)),
        ({"seekable": False}, True, None),
        ({"present": ((0, 300 * MiB),), "served": (0, 200 * MiB)}, True, NextDownload(300 * MiB, None)),
    ],
)
def test_what_is_requested_when_a_download_has_ended(state, paused, plan):
    made = planner(**state)
    assert made.plan_end(paused=paused) == plan
    made._blob.users = 0
    assert made.plan_end(paused=paused) is None


# More than two near ways from the end: the rest is worth one more request.
REST = 2 * NEAR_BYTES + 1


@pytest.mark.parametrize(
    ("state", "share"),
    [
        ({}, (SHARE_BYTES, 2 * SHARE_BYTES)),
        ({"size": SHARE_BYTES}, (SHARE_BYTES // 2, SHARE_BYTES)),
        ({"size": SHARE_BYTES - 1}, None),
        ({"running": (download(arrived=500 * MiB - REST),)}, (500 * MiB - NEAR_BYTES - 1, 500 * MiB)),
        ({"running": (download(arrived=500 * MiB - REST + 1),)}, None),
        ({"running": (download(stop=SHARE_BYTES, is_share=True),)}, (SHARE_BYTES, 2 * SHARE_BYTES)),
        ({"running": (download(stop=SHARE_BYTES),)}, None),  # a window
        ({"running": (download(100 * MiB, 101 * MiB), download())}, (SHARE_BYTES, 2 * SHARE_BYTES)),
    ],
)
def test_a_big_file_is_requested_in_shares_where_one_connection_is_slow(state, share):
    """End the download that goes to the end of the file where the share begins."""
    made = planner(**{"running": (download(),), **state})
    made.source.grants = True  # type: ignore[misc]  # the fake's is a plain attribute
    last = made.downloads[-1]
    made._blob.present.add(0, last.position)
    made._blob.waits.append((last.position, last.position + 1))
    assert made.plan_wait(last.position, NOW) is None
    plans = [made.plan_wait(last.position, NOW + seconds * RATE_SECONDS) for seconds in (1, 2, 3)]
    shorten = last if last.stop is None else None
    plan = NextDownload(share[0], share[1], shorten=shorten, is_share=True) if share else None
    assert plans[-1] == plan


OTHERS = (download(3 * MiB), download(0, arrived=MiB // 2), download(100 * MiB))


@pytest.mark.parametrize(
    ("state", "running", "step"),
    [
        ({}, download(arrived=MiB), (READ_AHEAD_BYTES, True)),  # as far as to read ahead
        ({"strict": True}, download(arrived=MiB), (MiB + NEAR_BYTES, True)),
        ({"seekable": False}, download(arrived=MiB), (MiB + NEAR_BYTES, True)),
        (
            {"waits": ((450 * MiB, 451 * MiB),)},
            download(arrived=MiB),
            (MiB + NEAR_BYTES, True),
        ),  # it needs all there is
        ({}, download(stop=100 * MiB, arrived=MiB), (MiB + NEAR_BYTES, True)),
        ({}, download(stop=2 * MiB, arrived=MiB), (2 * MiB, True)),
        ({"running": OTHERS}, download(arrived=MiB), (3 * MiB, True)),
        ({"running": (download(MiB),)}, download(arrived=MiB), (MiB, True)),  # the other one continues
        ({"present": ((2 * MiB, 3 * MiB),)}, download(arrived=MiB), (2 * MiB, True)),
        ({"present": ((0, 3 * MiB),)}, download(arrived=MiB), (3 * MiB, False)),
        ({"present": ((0, 90 * MiB),)}, download(arrived=MiB), (READ_AHEAD_BYTES, False)),
    ],
)
def test_a_step_ends_where_others_are_and_where_enough_has_arrived(state, running, step):
    made = planner(**{"present": ((400 * MiB, 500 * MiB),), **state})
    made.downloads.append(running)
    assert made.next_step(running, NOW) == step


# -- one download ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "stop", "step", "reached"),
    [
        (99, None, 0, False),
        (100, None, 0, True),
        (100 + NEAR_BYTES, None, 0, True),
        (101 + NEAR_BYTES, None, 0, False),
        (101 + NEAR_BYTES, None, 101 + NEAR_BYTES, True),
        (102 + NEAR_BYTES, None, 101 + NEAR_BYTES, False),
        (149, 150, 0, True),
        (150, 150, 0, True),  # what follows is requested when this has come
        (149 + WINDOW_BYTES, 150, 0, True),
        (150 + WINDOW_BYTES, 150, 0, False),
    ],
)
def test_what_is_near_comes_soon(offset, stop, step, reached):
    running = download(100, stop)
    running.step_end = step
    assert running.reaches(offset) is reached


@pytest.mark.parametrize(
    ("arrived", "seconds", "step"),
    [
        (0, 0, NEAR_BYTES),
        (NEAR_BYTES, 10, NEAR_BYTES),
        (300 * MiB, 3, int(100 * MiB * STEP_SECONDS)),
        (300 * MiB, 0.5, MAX_STEP_BYTES),
        (6 * MiB, 0.01, 6 * MiB),  # no pace is told by less than a step's time
    ],
)
def test_a_step_is_what_comes_in_its_time(arrived, seconds, step):
    running = download(1000)
    running.position += arrived
    assert running.next_step(NOW + seconds) == running.position + step


def test_enough_is_ahead_of_a_reader_when_it_is_about_as_much_as_was_read():
    """The last quarter is not worth a step of its own, but at the end of the file."""
    running = download(1000)
    for used, ahead in ((1000, READ_AHEAD_BYTES), (READ_AHEAD_BYTES, READ_AHEAD_BYTES), (9 * MiB, 9 * MiB)):
        running.read_end = used
        assert running.read_ahead_end == used + ahead
        for size, left in ((-1, ahead // 4), (used + ahead + 1, ahead // 4), (used + ahead, 0)):
            running.position = used + ahead - left - 1
            assert not running.is_far_ahead(size)
            running.position += 1
            assert running.is_far_ahead(size)
    running.stop = running.position + 1
    assert not running.is_far_ahead(-1), "a window comes to its end"


def test_who_reads_on_is_noted_and_wakes_a_download_that_is_half_way():
    running = download()
    running.position = READ_AHEAD_BYTES
    half = READ_AHEAD_BYTES // 2
    running.note_read(0, half)
    assert (running.read_end, running.wakeup.is_set()) == (half, False)
    running.note_read(0, 10)
    assert running.read_end == half, "what was requested before is no news"
    for is_news in (True, False):
        running.wakeup = trio.Event()
        running.note_read(0, half + 1)
        assert (running.read_end, running.wakeup.is_set()) == (half + 1, is_news)
    far = READ_AHEAD_BYTES + NEAR_BYTES
    running.note_read(far + 1, far + 2)
    assert running.read_end == half + 1, "that far ahead is another download's"
    running.note_read(far, far + 1)
    assert running.read_end == far + 1


@pytest.mark.parametrize(
    ("wait", "needed"),
    [
        ((0, 100), False),
        ((0, 101), True),
        ((100 + NEAR_BYTES, 100 + NEAR_BYTES + 1), True),
        ((101 + NEAR_BYTES, 101 + NEAR_BYTES + 1), False),
    ],
)
def test_who_waits_near_it_needs_it(wait, needed):
    assert download(100).is_needed([wait]) is needed
    assert not download(100).is_needed([])


# -- several -----------------------------------------------------------------------------------------------------


def helpers(trial: ParallelTrial, now: float, present: int) -> int:
    trial.measure(now, present)
    return trial.helpers


def test_a_helper_is_added_after_a_measurement_and_has_a_moment_to_begin():
    """Ignore the bytes of the second that follows."""
    trial = ParallelTrial()
    assert helpers(trial, 10, 1000) == 0
    assert helpers(trial, 10 + RATE_SECONDS - 0.01, 5000) == 0
    assert helpers(trial, 10 + 2 * RATE_SECONDS, 3000) == 1
    assert helpers(trial, 10 + 3 * RATE_SECONDS, 3000) == 1
    assert helpers(trial, 10 + 4 * RATE_SECONDS, 3000 + int(1000 * MIN_GAIN)) == 2


@pytest.mark.parametrize("periods", [1, 4])
def test_a_helper_that_brings_no_fifth_more_is_the_last(periods):
    trial = ParallelTrial()
    helpers(trial, 0, 0)
    assert helpers(trial, RATE_SECONDS, 1000) == 1
    helpers(trial, 2 * RATE_SECONDS, 1000)
    assert helpers(trial, (2 + periods) * RATE_SECONDS, 1000 + int(periods * 1000 * MIN_GAIN) - 1) == 0
    for seconds in range(7, 20):
        assert helpers(trial, seconds * RATE_SECONDS, 10**6 * seconds) == 0


def test_there_are_so_many_helpers_at_most():
    trial = ParallelTrial()
    found = [helpers(trial, seconds * RATE_SECONDS, 2**seconds) for seconds in range(12)]
    assert found == [0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    assert MAX_HELPERS == 2
    assert helpers(trial, 100 * RATE_SECONDS, 2**5) == MAX_HELPERS, "decided: it is not looked at any more"


# -- what is counted ---------------------------------------------------------------------------------------------


def test_so_many_damaged_files_are_remembered_the_last_ones():
    stats = CacheStats()
    for number in range(MAX_DAMAGED_NAMES + 1):
        stats.record_damage(str(number))
    assert stats.damaged == [str(number) for number in range(1, MAX_DAMAGED_NAMES + 1)]
    stats.record_damage("5")
    assert (len(stats.damaged), stats.damaged[-1], stats.damaged.count("5")) == (MAX_DAMAGED_NAMES, "5", 1)
    stats.record_repair("5")
    stats.record_repair("never heard of")
    assert "5" not in stats.damaged


# -- what is there -----------------------------------------------------------------------------------------------


def test_nothing_is_added_by_an_empty_range():
    ranges = ByteRanges()
    ranges.add(5, 5)
    assert (list(ranges), ranges.total) == ([], 0)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60))))
def test_byte_ranges_are_a_set_of_offsets(changes):
    """Compare the ranges with a set of offsets."""
    ranges, reference = ByteRanges(), set[int]()
    for start, end in changes:
        ranges.add(start, end)
        reference |= set(range(start, end))
        parts = list(ranges)
        assert {o for a, b in ranges.gaps(0, 70) for o in range(a, b)} == set(range(70)) - reference
        assert [o for a, b in parts for o in range(a, b)] == sorted(reference)
        assert all(a < b for a, b in parts)
        assert all(end < start for (_, end), (start, _) in pairwise(parts)), "they are joined where they touch"
        assert ranges.total == len(reference)
        for offset in range(70):
            assert ranges.first_missing(offset) == min(set(range(offset, 200)) - reference)
            if offset not in reference:
                assert ranges.start_of_gap(offset) == max({each + 1 for each in reference if each < offset} | {0})
            assert ranges.covers(offset, offset + 3) == ({offset, offset + 1, offset + 2} <= reference)
