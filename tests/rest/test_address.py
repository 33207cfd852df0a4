"""Test how a file is requested, so that the request can mean no other (XNAT REST contract 3.1, 6.4, 6.6, 8.5)."""

import pytest

from xnatfs.rest.address import Address, Route, base, with_digits
from xnatfs.rest.file_table import Catalogue
from xnatfs.rest.models import Resource

ITEM = ("experiments", "E")
NAME = (Route.NAME,)
ARCHIVE = (Route.ARCHIVE, Route.INDEX)
NAME_AT_LAST = (*ARCHIVE, Route.NAME)


def resource(number: str, label: str, category: str = "scans", cat_id: str = "1") -> Resource:
    return Resource(number, label, category, cat_id, "", "")


def address(chosen: Resource, *others: Resource) -> Address:
    group = chosen.group
    return Address.for_resource(chosen, ITEM, (*ITEM, *group), base(ITEM, group), with_digits([chosen, *others]))


def catalogue(*paths: str) -> Catalogue:
    made = Catalogue("64")
    for path in paths:
        made.add(path, None, "", ("", ""))
    return made


@pytest.mark.parametrize(
    ("path", "others", "routes"),
    [
        ("a/b.dcm", ("a%2Fb.dcm", "100%"), NAME),
        ("a b+#ü.dcm", ("a b",), NAME),
        ("hash#tag", ("hash%23tag",), ARCHIVE),
        ("umläut/x", ("uml%C3%A4ut/x",), ARCHIVE),
        ("a b+c", ("a%20b%2Bc",), ARCHIVE),
        ("a b+c", ("a%20b+c",), NAME),
        ("100%", (), NAME_AT_LAST),
        ("a;b", (), NAME_AT_LAST),
        ("100%", ("100%25",), ARCHIVE),
        ("100%25", ("100%",), NAME_AT_LAST),
        ("a\\b", (), ARCHIVE),
        ("a%\\b", (), ARCHIVE),
        ("a/../b", (), ARCHIVE),
        ("a%\n", (), ARCHIVE),
        ("data.zip", (), NAME),
        ("data.zip/a", (), ARCHIVE),
        ("deep/x.MRB!/a", (), ARCHIVE),
        ("x.zipped/a", (), NAME),
    ],
)
def test_the_ways_to_a_file(path, others, routes):
    found = address(resource("64", "DICOM"))
    assert found.routes(path, catalogue(*others, path)) == routes
    assert found.has_name(path, catalogue(*others, path)) == (routes == NAME)


def test_a_resource_is_asked_for_below_what_it_hangs_on():
    found = address(resource("64", "DICOM"), resource("7", "8"))
    assert (found.base, found.archived_at, found.rivals) == ((*ITEM, "scans", "1"), ITEM, ())


def test_a_label_elsewhere_that_is_its_number_matters_to_the_archive_only():
    found = address(resource("64", "DICOM"), resource("65", "64", "resources", ""))
    assert (found.base, found.archived_at, found.rivals) == ((*ITEM, "scans", "1"), (*ITEM, "scans", "1"), ())
    assert found.routes("a", catalogue("a")) == NAME


def test_a_label_beside_it_that_is_its_number_forbids_its_name():
    rival = resource("65", "64")
    found = address(resource("64", "DICOM"), rival)
    assert found.rivals == (rival,)
    assert found.routes("a", catalogue("a")) == ARCHIVE


def test_in_a_session_itself_all_labels_count():
    rival = resource("65", "64")
    found = address(resource("64", "OWN", "resources", ""), rival)
    assert (found.base, found.rivals) == (ITEM, (rival,))


def test_a_resource_labelled_like_its_own_number_is_meant_by_both():
    assert address(resource("64", "64")).routes("a", catalogue("a")) == NAME


@pytest.mark.parametrize("cat_id", ["1", "1-MR2", "2_4", "1.5", "alle"])
def test_ids_that_mean_one_scan(cat_id):
    assert base(ITEM, ("scans", cat_id)) == (*ITEM, "scans", cat_id)


@pytest.mark.parametrize(
    "cat_id", ["", "*", "ALL", "all", "Null", "1,2", "a b", "a+b", "a/b", "ü", "[SLASH]", "..", "&"]
)
def test_ids_that_may_mean_others(cat_id):
    assert base(ITEM, ("scans", cat_id)) == ITEM


@pytest.mark.parametrize("category", ["resources", "subjects", "..", ""])
def test_only_parts_of_a_session_have_a_url_of_their_own(category):
    assert base(ITEM, (category, "1")) == ITEM


def test_of_a_resource_without_escapes_nothing_is_made_for_twins():
    assert catalogue("a", "ü", "50%a", "100%").escaped_paths == frozenset()
    assert catalogue("a", "ü%", "b%20c").escaped_paths == {"ü%", "b%20c"}
