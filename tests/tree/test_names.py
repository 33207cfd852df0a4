"""Test the rule by which server labels become file names."""

import hashlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xnatfs.common.errors import NotFound
from xnatfs.rest.models import Subject
from xnatfs.tree.names import (
    MAX_NAME_BYTES,
    MAX_PATH_LEVELS,
    are_simple,
    assign,
    by_label,
    decode,
    encode,
    escape,
    expected,
    file_name,
    shorten,
    split,
    unescape,
)

# Everything JSON can hold: also lone surrogates, NUL and line ends.
LABELS = st.text(st.characters(exclude_categories=[]), max_size=300)


@given(LABELS)
@example("%2F")
@example("%252F")
@example("..")
@example("%/%00%")
def test_any_label_comes_back_from_its_name(label):
    assert unescape(escape(label)) == label


@given(LABELS)
def test_names_are_legal(label):
    name = shorten(escape(label))
    assert "/" not in name
    assert "\0" not in name
    assert name not in (".", "..")
    assert len(encode(name)) <= MAX_NAME_BYTES


@given(LABELS)
@example("\udcff")
def test_names_survive_the_kernel(label):
    name = shorten(escape(label))
    assert decode(encode(name)) == name


@given(LABELS, LABELS)
def test_two_labels_never_share_a_name(one, other):
    assert (shorten(escape(one)) == shorten(escape(other))) == (one == other)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("*a^wk.ward/ scan\\type%?~@&", "*a^wk.ward%2F scan\\type%?~@&"),
        ("T1W/3D/TFE", "T1W%2F3D%2FTFE"),
        ("SCAN 1: T2  SCAN 2: PD", "SCAN 1: T2  SCAN 2: PD"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("...", "..."),
        ("100%", "100%"),
        ("a%2Fb", "a%252Fb"),
        ("a%25b", "a%2525b"),
        ("a\0b", "a%00b"),
        ("-rf", "-rf"),
        ("label\r", "label\r"),
        ("größe", "größe"),
    ],
)
def test_ordinary_and_ugly_labels(label, name):
    assert escape(label) == name


def shortened(stem: str, name: str, ending: str = "") -> str:
    return f"{stem}~{hashlib.sha256(encode(name)).hexdigest()[:8]}{ending}"


@pytest.mark.parametrize("character", ["a", "ä", "å", "\u20ac", "\udcff"])
@pytest.mark.parametrize("ahead", ["", "-", "--"])
def test_a_long_name_is_cut_between_characters_and_keeps_its_extension(character, ahead):
    """Cut to 255 bytes less '~', eight digits and '.gz'; a character that is not whole is left out."""
    name = ahead + character * 300 + ".nii.gz"
    fit = (MAX_NAME_BYTES - 12 - len(ahead)) // len(encode(character))
    assert shorten(name) == shortened(ahead + character * fit, name, ".gz")


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("a" * 255, "a" * 255),
        ("a" * 256, shortened("a" * 246, "a" * 256)),
        ("." + "a" * 300, shortened("." + "a" * 245, "." + "a" * 300)),
        ("a" * 300 + "." + "b" * 15, shortened("a" * 230, "a" * 300 + "." + "b" * 15, "." + "b" * 15)),
        ("a" * 300 + "." + "b" * 16, shortened("a" * 246, "a" * 300 + "." + "b" * 16)),
        ("a." + "b" * 300, shortened("a." + "b" * 244, "a." + "b" * 300)),
    ],
)
def test_of_a_long_name_an_extension_is_kept_that_is_one(name, short):
    """Keep an extension of up to 16 bytes with its dot."""
    assert shorten(name) == short


def test_bytes_that_are_no_text_name_nothing():
    with pytest.raises(NotFound):
        decode(b"\xff\xfe")


@given(st.text(st.characters(exclude_categories=[]), min_size=1, max_size=60))
@example("a//b")
@example("/a")
@example("a/")
@example("/")
def test_a_path_comes_back_from_its_names(path):
    assert "/".join(unescape(name) for name in split(path)) == path


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("a/b/c", ("a", "b", "c")),
        ("a//b", ("a", "%2Fb")),
        ("/a", ("%2Fa",)),
        ("a/", ("a%2F",)),
        ("a/../b", ("a", "%2E%2E", "b")),
        ("/", ("%2F",)),
    ],
)
def test_paths_become_names(path, names):
    assert split(path) == names


@pytest.mark.parametrize("segment", ["a", "%"])
def test_what_is_deeper_than_can_be_named_is_one_name(segment):
    for levels in (MAX_PATH_LEVELS - 1, MAX_PATH_LEVELS, MAX_PATH_LEVELS + 1, MAX_PATH_LEVELS + 7):
        names = split("/".join([segment] * levels))
        assert names[: MAX_PATH_LEVELS - 1] == (segment,) * min(levels, MAX_PATH_LEVELS - 1)
        last = "%2F".join([segment] * (levels - MAX_PATH_LEVELS + 1))
        assert names[MAX_PATH_LEVELS - 1 :] == ((last,) if levels >= MAX_PATH_LEVELS else ())


@given(st.lists(st.text(st.characters(exclude_categories=[]), min_size=1, max_size=12), unique=True, max_size=8))
def test_different_paths_have_different_names(paths):
    assert len({split(path) for path in paths}) == len(paths)


def shown(*rows: tuple[str, str], reserved: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the ID by name, for items of (id, label)."""
    named = assign(rows, lambda row: row[1], lambda row: row[0], reserved)
    return {name: row[0] for name, row in named.items()}


def test_of_two_equal_labels_the_lower_id_keeps_it():
    expected = {"DICOM": "9", "DICOM~10": "10"}
    assert shown(("10", "DICOM"), ("9", "DICOM")) == expected
    assert shown(("9", "DICOM"), ("10", "DICOM")) == expected


def test_an_unlabelled_item_is_named_by_its_id():
    assert shown(("7", "")) == {"~7": "7"}


def test_a_reserved_label_gives_way():
    assert shown(("XNAT_S00001", "resources"), reserved=("resources",)) == {"resources~XNAT_S00001": "XNAT_S00001"}


def test_a_label_that_looks_like_a_settled_clash_loses_nothing():
    assert shown(("1", "A"), ("2", "A"), ("3", "A~2")) == {"A": "1", "A~2": "3", "A~2~2": "2"}


def test_rows_are_named_by_their_label_and_their_id():
    rows = [Subject("S2", "A", "", None), Subject("S1", "A", "", None), Subject("S3", "in", "", None)]
    assert by_label(rows) == {"A": rows[1], "A~S2": rows[0], "in": rows[2]}
    assert by_label(rows, {"in"}) == {"A": rows[1], "A~S2": rows[0], "in~S3": rows[2]}


def test_labels_that_no_file_can_have_are_escaped():
    assert shown(("1", "a/b"), ("2", "c")) == {"a%2Fb": "1", "c": "2"}


@pytest.mark.parametrize(("label", "key"), [("A", "1"), ("a/b", "1"), ("in", "1"), ("", "7"), ("", "a/b"), ("in", "/")])
def test_the_expected_name_is_the_assigned_one(label, key):
    assert list(shown((key, label), reserved=("in",))) == [expected(label, key, ("in",))]


def test_names_are_listed_in_the_order_of_numbers():
    assert list(shown(("10", "10"), ("9", "9"))) == ["9", "10"]
    assert list(shown(("10", "10"), ("9", "9"), ("2-MR1", "2-MR1"))) == ["2-MR1", "9", "10"]


@given(st.lists(st.tuples(st.integers(0, 99).map(str), st.sampled_from(["", "A", "A~1", "~1", "in"])), max_size=12))
def test_every_item_has_one_name_whatever_the_order(rows):
    unique = list({row[0]: row for row in rows}.values())
    forward, backward = shown(*unique, reserved=("in",)), shown(*reversed(unique), reserved=("in",))
    assert forward == backward
    assert sorted(forward.values()) == sorted(row[0] for row in unique)


@given(st.lists(st.text("ab\n/.%\0é ", max_size=4), min_size=1, max_size=4))
def test_paths_that_are_called_simple_are_names(paths):
    """Find a line break within a path, which separates the paths that are looked at together."""
    if are_simple(paths):
        assert [split(path) for path in paths] == [(path,) for path in paths]


def test_simple_names_are_found_and_no_line_break_among_them():
    assert are_simple(["a" * 201, "b c.nii.gz"])
    assert not are_simple(["a\nb"])


@pytest.mark.parametrize("label", ["a" * 256, "a\n" * 128, "a" * 200 + "\n" + "a" * 200, ".", "..", "", "a/b", "a%2Fb"])
def test_a_file_name_is_the_label_escaped_and_shortened(label):
    assert file_name(label) == shorten(escape(label))
