"""Test what the status, the headers and the page of a reply mean."""

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio

from xnatfs.common.errors import BadReply, Denied, LoginRequired, NotFound
from xnatfs.http.replies import (
    check_status,
    file_name,
    last_modified,
    read_page,
    retry_after,
    status_line,
    strong_validator,
)

DATE = "Tue, 02 Jan 2024 03:04:05 GMT"
WHERE = "https://xnat.example.org/data/x"


def reply(status: int = 200, **options: Any) -> httpx.Response:
    request = httpx.Request("GET", WHERE, extensions={"timeout": {"read": 5.0}})
    return httpx.Response(status, request=request, **options)


async def broken_off(pause: float = 0) -> AsyncIterator[bytes]:
    yield b"beginning"
    await trio.sleep(pause)
    raise httpx.ReadError("it broke off")


def with_headers(*headers: tuple[str, str]) -> httpx.Response:
    return reply(headers=headers)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ('attachment; filename="a.dcm"', b"a.dcm"),
        ('attachment; filename="a"b.dcm"; size=1', b'a"b.dcm'),
        ('attachment; filename="x;filename="y"', b'x;filename="y'),
        ("attachment", b""),
        ('attachment; filename="a.dcm', b""),
    ],
)
def test_a_file_name_is_all_between_the_first_quote_and_the_last(header, name):
    assert file_name(with_headers(("Content-Type", 'x; filename="no"'), ("CONTENT-Disposition", header))) == name
    assert file_name(with_headers(("content-type", "text/plain"))) == b""


def test_retry_after_is_seconds():
    assert retry_after(with_headers(("retry-after", "7"))) == 7
    assert [retry_after(response) for response in (reply(), with_headers(("retry-after", DATE)))] == [0, 0]


@pytest.mark.parametrize(("header", "date"), [(DATE, DATE), ("x" * 65, ""), ("", "")])
def test_a_date_is_printable_and_short(header, date):
    assert last_modified(with_headers(("last-modified", header))) == date
    assert last_modified(reply()) == ""


@pytest.mark.parametrize(
    ("headers", "validator"),
    [
        ({"etag": '"a"', "last-modified": DATE}, '"a"'),
        ({"etag": 'W/"a"'}, ""),
        ({"last-modified": DATE}, DATE),
        ({"last-modified": DATE, "date": DATE}, ""),
        ({"last-modified": "soon"}, ""),
        ({}, ""),
    ],
)
def test_a_validator_is_strong(headers, validator):
    assert strong_validator(with_headers(*headers.items())) == validator


def test_a_status_has_its_phrase_even_where_the_server_sends_none():
    assert status_line(reply(500, extensions={"reason_phrase": b""})) == "500 Internal Server Error"
    assert status_line(reply(500, extensions={"reason_phrase": b"Bad luck"})) == "500 Bad luck"


@pytest.mark.parametrize("pause", [0, 10])
async def test_a_page_that_breaks_off_is_an_error_unless_its_beginning_is_enough(autojump_clock, pause):
    with pytest.raises(httpx.TransportError, match="not all of it within 5 s" if pause else "it broke off"):
        await read_page(reply(content=broken_off(pause)))
    assert await read_page(reply(content=broken_off(pause)), may_break_off=True) == "beginning"


@pytest.mark.parametrize(
    ("status", "reason", "error", "text"),
    [
        (401, b"", LoginRequired, "was refused to u, right after logging in"),
        (403, b"not yours", Denied, "is not open to u (not yours)"),
        (404, b"gone", NotFound, "does not exist, or not for u (gone)"),
        (410, b"", NotFound, "does not exist, or not for u"),
        (302, b"", BadReply, "redirects, which xnatfs does not follow"),
        (400, b"no such column", BadReply, "answers 400 Bad Request (no such column)"),
        (400, b"Bad Request", BadReply, "answers 400 Bad Request"),
    ],
)
async def test_a_status_means_an_error_with_the_servers_reason(status, reason, error, text):
    async def body() -> AsyncIterator[bytes]:
        yield reason

    response = reply(status, content=body(), headers={"location": "/login"} if status == 302 else {})
    with pytest.raises(error, match=f"^{re.escape(WHERE)} {re.escape(text)}$") as raised:
        await check_status(response, WHERE, "u", "any")
    assert (raised.value.status, raised.value.url) == (status, WHERE)


async def test_the_reason_may_break_off():
    with pytest.raises(Denied, match=r"\(beginning\)$"):
        await check_status(reply(403, content=broken_off()), WHERE, "u", "any")
