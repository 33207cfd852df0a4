"""Apply a fault to an answer, or make an answer of its own where the fault needs no server.

A function gets the answer of the upstream server, or a request, and the step; `met` is called where the fault has
occurred, not before: a body that is shorter than the place to cut it at is no cut.
"""

import gzip
import itertools
import re
from collections.abc import Callable, Iterator
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus

from tests.faults.messages import PIECE, Answer, Head
from tests.faults.script import Step

MetCall = Callable[[], None]

OTHER = bytes(byte ^ 0x55 for byte in range(256))  # what becomes of each byte in another content
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)$")
RANGE = re.compile(r"bytes=(\d+)-(\d*)$")
PAGE = b"<!DOCTYPE html>\n<html><head><title>It works</title></head><body><h1>It works!</h1></body></html>\n"
# As XNAT shows it, a stranger's session beside it.
LOGIN = (
    b'<!DOCTYPE html>\n<html><head><title>XNAT login</title></head><body><form id="login_form" method="post" '
    b'action="/login"><input name="username"><input type="password" name="password"></form></body></html>\n'
)
LATER = 1_750_000_000  # the date of another content: not the file's own, and so long past that a client goes by it
FRESH = 1_800_000_000  # a file's date, and the server's time: of files replaced within that second none is told apart
STRANGER = "JSESSIONID=0123456789ABCDEF0123456789ABCDEF; Path=/; HttpOnly"


def made(status: int, reason: str, content_type: str, body: bytes, *headers: tuple[str, str]) -> Answer:
    """Make an answer that no upstream server has given."""
    first = f"HTTP/1.1 {status} {reason or _phrase(status)}"
    date = ("Date", formatdate(usegmt=True))
    length = [] if status in (204, 304) else [("Content-Length", str(len(body)))]
    answer = Answer(Head(first, [date, ("Content-Type", content_type), *length, *headers]), [body], len(body))
    answer.bodiless = status in (204, 304)
    return answer


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unheard-of"


# -- answers in the server's place ---------------------------------------------------------------------------------


def status(step: Step) -> Answer:
    body = (step.body or f"<html><body><h1>HTTP Status {step.status}</h1></body></html>").encode()
    headers = [("Retry-After", str(step.retry_after))] if step.retry_after != "" else []
    if step.status == 401:
        headers.append(("WWW-Authenticate", 'Basic realm="XNAT"'))
    return made(step.status, step.reason, "text/html", body, *headers)


def html(step: Step) -> Answer:
    return made(200, "", "text/html;charset=UTF-8", step.body.encode() or PAGE)


def login_page(step: Step) -> Answer:
    return made(200, "", "text/html;charset=UTF-8", LOGIN, ("Set-Cookie", STRANGER))


def redirect(step: Step) -> Answer:
    return made(302, "", "text/html", b"", ("Location", step.to), ("Set-Cookie", STRANGER))


def wrong_json(step: Step) -> Answer:
    body = step.body or '{"ResultSet": {"Result": [{"ID": "P1", "name": "the end is mis'
    return made(200, "", "application/json", body.encode())


def huge_json(step: Step) -> Answer:
    """Answer with a huge list that is well-formed and meaningless: rows upon rows."""
    row = b'{"ID":"P%09d","name":"' + b"x" * 200 + b'"}'

    def rows() -> Iterator[bytes]:
        yield b'{"ResultSet":{"Result":[' + row % 0
        sent, number = 0, 1
        while sent < step.length:
            piece = b"".join(b"," + row % n for n in range(number, number + 1000))
            sent, number = sent + len(piece), number + 1000
            yield piece
        yield b"]}}"

    head = Head("HTTP/1.1 200 OK", [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")])
    return Answer(head, rows())


IN_ITS_PLACE: dict[str, Callable[[Step], Answer]] = {
    "status": status,
    "html": html,
    "login-page": login_page,
    "redirect": redirect,
    "wrong-json": wrong_json,
    "huge-json": huge_json,
}


# -- the server's own, changed -------------------------------------------------------------------------------------


def start_of(answer: Answer) -> int:
    """Return where in the file the answer's body begins."""
    found = CONTENT_RANGE.match(answer.head.get("content-range"))
    return int(found[1]) if found and answer.head.status == 206 else 0


def corrupt(answer: Answer, step: Step, met: MetCall) -> None:
    """Change one byte of the file."""

    def spoilt(body: Iterator[bytes], place: int) -> Iterator[bytes]:
        for piece in body:
            if 0 <= place < len(piece):
                piece = piece[:place] + bytes([piece[place] ^ 0xFF]) + piece[place + 1 :]
                met()
            place -= len(piece)
            yield piece

    answer.body = spoilt(iter(answer.body), step.at - start_of(answer))


def redate(answer: Answer, step: Step) -> None:
    """Date a file as the step says, whatever else it does with it."""
    if step.dates == "absent":
        answer.head.drop("last-modified")
    elif step.dates == "fresh":
        answer.head.put("Last-Modified", formatdate(FRESH, usegmt=True))
        answer.head.put("Date", formatdate(FRESH, usegmt=True))


def changed(answer: Answer, step: Step, met: MetCall) -> None:
    """Replace the content by another of the same length, the same each time; date it later unless the step dates it."""
    answer.body = (piece.translate(OTHER) for piece in answer.body)
    if not step.dates:
        answer.head.put("Last-Modified", formatdate(LATER, usegmt=True))
    met()


def resized(answer: Answer, step: Step, met: MetCall) -> None:
    """Replace the content by one that is `step.by` bytes longer, or shorter."""
    body = answer.whole().translate(OTHER)
    answer.replace(body + bytes(step.by) if step.by > 0 else body[: step.by])
    met()


def encoded(answer: Answer, step: Step, met: MetCall) -> None:
    answer.replace(gzip.compress(answer.whole(), compresslevel=0, mtime=0))
    answer.head.put("Content-Encoding", "gzip")
    met()


def clock(answer: Answer, step: Step, met: MetCall) -> None:
    """Set the server's clock wrong, and the dates of its files with it."""
    answer.head.put("Date", formatdate(usegmt=True))
    for name in ("Date", "Last-Modified"):
        if value := answer.head.get(name.lower()):
            answer.head.put(name, formatdate(parsedate_to_datetime(value).timestamp() + step.by, usegmt=True))
    met()


def range_wrong(answer: Answer, step: Step, met: MetCall) -> None:
    """Note a range other than the requested one, and labelled so: `other_range` requested it."""
    if _granted(answer):
        met()


def other_range(asked: str, by: int) -> str:
    """Shift a Range header by so many bytes."""
    found = RANGE.match(asked)
    return f"bytes={int(found[1]) + by}-{int(found[2]) + by}" if found and found[2] else asked


def range_shifted(answer: Answer, step: Step, met: MetCall) -> None:
    """Send other bytes under the requested range: only the digest can tell."""
    if _granted(answer):
        body = answer.whole()
        place = step.by % len(body)
        answer.replace(body[place:] + body[:place])
        met()


def range_unclamped(answer: Answer, step: Step, met: MetCall) -> None:
    """Promise more than there is, as if the end of the range were past the file's; the connection ends before."""
    if found := _granted(answer):
        first, last, size = found
        answer.head.put("Content-Range", f"bytes {first}-{last + step.by}/{size}")
        answer.length = last - first + 1 + step.by
        answer.head.put("Content-Length", answer.length)
        met()


def range_empty(answer: Answer, step: Step, met: MetCall) -> None:
    """Answer with an empty range behind the end of the file: `bytes 6-5/6`."""
    if found := _granted(answer):
        answer.replace(b"")
        answer.head.put("Content-Range", f"bytes {found[2]}-{found[2] - 1}/{found[2]}")
        met()


def range_beyond(answer: Answer, step: Step, met: MetCall) -> None:
    """Grant a range behind the end of a file that is shorter by now, `bytes 100-200/6`; nothing comes."""
    if found := _granted(answer):
        answer.body = ()
        answer.head.put("Content-Range", f"bytes {found[0]}-{found[1]}/{step.by}")
        met()


def range_negative(answer: Answer, step: Step, met: MetCall) -> None:
    """Answer as to a suffix that is longer than the file, `bytes -94-5/6`."""
    if found := _granted(answer):
        answer.head.put("Content-Range", f"bytes {found[0] - found[2]}-{found[1]}/{found[2]}")
        met()


def range_500(answer: Answer, step: Step, met: MetCall) -> None:
    """Answer 500 with the whole file for a body; no range was requested from the upstream server."""
    answer.head.first = "HTTP/1.1 500 Internal Server Error"
    met()


def _granted(answer: Answer) -> tuple[int, int, int] | None:
    found = CONTENT_RANGE.match(answer.head.get("content-range"))
    return (int(found[1]), int(found[2]), int(found[3])) if found and answer.head.status == 206 else None


CHANGES: dict[str, Callable[[Answer, Step, MetCall], None]] = {
    "corrupt": corrupt,
    "changed": changed,
    "resized": resized,
    "gzip": encoded,
    "clock": clock,
    "range-wrong": range_wrong,
    "range-shifted": range_shifted,
    "range-unclamped": range_unclamped,
    "range-empty": range_empty,
    "range-beyond": range_beyond,
    "range-negative": range_negative,
    "range-500": range_500,
}


# -- bodies that end otherwise -------------------------------------------------------------------------------------


def first_bytes(body: Iterator[bytes], count: int) -> Iterator[bytes]:
    """Yield the first `count` bytes of a body."""
    for piece in body:
        if count <= 0:
            return
        yield piece[:count]
        count -= len(piece)


def filler(answer: Answer) -> Iterator[bytes]:
    """Yield filler without end to follow a body: blanks, which JSON allows, or zeros."""
    yield from itertools.repeat((b" " if "json" in answer.head.get("content-type") else b"\0") * PIECE)
