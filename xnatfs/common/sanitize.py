"""What others have written, read without harm: numbers, JSON, text for people.

A server, or whoever may name things on it, decides what is in a listing, a header or an error page. What follows holds
for all of it: nothing in here raises anything but ValueError, recurses, or takes longer than its input is long.
"""

import json
import re
from html import unescape
from typing import Any

# Digits of a size: an exbibyte has 19. The kernel, SQLite and arrays take no number of more than 64 bits with sign, and
# int() refuses 4301 digits with an error of its own.
DIGITS = 18
# A line for people. The longest that this program makes itself is some 400 characters; a server's listing in it may be
# of any length.
LONGEST_LINE = 2000

# Whatever moves the cursor, colours, rings or ends a line; and what turns the direction of text around, which makes a
# name read as another one.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def size(text: str) -> int | None:
    """A number of bytes or of things; None for what is none, or more than there can be."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= DIGITS else None


def loads(data: str | bytes) -> Any:
    """What `json.loads` says. Raises ValueError, also where it is nested too deep."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def is_text(text: str) -> bool:
    """Whether it is Unicode. JSON can hold half a character, a lone surrogate, which is none."""
    return _SURROGATE.search(text) is None


def decoded(text: str) -> str:
    """Text with its XML entities decoded, as far as they are any."""
    if "&" not in text:
        return text
    try:
        return unescape(text)
    except (ValueError, OverflowError):  # a number of more than 4300 digits
        return text


def plain(text: str) -> str:
    """The same text, of which a terminal obeys nothing: on one line, each control character a question mark."""
    return _CONTROL.sub("?", text)


def line(text: str) -> str:
    """Text as a line for people: as `plain`, and not longer than anybody reads."""
    shown = plain(" ".join(text.split()) if not text.isprintable() else text)
    return shown if len(shown) <= LONGEST_LINE else f"{shown[:LONGEST_LINE]}..."
