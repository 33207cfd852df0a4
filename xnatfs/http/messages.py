"""Define requests, and the answers to changes."""

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field

from xnatfs.http.replies import Expects, page_message

# The body of a request: bytes, or a function that begins to yield its pieces, called each time the request is sent.
RequestBody = bytes | Callable[[], AsyncGenerator[bytes]]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request.

    Attributes:
        method: The HTTP method.
        path: The path, relative to the server's URL.
        expects: The kind of body expected: a web page in its place is a sign of a lost session.
        params: The query.
        headers: Headers, in addition to those of each request.
        body: The body.
        is_change: It may change something on the server, and is not safe to repeat.
        is_big: A download process receives the body; the reply then has the extension "file_body".
    """

    method: str
    path: str
    expects: Expects = "any"
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: RequestBody = b""
    is_change: bool = False
    is_big: bool = False

    @property
    def kind(self) -> str:
        """Return what it requests, for counters: a listing, a file, an archive, a head, a change, or other."""
        if self.is_change:
            return "change"
        if self.method == "HEAD":
            return "head"
        if self.expects == "file":
            return "archive" if "format" in self.params else "file"
        return "listing" if self.expects == "json" else "other"


@dataclass(frozen=True, slots=True)
class ChangeReply:
    """A server's answer to a change. `text` is all of a short body, or the beginning of a long one."""

    status: int
    location: str
    text: str

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_page(self) -> bool:
        """Return whether the body is a web page: XNAT answers a successful change with nothing, an address, or JSON."""
        return self.text.lstrip("\ufeff \r\n\t").startswith("<")

    def message(self) -> str:
        """Return the server's own message, to be shown to the user."""
        return page_message(self.text) or f"status {self.status}"
