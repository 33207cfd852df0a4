"""Test that tables are read back as they were written: by pandas, and by the rule that the documentation states."""

import io

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xnatfs.tree.metadata.tables import table

HARD = [
    "plain", "", " blanks around ", "a\tb", "a\nb", "a\r\nb", "\r", 'say "hi"', '"', '""', "=1+1", "+1", "-x", "@a",
    "'=1", "münchen ☃ 患者", "NA", "nan", "001", "1e5", "\\t", "#", "a,b;c", "\N{NO-BREAK SPACE}", "=A1\t\"\n", "&amp;",
]  # fmt: skip


def read_back(data: bytes) -> list[list[str]]:
    frame = pandas.read_csv(io.BytesIO(data), sep="\t", dtype=str, keep_default_na=False)
    return [list(frame.columns), *frame.values.tolist()]


def test_hard_cells_come_back_from_pandas_as_they_are():
    rows = [[str(place), text, "end"] for place, text in enumerate(HARD)]
    assert read_back(table(["id", "text", "last"], rows)) == [["id", "text", "last"], *rows]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.text(), st.text()), min_size=1))
def test_any_text_comes_back_from_pandas(rows):
    rows = [tuple(text.replace("\0", "").encode("utf-8", "replace").decode() for text in row) for row in rows]
    found = read_back(table(["id", "a", "b"], [("x", *row) for row in rows]))
    assert found[1:] == [["x", *row] for row in rows]


def test_numbers_are_bare_and_what_is_unknown_is_empty():
    assert table(["a", "b", "c"], [(1, None, "x")]) == b"a\tb\tc\n1\t\tx\n"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-x", "@a", "a\tb", "a\rb", 'a"b'])
def test_what_a_spreadsheet_may_evaluate_or_split_is_quoted(text):
    quoted = text.replace('"', '""')
    assert table(["a"], [(text,)]).decode() == f'a\n"{quoted}"\n'


def test_a_row_is_a_line_unless_a_cell_has_a_line_break():
    assert table(["a", "b"], [("x y", "ü'"), ("n/a", "1,2")]) == "a\tb\nx y\tü'\nn/a\t1,2\n".encode()
