"""Read untrusted input safely: numbers, JSON, text for terminals and logs.

The server, and every account that may name things on it, decides what is in a listing, a header or an error page. No
function here raises anything but ValueError, recurses without limit, or takes more than linear time.
"""

import json
import re
from typing import Any

# Digits of a size: an exbibyte has 19. The kernel, SQLite and arrays accept signed numbers of at most 64 bits, and
# int() refuses 4301 digits with an error of its own.
MAX_SIZE_DIGITS = 18
# Characters of a line for users. The longest that xnatfs makes itself has some 400; a server's listing in it may be of
# any length.
MAX_LINE_LENGTH = 2000

# Characters that move the cursor, set colours, ring the bell or end a line; and those that reverse the direction of
# text, which make a name read as another one.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def size(text: str) -> int | None:
    """Parse a size or a count; return None where the text is not one, or has more than MAX_SIZE_DIGITS digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_SIZE_DIGITS else None


def loads(data: str | bytes) -> Any:
    """Parse JSON like `json.loads`. Raises ValueError, also for JSON that is nested too deep."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def is_text(text: str) -> bool:
    """Return whether the text is valid Unicode. JSON can hold lone surrogates, which are not."""
    return _SURROGATE.search(text) is None


def decoded(text: str) -> str:
    """Return the text with its valid XML entities decoded."""
    if "&" not in text:
        return text
    from html import unescape  # a table of names, which most commands do without

    try:
        return unescape(text)
    except (ValueError, OverflowError):  # a number of more than 4300 digits
        return text


def plain(text: str) -> str:
    """Return the text with each control character replaced by a question mark, so that no terminal obeys it."""
    return _CONTROL.sub("?", text)


def line(text: str) -> str:
    """Return the text as one line for users: as `plain` does, and cut to MAX_LINE_LENGTH characters."""
    shown = plain(" ".join(text.split()) if not text.isprintable() else text)
    return shown if len(shown) <= MAX_LINE_LENGTH else f"{shown[:MAX_LINE_LENGTH]}..."
