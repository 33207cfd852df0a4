"""Test which resource comes next, and how many unopened bytes may come."""

from itertools import pairwise

import pytest

from xnatfs.prefetch import read_pattern
from xnatfs.prefetch.read_pattern import SERIES_AHEAD_BYTES, SERIES_AHEAD_FACTOR, Course, SessionReads
from xnatfs.rest.file_table import Catalogue, Catalogues
from xnatfs.rest.models import FileRow

SHOWN = [str(scan) for scan in range(1, 13)]
BY_NAME = sorted(SHOWN)
SIZE = 2**20


@pytest.mark.parametrize(
    "order",
    [SHOWN, BY_NAME, SHOWN[::-1], BY_NAME[::-1]],
    ids=["shown", "by name", "shown backward", "by name backward"],
)
def test_a_course_is_known_from_the_second_step_on(order):
    course = Course([SHOWN, BY_NAME])
    expected = [course.enter(resource) and course.upcoming()[:1] == [after] for resource, after in pairwise(order)]
    assert all(expected[2:]), expected


@pytest.mark.parametrize("order", [BY_NAME, BY_NAME[::-1]], ids=["forward", "backward"])
def test_a_reader_that_sorts_files_is_expected_to_sort_folders(order):
    course = Course([SHOWN, BY_NAME])
    for resource, after in pairwise(order):
        assert course.enter(resource)
        course.expect_names()
        assert course.upcoming()[:1] == [after]


async def test_the_second_file_tells_whether_files_are_read_by_name():
    for second, after in ((1, "2"), (7, "10")):
        session = reads(13, 100)
        series = session.get_series("1")
        course = session.get_course("DICOM")
        course.orders = [SHOWN, BY_NAME]
        for place in (0, second, 3):
            session.open(series, series.rows[place])
        assert course.upcoming()[0] == after


def test_wrong_guesses_end_the_guessing():
    course = Course([SHOWN, BY_NAME])
    for resource in ("1", "7", "4"):
        course.enter(resource)
    assert not course.upcoming()
    assert course.enter("5")
    assert course.upcoming()[0] == "6"


def reads(series: int, files: int, most: int = 2**40) -> SessionReads:
    """Return the reads of a session of series of files of 1 MiB."""
    rows = [FileRow(str(n), f"{place:03}", SIZE, "", "", "", place) for n in range(series) for place in range(files)]
    session = SessionReads(("experiments", "E"), most)
    groups = Catalogues.from_rows(rows).groups
    for number, group in groups.items():
        group.home = f"/data/experiments/E/scans/{number}"
    session.relist(groups, [(str(number), "DICOM") for number in range(series)])
    return session


async def test_of_a_resource_that_is_read_much_may_come_and_of_the_next_one_little():
    session = reads(3, 1000)
    first, second = session.get_series("0"), session.get_series("1")
    for place in range(2):
        session.open(first, first.rows[place])
        assert not session.is_read
    session.open(first, first.rows[2])
    assert session.is_read
    assert session.count_allowed_bytes(first) == SERIES_AHEAD_BYTES
    assert session.count_allowed_bytes(second) == 3 * SIZE // 2
    for place in range(100, 110):
        first.receive(first.rows[place])
    second.receive(second.rows[0])
    assert session.count_allowed_bytes(first) == SERIES_AHEAD_BYTES - 10 * SIZE
    assert session.count_allowed_bytes(second) == SIZE // 2
    session.open(first, first.rows[100])
    assert session.count_allowed_bytes(first) == 2 * SERIES_AHEAD_BYTES - 9 * SIZE
    for place in range(3, 99):
        session.open(first, first.rows[place])
    assert session.count_allowed_bytes(first) == (100 * SERIES_AHEAD_FACTOR - 9) * SIZE


async def test_no_more_may_come_than_fits():
    session = reads(1, 1000, most=10 * SIZE)
    series = session.get_series("0")
    for place in range(9):
        session.open(series, series.rows[place])
    assert session.count_allowed_bytes(series) == 10 * SIZE


@pytest.mark.parametrize(("each", "is_scattered"), [(1, False), (2, True)])
async def test_a_glance_at_each_series_is_not_a_read_of_all(each, is_scattered):
    session = reads(9, 100)
    for place in range(each):
        for number in range(9):
            series = session.get_series(str(number))
            session.open(series, series.rows[place])
    assert session.is_scattered == is_scattered


@pytest.mark.parametrize(
    ("scans", "is_scattered"),
    [
        pytest.param([2, 5, 11, 12, 40], False, id="chosen ones, as they are shown"),
        pytest.param([11, 12, 2, 40, 5], False, id="chosen ones, by name"),
        pytest.param([40, 12, 11, 5, 2], False, id="backward"),
        pytest.param([2, 5, 11, 5, 2], False, id="there and back"),
        pytest.param([5, 2, 40, 11], True, id="in no order"),
    ],
)
async def test_two_changes_of_direction_are_a_read_of_all_in_no_order(scans, is_scattered):
    session = reads(41, 100)
    for scan in scans:
        session.open(series := session.get_series(str(scan)), series.rows[scan])
    assert session.is_scattered == is_scattered
    assert session.count_allowed_bytes(series) <= SERIES_AHEAD_BYTES, "it has not come back to any"


def test_a_resource_with_a_file_of_unknown_or_great_size_does_not_fit():
    catalogue = Catalogue("7")
    for place in range(9):
        catalogue.add(str(place), SIZE, "", ("", ""))
    assert read_pattern.Series("7", "", catalogue, is_alone=True).size == 9 * SIZE
    assert read_pattern.Series("7", "", catalogue, is_alone=False).size == 0
    catalogue.add("big", 9 * SIZE, "", ("", ""))
    assert read_pattern.Series("7", "", catalogue, is_alone=True).size == 0
