"""Test the members of a tar while it arrives."""

import io
import tarfile
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from xnatfs.common.errors import BadReply
from xnatfs.prefetch.tar_stream import MAX_PADDING_BYTES, members


def archive(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


async def pieces(raw: bytes, size: int) -> AsyncGenerator[bytes]:
    for start in range(0, len(raw), size):
        yield raw[start : start + size]


async def unpack(raw: bytes, size: int = 700) -> dict[str, bytes]:
    found = {}
    async with aclosing(pieces(raw, size)) as chunks, aclosing(members(chunks)) as archived:
        async for member in archived:
            found[member.name] = b"".join([chunk async for chunk in member.chunks()])
    return found


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("size", [1, 511, 512, 5000])
async def test_files_come_out_whole_whatever_the_pieces(form, size):
    files = {"a": b"1" * 1000, "b/" + "long" * 60 + "/c": b"2", "empty": b"", "größe": b"3" * 512}
    assert await unpack(archive(files, form), size) == files


@given(st.dictionaries(st.text(min_size=1, max_size=200).filter(lambda n: "\0" not in n), st.binary(), max_size=4))
def test_any_names_and_contents(files):
    clean = {name.strip("/") or "x": content for name, content in files.items()}
    assert trio.run(unpack, archive(clean)) == clean


async def test_what_is_not_read_is_skipped():
    raw = archive({"a": b"1" * 3000, "b": b"2"})
    async with aclosing(pieces(raw, 100)) as chunks, aclosing(members(chunks)) as archived:
        assert [member.name async for member in archived] == ["a", "b"]


async def test_a_reply_is_read_to_its_end():
    """Read the padding, or httpx closes the connection; but not for ever."""
    raw = archive({"a": b"1" * 3000})
    for padding, is_read in ((0, True), (100_000, True), (MAX_PADDING_BYTES + 10_000, False)):
        async with aclosing(pieces(raw + bytes(padding), 100)) as chunks:
            async with aclosing(members(chunks)) as archived:
                assert [member.name async for member in archived] == ["a"]
            assert (await anext(chunks, None) is None) == is_read


async def test_an_archive_cut_anywhere_is_an_error():
    raw = archive({"a": b"1" * 600})
    for length in (0, 100, 512, 800, 1500):
        with pytest.raises(BadReply):
            await unpack(raw[:length])


@pytest.mark.parametrize(
    ("form", "length", "cut"),
    [
        (tarfile.USTAR_FORMAT, 99, False),
        (tarfile.USTAR_FORMAT, 100, True),
        (tarfile.GNU_FORMAT, 101, False),
        (tarfile.PAX_FORMAT, 101, False),
    ],
)
async def test_a_name_that_fills_its_field_may_be_cut(form, length, cut):
    async with aclosing(pieces(archive({"n" * length: b"1"}, form), 700)) as chunks:
        async with aclosing(members(chunks)) as archived:
            assert [(len(member.name), member.cut) async for member in archived] == [(length, cut)]


async def test_garbage_is_an_error():
    with pytest.raises(BadReply, match="damaged"):
        await unpack(b"<html>" * 400)


@pytest.mark.parametrize("size", [1, 511, 512, 700, 100_000])
async def test_a_member_at_once_is_the_same_however_it_arrives(size):
    files = {"a/one": b"1" * 1000, "a/empty": b"", "a/two": bytes(range(256)) * 40, "a/" + "long" * 60: b"x" * 512}
    found = {}
    async with aclosing(pieces(archive(files), size)) as chunks, aclosing(members(chunks)) as archived:
        async for member in archived:
            found[member.name] = await member.read_rest()
    assert found == files


async def test_the_rest_of_a_member_follows_what_was_read():
    async with aclosing(pieces(archive({"a": b"0123456789" * 100, "b": b"next"}), 300)) as chunks:
        async with aclosing(members(chunks)) as archived:
            first = await anext(archived)
            async with aclosing(first.chunks()) as begun:
                read = await anext(begun)
            assert read + await first.read_rest() == b"0123456789" * 100
            assert await first.read_rest() == b""
            second = await anext(archived)
            assert (second.name, await second.read_rest()) == ("b", b"next")
