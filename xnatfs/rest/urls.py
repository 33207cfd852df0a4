"""Build the URLs of items, resources and files, quoted so that XNAT reads them back."""

from collections.abc import Iterable, Sequence
from urllib.parse import quote

from xnatfs.rest.models import FileRow


def has_url(path: str) -> bool:
    """Return whether a file's path can be part of a URL.

    XNAT's firewall refuses encoded '%', ';' and '\\', empty segments and dot segments; control characters are
    refused by the server below it.
    """
    if any(character in "%;\\" or character < " " or character == "\x7f" for character in path):
        return False
    return not any(each in ("", ".", "..") for each in path.split("/"))


def segment(text: str) -> str:
    """Quote one segment of a path, dot segments too: unquoted, they would lead to another item."""
    return text.replace(".", "%2E") if text in (".", "..") else quote(text, safe="", errors="surrogatepass")


def segments(keys: Iterable[str]) -> str:
    """Join several items to one segment of a path."""
    return ",".join(segment(key) for key in keys)


def quoted(path: str) -> str:
    """Quote a file's path."""
    return "/".join(segment(each) for each in path.split("/"))


def item_path(item: Sequence[str]) -> str:
    """Return the path of an item, given as the segments of its URL after /data."""
    return "/data/" + "/".join(segment(each) for each in item)


def file_url(item: Sequence[str], file: FileRow) -> str:
    """Return the path of a file of one of the item's resources."""
    return f"{item_path(item)}/resources/{segment(file.resource_id)}/files/{quoted(file.path)}"
