"""Rows out of a list of the server, while it arrives: {"ResultSet": {"Result": [{...}, ...], ...}}.

A listing of a million files is 300 MB of JSON. Held as bytes, as text and as dictionaries it would be some gigabytes,
and parsed in one go it would keep everybody waiting for seconds. Here each row is let go of when it was read.

What is accepted is what `json.loads` accepts: what begins in another way than lists do is kept whole and left to it,
and what is no JSON is where no step leads on from. Rows mean nothing before `close` has seen the end.

A server that means harm gets no more than MOST_BYTES, MOST_ROWS, LONGEST_ROW and LONGEST_WHOLE of memory and time.
"""

import codecs
import json
import re
from collections.abc import Callable
from typing import Any

from xnatfs.common.sanitize import loads

Cells = dict[str, Any]


class NotAList(ValueError):
    """It is something else: what, is the text."""


_BEGIN = re.compile(r'\s*\{\s*"ResultSet"\s*:\s*\{\s*(?=")')
_KEY = re.compile(r'\s*("(?:[^"\\]|\\.)*")\s*:\s*(?=\S)')
_ROWS = re.compile(r"\[\s*(?=\S)")
_NEXT_ROW = re.compile(r"\s*,\s*(?=\S)")
_LAST_ROW = re.compile(r"\s*\]")
_AFTER = re.compile(r"\s*([,}])")

# What has not begun like a list by now is none.
_LONGEST_BEGIN = 64
# Of one list of files. A million, as the largest sessions have, are 300 MB; packed, three million are 400 MB of memory.
MOST_BYTES, MOST_ROWS = 2**30, 3_000_000
# No row is as long as that: where no step leads on for so many characters, it is no JSON. Descriptions of projects are
# the longest cells, some pages of text.
LONGEST_ROW = 2**22
# Behind the result set comes its brace; a server that goes on after that has no end.
LONGEST_TAIL = 2**16
# What is no list is an item's document or an error in JSON. Python's objects may take 30 times as much.
LONGEST_WHOLE = 2**24
# Where a row is longer than that, twice as much has to come before it is looked at again: else each piece of 32 KiB
# would have all of it read once more.
_PATIENT = 2**17

_scan = json.JSONDecoder().raw_decode


class Table:
    """A list that arrives: `feed` it, then `close` it. Both raise ValueError for what is no JSON, NotAList."""

    def __init__(self, most_bytes: int = MOST_BYTES, most_rows: int = MOST_ROWS) -> None:
        self._most_bytes, self._most_rows = most_bytes, most_rows
        self._decode: Callable[[bytes, bool], str] = codecs.getincrementaldecoder("utf-8")("surrogatepass").decode
        self._text = ""
        self._at = 0  # what is before it was understood
        self._rows: list[Cells] = []
        self._listed = False
        self._step: Callable[[], bool] = self._begin
        self._pieces: list[str] = []  # of what is parsed when all of it is there
        self._whole_size = 0
        self._wanted = 0  # characters, before it is worth to look again
        self._bytes = self._count = 0

    def feed(self, data: bytes) -> list[Cells]:
        """The rows that are complete by now."""
        self._bytes += len(data)
        self._text = self._text[self._at :] + self._decode(data, False)
        self._at, self._rows = 0, []
        if len(self._text) >= self._wanted:
            self._go_on()
        self._count += len(self._rows)
        if self._bytes > self._most_bytes or self._count > self._most_rows:
            raise NotAList(f"one of more than {self._most_bytes} bytes or {self._most_rows} rows, which is too much")
        return self._rows

    def _go_on(self) -> None:
        """As far as what has come leads."""
        try:
            while self._step():
                pass
        except RecursionError:
            raise ValueError("it is nested too deep") from None
        left = len(self._text) - self._at
        if left > (LONGEST_TAIL if self._step == self._tail else LONGEST_ROW):
            raise ValueError("no row ends, or what follows them does not")
        self._wanted = 2 * left if left > _PATIENT else 0

    def close(self) -> list[Cells]:
        """The rows that were kept back. What was no list is found out now at the latest."""
        self._text += self._decode(b"", True)
        self._rows = []
        self._go_on()
        if self._step in (self._begin, self._whole):
            return _rows_of(loads("".join(self._pieces) + self._text[self._at :]))
        if self._step != self._tail:
            raise ValueError("it ends in the middle")
        loads('{"": 0' + self._text[self._at :])
        if not self._listed:
            raise NotAList("something else")
        return self._rows

    # Each step says whether it led on.

    def _begin(self) -> bool:
        found = _BEGIN.match(self._text)
        if found:
            self._at, self._step = found.end(), self._member
        elif len(self._text) > _LONGEST_BEGIN:
            self._step = self._whole
        return self._step != self._begin

    def _whole(self) -> bool:
        """Something else than a list, or one that is written in another way."""
        self._pieces.append(self._text[self._at :])
        self._whole_size += len(self._pieces[-1])
        self._at = len(self._text)
        if self._whole_size > LONGEST_WHOLE:
            raise NotAList("something else, which is too long to be looked at")
        return False

    def _member(self) -> bool:
        """A key of the result set and its value."""
        key = _KEY.match(self._text, self._at)
        if key is None:
            return False
        if json.loads(key[1]) == "Result":
            return self._first_row(key.end())
        try:
            _, end = _scan(self._text, key.end())
        except ValueError:
            return False
        return self._after(end)

    def _first_row(self, at: int) -> bool:
        if self._text[at] != "[":
            raise NotAList("something else")
        opened = _ROWS.match(self._text, at)
        if opened is None or self._listed:
            return False
        empty = self._text[opened.end()] == "]"
        self._at = opened.end() + empty
        self._step = self._behind_rows if empty else self._row
        self._listed = True
        return True

    def _row(self) -> bool:
        """As many rows as there are."""
        text, at, rows = self._text, self._at, self._rows
        while text.startswith("{", at):
            try:
                row, end = _scan(text, at)
            except ValueError:
                break
            following = _NEXT_ROW.match(text, end)
            if following is None:
                last = _LAST_ROW.match(text, end)
                if last is not None:
                    rows.append(row)
                    self._at, self._step = last.end(), self._behind_rows
                    return True
                break
            rows.append(row)
            at = following.end()
        else:
            raise NotAList("something else")
        self._at = at
        return False

    def _behind_rows(self) -> bool:
        return self._after(self._at)

    def _after(self, at: int) -> bool:
        """Behind a member: another one, or the end of the result set."""
        found = _AFTER.match(self._text, at)
        if found is None:
            return False
        self._at = found.end()
        self._step = self._member if found[1] == "," else self._tail
        return True

    def _tail(self) -> bool:
        """Behind the result set: its own brace is all that servers write there."""
        return False


def _rows_of(document: Any) -> list[Cells]:
    result = document.get("ResultSet") if isinstance(document, dict) else None
    rows = result.get("Result") if isinstance(result, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        item = isinstance(document, dict) and "items" in document
        raise NotAList("the document of an item" if item else "something else")
    return rows
