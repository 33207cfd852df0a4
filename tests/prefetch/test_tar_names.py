"""Test which of the listed files a member of a tar can be."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from xnatfs.prefetch.tar_names import TarNames, spellings
from xnatfs.prefetch.tar_stream import Member, _Stream
from xnatfs.rest.models import FileRow

TEXT = st.text(st.characters(exclude_categories=[]), min_size=1, max_size=20)


def rows(*paths: str, number: str = "7") -> list[FileRow]:
    return [FileRow(number, path, None, "", "", "", place) for place, path in enumerate(paths)]


async def nothing():
    return
    yield b""


def member(raw: bytes, *, cut: bool = False) -> Member:
    return Member(raw.decode("utf-8", "surrogateescape"), 1, _Stream(nothing()), cut=cut)


async def found(names: TarNames, raw: bytes, *, cut: bool = False) -> list[str]:
    return [row.path for _, row in names.find(member(b"E/scans/1/resources/" + raw, cut=cut))]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a%;b.dcm", b"a%;b.dcm"),
        ("b\\00", b"b/00"),
        ("b\\00", b"b\\00"),
        ("uml\u00e4ut", b"uml?ut"),
        ("uml\u00e4ut", b"uml\xe4ut"),
        ("uml\u00e4ut", "umläut".encode()),
        ("50%\u8ca0\u8377", b"50%\xa0\x77"),
        ("50%\u8ca0\u8377", b"50%??"),
        ("\u4e25", b"%"),
        ("\U0001f600", b"?"),
        ("\U0001f600", b"\x3d\x00"),
        ("\u20ac", b"\x80"),
    ],
)
def test_how_servers_spell_a_name(name, raw):
    assert raw in spellings(name)


@given(TEXT)
def test_a_name_is_always_one_of_its_spellings(name):
    assert name.encode("utf-8", "surrogatepass") in spellings(name)


@given(st.text(st.characters(max_codepoint=127, exclude_characters="\\")))
def test_a_plain_name_has_no_other_spelling(name):
    assert spellings(name) == (name.encode(),)


async def test_files_whose_names_are_one_in_the_tar_are_all_found():
    names = await TarNames.build([("DICOM", rows("50%負荷", "50%安静", "50??", "b\\00", "b/00", "other"))])
    assert await found(names, b"DICOM/files/50%??") == ["50%負荷", "50%安静"]
    assert await found(names, b"DICOM/files/50%\xa0w") == ["50%負荷"], "as XNAT 1.6 writes it"
    assert await found(names, b"DICOM/files/50??") == ["50??"]
    assert await found(names, b"DICOM/files/b/00") == ["b\\00", "b/00"]
    assert await found(names, b"DICOM/files/b\\00") == ["b\\00"]
    assert await found(names, b"DICOM/files/x/other") == []


async def test_a_resource_labelled_files():
    names = await TarNames.build([("files", rows("a.dcm", "files/a.dcm"))])
    assert await found(names, b"files/files/a.dcm") == ["a.dcm"]
    assert await found(names, b"files/files/files/a.dcm") == ["files/a.dcm"]


async def test_what_is_in_another_resource_is_none_of_ours():
    names = await TarNames.build([("DICOM", rows("a.dcm"))])
    assert await found(names, b"64/files/a.dcm") == []
    both = await TarNames.build([("DICOM", rows("a.dcm")), ("64", rows("a.dcm", number="65"))])
    ((number, row),) = both.find(member(b"E/resources/64/files/a.dcm"))
    assert (number, row.resource_id) == (1, "65")


@pytest.mark.parametrize("label", [b"R&D \xfc", b"R&amp;D ?"])
async def test_labels_are_spelled_in_as_many_ways(label):
    names = await TarNames.build([("R&D \u00fc", rows("a.dcm"))])
    assert await found(names, label + b"/files/a.dcm") == ["a.dcm"]


async def test_a_name_that_fills_its_field_can_be_that_of_longer_ones():
    names = await TarNames.build([("DICOM", rows("series-1", "series-10", "series-11", "series-2"))])
    assert await found(names, b"DICOM/files/series-1", cut=True) == ["series-1", "series-10", "series-11"]
    assert await found(names, b"DICOM/files/series-2", cut=True) == ["series-2"]
    assert await found(names, b"DICOM/files/series-1") == ["series-1"]


@given(st.lists(TEXT, min_size=1, max_size=8, unique=True), st.data())
def test_looking_for_one_file_finds_its_rivals_like_looking_for_all(paths, data):
    wanted = data.draw(st.sampled_from(paths))
    raw = data.draw(st.sampled_from(spellings(wanted)))
    cut = data.draw(st.booleans())

    async def look(only: str | None) -> list[str]:
        names = await TarNames.build([("DICOM", rows(*paths))], only)
        return sorted(await found(names, b"DICOM/files/" + raw, cut=cut))

    everything = trio.run(look, None)
    assert trio.run(look, wanted) == everything
    assert wanted in everything
