"""Make file names of server labels, by one reversible rule that also resolves clashes.

A Linux name may hold any byte but '/' and NUL. So only these are escaped, as a percent sign and two hex digits: '/',
NUL, the '.' of the names '.' and '..', and a '%' that would read as such an escape. Any other character stays as the
server has it. Clashes are resolved by ID, never by the order of a listing.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from xnatfs.common.errors import NotFound
from xnatfs.rest.models import natural

MAX_NAME_BYTES = 255  # bytes in a name, on Linux
MAX_EXTENSION_BYTES = 16  # bytes, with its dot; a longer one is part of the name

_UNSAFE = re.compile(r"[/\0]|%(?=2F|00|2E|25)")
_ESCAPE = re.compile(r"%(2F|00|2E|25)")

# A path whose segments are file names unchanged: nearly all are, and this match takes a fifth of the time.
_SIMPLE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_. -]{0,200}(?:/[A-Za-z0-9_-][A-Za-z0-9_. -]{0,200})*")

# Labels, one a line, that are names unchanged.
_SIMPLE_NAMES = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_. -]{0,200}(?:\n[A-Za-z0-9_-][A-Za-z0-9_. -]{0,200})*")

# Levels of folders below a resource. No program can open a path of more than 4096 bytes, and each level costs memory.
MAX_PATH_LEVELS = 100

T = TypeVar("T")


class LabelledRow(Protocol):
    """A row with an ID and a label."""

    @property
    def id(self) -> str: ...

    @property
    def label(self) -> str: ...


L = TypeVar("L", bound=LabelledRow)


def escape(label: str) -> str:
    """Escape a label as a file name, of any length; '' stays ''."""
    if label in (".", ".."):
        return label.replace(".", "%2E")
    return _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", label)


def unescape(name: str) -> str:
    """Return the label from which `escape` made this name."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), name)


def encode(name: str) -> bytes:
    """Encode a name for the kernel, lone surrogates included, which JSON can hold."""
    return name.encode("utf-8", "surrogatepass")


def decode(name: bytes) -> str:
    """Decode a name of the kernel. Raises NotFound where no server label can have these bytes."""
    try:
        return name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise NotFound(f"{name!r} is not UTF-8, so nothing has that name") from None


def shorten(name: str) -> str:
    """Return a name of at most 255 bytes: a longer one is cut, with '~' and a hash of it before the extension."""
    if len(name) <= MAX_NAME_BYTES // 4:  # a character has at most four bytes
        return name
    raw = encode(name)
    if len(raw) <= MAX_NAME_BYTES:
        return name
    stem, dot, extension = name.rpartition(".")
    ending = dot + extension
    if len(encode(ending)) > MAX_EXTENSION_BYTES:
        stem, ending = name, ""
    ending = f"~{hashlib.sha256(raw).hexdigest()[:8]}{ending}"
    return _cut(encode(stem), MAX_NAME_BYTES - len(encode(ending))) + ending


def _cut(raw: bytes, length: int) -> str:
    """Return the longest prefix of whole characters within `length` bytes."""
    while length and raw[length] & 0xC0 == 0x80:  # within a character
        length -= 1
    return raw[:length].decode("utf-8", "surrogatepass")


def file_name(label: str) -> str:
    """Return the file name of a label: escaped, and cut if it is too long."""
    return label if len(label) <= MAX_NAME_BYTES and _SIMPLE_NAMES.fullmatch(label) else shorten(escape(label))


def are_simple(paths: Sequence[str]) -> bool:
    """Return whether each path is a file name unchanged: False for some that are."""
    lines = "\n".join(paths)
    return lines.count("\n") < len(paths) and _SIMPLE_NAMES.fullmatch(lines) is not None


def assign(
    items: Iterable[T], label: Callable[[T], str], key: Callable[[T], str], reserved: Collection[str] = ()
) -> dict[str, T]:
    """Assign a unique name to each item of one directory, and return the items by name, in natural order.

    An item's name is its label. Without a label it is `~<key>`; where the label is reserved, or an item whose key comes
    first in natural order (2 before 10) has the same one, it is `LABEL~<key>`. Keys identify items: an item that the
    server lists twice appears once.

    Args:
        items: The items.
        label: Return the label of an item, or ''.
        key: Return the ID of an item.
        reserved: Names that no item may have.
    """
    unique: dict[str, T] = {}
    for item in items:
        unique.setdefault(key(item), item)
    names = [label(item) for item in unique.values()]
    if not are_simple(names):
        names = [file_name(name) for name in names]
    named = dict(zip(names, unique.values(), strict=True))
    if len(named) < len(unique) or "" in named or not named.keys().isdisjoint(reserved):
        named = _resolved(unique, dict(zip(unique, names, strict=True)), reserved)
    return {name: named[name] for name in sorted(named, key=natural)} if len(named) > 1 else named


def by_label(rows: Iterable[L], reserved: Collection[str] = ()) -> dict[str, L]:
    """Assign a unique name to each row of one directory, by its label and its ID, as `assign` does."""
    return assign(rows, lambda row: row.label, lambda row: row.id, reserved)


def _resolved(items: Mapping[str, T], names: Mapping[str, str], reserved: Collection[str]) -> dict[str, T]:
    """Resolve clashes: return items by unique name, given items and their shortened labels by key."""
    named: dict[str, T] = {}
    suffixed: list[str] = []
    for key in sorted(items, key=natural):
        if names[key] and names[key] not in reserved and names[key] not in named:
            named[names[key]] = items[key]
        else:
            suffixed.append(key)
    for key in suffixed:
        candidate = shorten(f"{names[key]}~{escape(key)}")
        while candidate in named or candidate in reserved:  # another item has our suffixed name as its label
            candidate = shorten(f"{candidate}~{escape(key)}")
        named[candidate] = items[key]
    return named


def expected(label: str, key: str, reserved: Collection[str] = ()) -> str:
    """Return the name that `assign` gives to an item whose label no other item has."""
    name = file_name(label)
    return name if name and name not in reserved else shorten(f"{name}~{escape(key)}")


def split(path: str) -> tuple[str, ...]:
    """Split a catalogue path into names, one per folder level.

    An empty segment, which cannot be a folder, adds its slash to the next name (or, at the end, to the one before).
    The rest of a path below MAX_PATH_LEVELS is one name, with its slashes.
    """
    if _SIMPLE.fullmatch(path) and path.count("/") < MAX_PATH_LEVELS:
        return tuple(path.split("/"))
    names: list[str] = []
    pending = ""
    for segment in path.split("/", MAX_PATH_LEVELS - 1):
        if segment:
            names.append(file_name(pending + segment))
            pending = ""
        else:
            pending += "/"
    if pending:
        last = unescape(names.pop()) + pending if names else pending[1:]  # n slashes alone make n + 1 segments
        names.append(file_name(last))
    return tuple(names)
