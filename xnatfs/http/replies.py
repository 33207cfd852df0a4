"""Interpret replies: what their headers state, whether a page came in place of data, and what an error page says."""

import logging
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from email.utils import mktime_tz, parsedate_tz
from typing import Any, Literal, cast

import httpx
import trio

from xnatfs.common.errors import BadReply, Denied, LoginRequired, NotFound, Unavailable
from xnatfs.common.sanitize import decoded
from xnatfs.common.sanitize import size as size_of
from xnatfs.settings.session_store import is_session_id

log = logging.getLogger(__name__)

# The kind of body that a request expects.
Expects = Literal["json", "file", "any"]

# Statuses of a server, or a gateway before it, that is busy or down; and those that say nothing about a session.
BUSY_STATUSES = frozenset({429, 502, 503, 504})
FAULT_STATUSES = BUSY_STATUSES | {500}
# Bytes read of an error page, or of the answer to a login or a change: a message is near the beginning.
MAX_PAGE_BYTES = 64 * 1024
# Characters searched for a page's message, from its tag on, with markup: some contain a database statement that failed.
MAX_MESSAGE_LENGTH = 16 * 1024
# The beginning of the <h3> of the container's own error pages, and of its titles that name nothing else.
CONTAINER_NAME = "Apache Tomcat"
# The tags around a page's message, the best first: the container's message (Tomcat 7 to 10); XNAT's own, where the
# container has its name; the container's general description; nginx, httpd and balancers have only a title.
MESSAGE_TAGS = (("<b>Message</b", "</p"), ("<h3", "</h3"), ("<b>Description</b", "</p"), ("<title", "</title"))
# The age, in seconds at the time of the reply, from which a date identifies a version (RFC 9110, 8.8.2.2): within the
# second of its date a file may change again.
STRONG_DATE_SECONDS = 1

_JSESSIONID = re.compile(r'JSESSIONID="?([^";,\s]*)')
# A date in any of HTTP's forms: it is sent back, in If-Range, and persisted.
_DATE = re.compile(r"[ -~]{1,64}")
# A strong entity tag, not too long to be sent back; a weak one begins with W/.
_STRONG_TAG = re.compile(r'"[!#-~]{1,256}"')


# -- bodies ------------------------------------------------------------------------------------------------------


async def close(response: httpx.Response) -> None:
    """Close a reply, also in a cancelled task."""
    with trio.CancelScope(shield=True):
        await response.aclose()


async def read_page(response: httpx.Response, *, may_break_off: bool = False) -> str:
    """Read the first MAX_PAGE_BYTES of a body, whatever charset or encoding the headers state.

    Raises httpx.ReadTimeout if that takes longer in all than the request's read timeout. With `may_break_off`, what
    came before that or another httpx.TransportError is returned.
    """
    body = bytearray()
    seconds = response.request.extensions["timeout"]["read"]
    try:
        with trio.move_on_after(seconds) as scope:
            async with aclosing(cast(AsyncGenerator[bytes], response.aiter_raw())) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > MAX_PAGE_BYTES:
                        break
        if scope.cancelled_caught:
            raise httpx.ReadTimeout(f"not all of it within {seconds:g} s")
    except httpx.TransportError as error:
        if not may_break_off:
            raise
        log.debug("the answer of %s broke off: %s", response.url.path, error)
    return body[:MAX_PAGE_BYTES].decode("utf-8", "replace")


def page_message(html: str) -> str:
    """Return the message of an error page, or the first line of plain text; '' if there is none."""
    if "<" not in html:
        return " ".join(html.strip().partition("\n")[0].split())[:200]
    found = (_text_between(html, begin, end) for begin, end in MESSAGE_TAGS)
    return next((message for message in found if message and not message.startswith(CONTAINER_NAME)), "")


def _text_between(html: str, begin: str, end: str) -> str:
    """Return the text between two tags, without markup. `begin` lacks its '>', since it may have attributes."""
    # In steps: with a single pattern, the time for a page of `<h3<h3<h3` would be quadratic in its length.
    begins = re.search(begin, html, re.IGNORECASE)
    if not begins:
        return ""
    text = html[begins.end() : begins.end() + MAX_MESSAGE_LENGTH]
    ends = re.search(end, text, re.IGNORECASE)
    text = text[: ends.start()] if ends else ""
    return " ".join(decoded(re.sub(r"<[^>]*>", " ", text.partition(">")[2])).split())[:200]


# -- statuses ----------------------------------------------------------------------------------------------------


async def check_status(
    response: httpx.Response, where: str, user: str, expects: Expects, allow: tuple[int, ...] = (200,)
) -> None:
    """Raise the exception that the status of a reply means, unless the status is allowed.

    Args:
        response: The reply, its body not yet read.
        where: The URL that was requested.
        user: The account.
        expects: The kind of body expected: a web page in its place raises BadReply.
        allow: The statuses to accept.
    """
    status = response.status_code
    if status in allow:
        check_is_data(response, expects)
        return
    message = page_message(await read_page(response, may_break_off=True))
    because = f" ({message})" if message else ""
    facts: Any = {"status": status, "url": where}
    match status:
        case 401:
            raise LoginRequired(f"{where} was refused to {user}, right after logging in{because}", **facts)
        case 403:
            raise Denied(f"{where} is not open to {user}{because}", **facts)
        case 404 | 410:
            raise NotFound(f"{where} does not exist, or not for {user}{because}", **facts)
        case _ if response.has_redirect_location:
            raise BadReply(f"{where} redirects, which xnatfs does not follow", **facts)
    because = "" if message in status_line(response) else because
    raise BadReply(f"{where} answers {status_line(response)}{because}", **facts)


def status_line(response: httpx.Response) -> str:
    """Return the status with its reason phrase, which some containers do not send."""
    return f"{response.status_code} {response.reason_phrase or httpx.codes.get_reason_phrase(response.status_code)}"


def asks_to_wait(response: httpx.Response) -> bool:
    """Return whether a reply proves the server reachable, only busy: it has Retry-After, or status 429."""
    return response.status_code == 429 or "retry-after" in response.headers


def retry_after(response: httpx.Response) -> float:
    """Return Retry-After in seconds; 0 for the form with a date, which proxies do not use for faults."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0


def unavailable(response: httpx.Response, text: str) -> Unavailable:
    error = Unavailable(text, status=response.status_code, url=str(response.url))
    error.asks_to_wait = asks_to_wait(response)
    return error


# -- pages in place of data --------------------------------------------------------------------------------------


def check_is_data(response: httpx.Response, expects: Expects) -> None:
    """Raise BadReply if a web page came in place of data."""
    if is_page(response, expects):
        raise BadReply(f"{response.url.path} came as a web page, not as data")


def is_html(response: httpx.Response) -> bool:
    return "html" in response.headers.get("content-type", "").lower()


def is_page(response: httpx.Response, expects: Expects) -> bool:
    """Return whether a web page came in place of data: to log in or change the password, with 200 or by redirect.

    XNAT sends files, HTML files too, as attachments; releases before 1.7 send a date and Cache-Control instead. A page
    has neither.
    """
    if response.is_redirect and expects != "any":
        return True
    if response.has_redirect_location:  # after a change, 303 may mean success, and so may a 301 without Location
        return response.status_code != 303
    if not response.is_success or expects == "any" or not is_html(response):
        return False
    return not (expects == "file" and _is_file(response))


def _is_file(response: httpx.Response) -> bool:
    """Return whether HTML is a file. Without Content-Disposition its name says so: XNAT takes the type from there."""
    headers = response.headers
    if "attachment" in headers.get("content-disposition", "").lower():
        return True
    dated = "last-modified" in headers and headers.get("cache-control", "").lower() == "must-revalidate"
    return dated and response.url.path.lower().endswith((".html", ".htm"))


# -- headers -----------------------------------------------------------------------------------------------------


def session_cookie(response: httpx.Response) -> str:
    """Return the JSESSIONID that a reply sets, the last of several; '' if it sets none."""
    cookies = response.headers.get_list("set-cookie")
    found = [match[1] for cookie in cookies if (match := _JSESSIONID.match(cookie)) and is_session_id(match[1])]
    return found[-1] if found else ""


def content_length(response: httpx.Response) -> int | None:
    return size_of(response.headers.get("content-length", ""))


def is_framed(response: httpx.Response) -> bool:
    """Return whether a body is delimited by a length or by chunks; else it ends with its connection."""
    return content_length(response) is not None or "transfer-encoding" in response.headers


def last_modified(response: httpx.Response) -> str:
    """Return Last-Modified as it was sent; '' if it is no date."""
    value = response.headers.get("last-modified", "")
    return value if _DATE.fullmatch(value) else ""


def strong_validator(response: httpx.Response) -> str:
    """Return a strong validator of a reply, to be sent in If-Range; '' if there is none."""
    tag: str = response.headers.get("etag", "")
    if _STRONG_TAG.fullmatch(tag):
        return tag
    modified = last_modified(response)
    changed, sent = _seconds(modified), _seconds(response.headers.get("date", ""))
    if sent is None:  # the time of receipt counts then (RFC 9110, 6.6.1)
        sent = time.time()
    return modified if changed is not None and sent - changed >= STRONG_DATE_SECONDS else ""


def _seconds(date: str) -> float | None:
    """Parse an HTTP date to seconds since the epoch; None if it is no date."""
    try:
        parsed = parsedate_tz(date)
        return mktime_tz(parsed) if parsed else None
    except (ValueError, OverflowError, TypeError, IndexError):  # an untrusted date may contain any number
        return None


def file_name(response: httpx.Response) -> bytes:
    """Return the file name in Content-Disposition, as the bytes that the server sent; b'' if there is none."""
    said = next((value for key, value in response.headers.raw if key.lower() == b"content-disposition"), b"")
    _, _, name = said.partition(b'filename="')
    return name.rpartition(b'"')[0]
