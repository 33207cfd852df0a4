"""File names from server labels: what is legal, and what to do about clashes. One rule, reversible.

A Linux name may hold anything but '/' and NUL. So only these are escaped, by percent and two hex digits: '/', NUL,
a whole name '.' or '..', and a '%' that would read as such an escape. All else stays as the server has it.
Clashes are settled by ID, never by the order of a listing.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from xnatfs.common.errors import NotFound
from xnatfs.rest.models import natural

LONGEST = 255  # bytes in a name, on Linux
LONGEST_EXTENSION = 16  # bytes, with its dot; a longer one is part of the name

_UNSAFE = re.compile(r"[/\0]|%(?=2F|00|2E|25)")
_ESCAPE = re.compile(r"%(2F|00|2E|25)")

# A path whose segments are names as they are: nearly all, and told in a fifth of the time.
_SIMPLE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_. -]{0,200}(?:/[A-Za-z0-9_-][A-Za-z0-9_. -]{0,200})*")

# Levels of folders below a resource. No program can name what is deeper than 4096 bytes, and each level costs memory.
DEEPEST = 100

T = TypeVar("T")


def escape(label: str) -> str:
    """A label as a file name, but for its length; '' stays ''."""
    if label in (".", ".."):
        return label.replace(".", "%2E")
    return _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", label)


def unescape(name: str) -> str:
    """The label that `escape` made this name of."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), name)


def encode(name: str) -> bytes:
    """A name as the kernel has it. What JSON can hold beyond Unicode, lone surrogates, survives."""
    return name.encode("utf-8", "surrogatepass")


def decode(name: bytes) -> str:
    """The name for the kernel's bytes. Raises NotFound for what no server label can be."""
    try:
        return name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise NotFound(f"{name!r} is not UTF-8, so nothing has that name") from None


def shorten(name: str) -> str:
    """A name that fits: where it is over 255 bytes, cut, with '~' and a hash of the whole, extension kept."""
    raw = encode(name)
    if len(raw) <= LONGEST:
        return name
    stem, dot, extension = name.rpartition(".")
    ending = dot + extension
    if len(encode(ending)) > LONGEST_EXTENSION:
        stem, ending = name, ""
    ending = f"~{hashlib.sha256(raw).hexdigest()[:8]}{ending}"
    return _cut(encode(stem), LONGEST - len(encode(ending))) + ending


def _cut(raw: bytes, length: int) -> str:
    """The longest whole characters of `raw` within `length` bytes."""
    while length and raw[length] & 0xC0 == 0x80:  # within a character
        length -= 1
    return raw[:length].decode("utf-8", "surrogatepass")


def assign(
    items: Iterable[T], label: Callable[[T], str], key: Callable[[T], str], reserved: Collection[str] = ()
) -> dict[str, T]:
    """A name of its own for each item of one directory.

    An item is shown under its label. Without one it is `~<key>`; where the label is reserved, or another item with a
    lower key has the same one, it is `LABEL~<key>`. A key is one item's: what a server lists twice is there once.
    """
    named: dict[str, T] = {}
    suffixed: list[tuple[str, T]] = []
    unique: dict[str, T] = {}
    for item in items:
        unique.setdefault(key(item), item)
    for item in sorted(unique.values(), key=lambda item: natural(key(item))):
        name = shorten(escape(label(item)))
        if name and name not in reserved and name not in named:
            named[name] = item
        else:
            suffixed.append((name, item))
    for name, item in suffixed:
        candidate = shorten(f"{name}~{escape(key(item))}")
        while candidate in named or candidate in reserved:  # somebody is called like our suffixed name
            candidate = shorten(f"{candidate}~{escape(key(item))}")
        named[candidate] = item
    return {name: named[name] for name in sorted(named, key=natural)}


def expected(label: str, key: str, reserved: Collection[str] = ()) -> str:
    """Return the name that `assign` gives to an item whose label no other one has."""
    name = shorten(escape(label))
    return name if name and name not in reserved else shorten(f"{name}~{escape(key)}")


def split(path: str) -> tuple[str, ...]:
    """A catalogue path as names, one per folder level.

    An empty segment, which no folder can be, joins its slash to the next name (or, at the end, to the one before).
    What is deeper than DEEPEST is one name, slashes and all.
    """
    if _SIMPLE.fullmatch(path) and path.count("/") < DEEPEST:
        return tuple(path.split("/"))
    names: list[str] = []
    pending = ""
    for segment in path.split("/", DEEPEST - 1):
        if segment:
            names.append(shorten(escape(pending + segment)))
            pending = ""
        else:
            pending += "/"
    if pending:
        last = unescape(names.pop()) + pending if names else pending[1:]  # n slashes alone make n + 1 segments
        names.append(shorten(escape(last)))
    return tuple(names)
