"""Parse the rows of a server's list while it arrives: {"ResultSet": {"Result": [{...}, ...], ...}}.

A listing of a million files is 300 MB of JSON. As bytes, as text and as dictionaries it would take some gigabytes, and
to parse it in one go would block the event loop for seconds. Here each row is released once it was read.

The parser accepts what `json.loads` accepts: a document that does not begin as lists do is collected whole and passed
to it, and a text is invalid where no step of the parser advances. Rows are valid only after `close` has seen the end.

A malicious server is limited in memory and time by MOST_BYTES, MOST_ROWS, MAX_ROW_CHARACTERS and
MAX_DOCUMENT_CHARACTERS.
"""

import codecs
import json
import re
from collections.abc import Callable
from typing import Any

from xnatfs.common.sanitize import loads

JsonRow = dict[str, Any]


class NotAList(ValueError):
    """The document is not a list; the text names what it is."""


_BEGIN = re.compile(r'\s*\{\s*"ResultSet"\s*:\s*\{\s*(?=")')
_KEY = re.compile(r'\s*("(?:[^"\\]|\\.)*")\s*:\s*(?=\S)')
_ROWS = re.compile(r"\[\s*(?=\S)")
_NEXT_ROW = re.compile(r"\s*,\s*(?=\S)")
_LAST_ROW = re.compile(r"\s*\]")
_AFTER = re.compile(r"\s*([,}])")

# Characters within which a list must have begun.
_MAX_HEAD_CHARACTERS = 64
# Limits of one list of files. A million files, as the largest sessions have, are 300 MB; packed, three million take
# 400 MB of memory.
MOST_BYTES, MOST_ROWS = 2**30, 3_000_000
# Characters. No row is as long: where no step advances for so many, the text is not JSON. Descriptions of projects are
# the longest cells, some pages of text.
MAX_ROW_CHARACTERS = 2**22
# Characters after the result set, where only its brace belongs; a server that sends more may never end.
MAX_TAIL_CHARACTERS = 2**16
# Characters of a document that is not a list: an item, or an error in JSON. Python's objects may take 30 times as much.
MAX_DOCUMENT_CHARACTERS = 2**24
# Characters. A longer incomplete row is parsed again only once twice as much has arrived: else each piece of 32 KiB
# would have all of it parsed once more.
_LONG_ROW_CHARACTERS = 2**17

_scan = json.JSONDecoder().raw_decode


class Table:
    """An incremental parser of one list: call `feed` for each piece, then `close`.

    Both raise ValueError for invalid JSON, and NotAList for a document that is not a list, or one over the limits.
    """

    def __init__(self, most_bytes: int = MOST_BYTES, most_rows: int = MOST_ROWS) -> None:
        self._most_bytes, self._most_rows = most_bytes, most_rows
        self._decode: Callable[[bytes, bool], str] = codecs.getincrementaldecoder("utf-8")("surrogatepass").decode
        self._text = ""
        self._at = 0  # the text before it was parsed
        self._rows: list[JsonRow] = []
        self._listed = False
        self._step: Callable[[], bool] = self._begin
        self._pieces: list[str] = []  # of a document that is parsed once it is complete
        self._whole_size = 0
        self._wanted = 0  # characters of text at which the next attempt to parse is worthwhile
        self._bytes = self._count = 0

    def feed(self, data: bytes) -> list[JsonRow]:
        """Add bytes, and return the rows that they complete."""
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
        """Advance as far as the text allows."""
        try:
            while self._step():
                pass
        except RecursionError:
            raise ValueError("it is nested too deep") from None
        left = len(self._text) - self._at
        if left > (MAX_TAIL_CHARACTERS if self._step == self._tail else MAX_ROW_CHARACTERS):
            raise ValueError("no row ends, or what follows them does not")
        self._wanted = 2 * left if left > _LONG_ROW_CHARACTERS else 0

    def close(self) -> list[JsonRow]:
        """End the list, and return the remaining rows. A document that is not a list is detected here at the latest."""
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

    # Each step returns whether it has advanced.

    def _begin(self) -> bool:
        found = _BEGIN.match(self._text)
        if found:
            self._at, self._step = found.end(), self._member
        elif len(self._text) > _MAX_HEAD_CHARACTERS:
            self._step = self._whole
        return self._step != self._begin

    def _whole(self) -> bool:
        """Collect a document that is not a list, or a list in another form."""
        self._pieces.append(self._text[self._at :])
        self._whole_size += len(self._pieces[-1])
        self._at = len(self._text)
        if self._whole_size > MAX_DOCUMENT_CHARACTERS:
            raise NotAList("something else, which is too long to be looked at")
        return False

    def _member(self) -> bool:
        """Parse a key of the result set and its value."""
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
        """Parse all complete rows."""
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
        """Parse the text after a member: another one follows, or the end of the result set."""
        found = _AFTER.match(self._text, at)
        if found is None:
            return False
        self._at = found.end()
        self._step = self._member if found[1] == "," else self._tail
        return True

    def _tail(self) -> bool:
        """Stay after the result set: servers write only its closing brace there."""
        return False


def _rows_of(document: Any) -> list[JsonRow]:
    result = document.get("ResultSet") if isinstance(document, dict) else None
    rows = result.get("Result") if isinstance(result, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        item = isinstance(document, dict) and "items" in document
        raise NotAList("the document of an item" if item else "something else")
    return rows
