"""Test lists that are read while they arrive: the same rows and the same refusals as from the whole."""

import json
import random
from typing import Any

import pytest

from xnatfs.rest.json_rows import NotAList, Table

ROWS = [
    {"ID": "1", "label": 'quo"te\\s, [brackets], {braces} and "},{"'},
    {"ID": "2", "label": "größe 😀 \ud800", "nested": {"a": [1, 2.5e3, None, True]}},
    {},
]


def read(body: bytes, sizes: list[int]) -> list[dict[str, Any]]:
    """Return the rows, with the body coming in pieces of these sizes."""
    table, rows, at = Table(), [], 0
    for size in [*sizes, len(body)]:
        rows += table.feed(body[at : at + size])
        at += size
    return rows + table.close()


def cuts(body: bytes) -> list[list[int]]:
    """Return ways to cut it: in two at every byte, byte by byte, at random, not at all."""
    chance = random.Random(len(body))
    return [[n] for n in range(len(body))] + [[1] * len(body), [], [chance.randrange(1, 9) for _ in range(len(body))]]


LISTS = [
    {"ResultSet": {"Result": ROWS, "totalRecords": "3"}},
    {"ResultSet": {"title": "Files", "Columns": [{"key": "URI", "serverRoot": ""}], "Result": ROWS}},
    {"ResultSet": {"totalRecords": 12, "Result": []}},
    {"ResultSet": {"Result": ROWS[:1]}, "more": {"and": "more"}},
    {"before": [1], "ResultSet": {"Result": ROWS}},
]


@pytest.mark.parametrize("document", LISTS)
@pytest.mark.parametrize("style", [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_however_it_is_cut_the_rows_are_those_of_the_whole(document, style):
    body = json.dumps(document, **style).encode("utf-8", "surrogatepass")
    for sizes in cuts(body):
        assert read(body, sizes) == document["ResultSet"]["Result"], sizes


def test_rows_come_before_the_end():
    body = json.dumps({"ResultSet": {"Result": [{"ID": str(n)} for n in range(1000)]}}).encode()
    table = Table()
    assert len(table.feed(body[: len(body) // 2])) > 400


def parsed(body: bytes) -> Any:
    try:
        rows = json.loads(body)["ResultSet"]["Result"]
        return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else None
    except (ValueError, KeyError, TypeError):
        return None


@pytest.mark.parametrize("style", [{}, {"indent": 1}])
def test_a_damaged_body_is_refused_or_read_as_json_reads_it(style):
    whole = json.dumps(LISTS[1], **style).encode()
    chance = random.Random(1)
    bodies = [whole[:n] for n in range(len(whole))]
    for _ in range(3000):
        at, length = chance.randrange(len(whole)), chance.randrange(3)
        bodies.append(whole[:at] + bytes(chance.choice(b'"{}[],: a1\\') for _ in range(length)) + whole[at + 1 :])
    for body in bodies:
        expected = parsed(body)
        try:
            rows = read(body, [chance.randrange(1, 40) for _ in range(20)])
        except ValueError:
            assert expected is None, body
        else:
            assert rows == expected, body


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ({"items": [{"data_fields": {}, "children": []}]}, "the document of an item"),
        ({"ResultSet": {}}, "something else"),
        ({"ResultSet": {"title": "no rows"}}, "something else"),
        ({"ResultSet": {"Result": {"ID": "1"}}}, "something else"),
        (
            {"ResultSet": {"Result": ["text", "and more of it, so that it is longer than any beginning"]}},
            "something else",
        ),
        ({"ResultSet": {"Result": [{"ID": "1"}, 2]}}, "something else"),
        ([], "something else"),
        ("text", "something else"),
    ],
)
def test_what_is_no_list_is_said_to_be_none(document, kind):
    body = json.dumps(document).encode()
    for sizes in ([], [1] * len(body)):
        with pytest.raises(NotAList, match=f"^{kind}$"):
            read(body, sizes)
