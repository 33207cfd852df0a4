"""Test the configuration service of the demo, where sites keep the names that series have in BIDS."""

import json

import httpx
import pytest

from tests.support.changing import ADMIN, COLLABORATOR, MEMBER, OUTSIDER, OWNER, rows

SITE, PROJECT = "/data/config/bids/bidsmap", "/data/projects/P/config/bids/bidsmap"
MAP = json.dumps([{"series_description": "größe", "bidsname": "T1w"}])
MARKED = {"Content-Type": "text/plain"}


def put(client: httpx.Client, url: str, contents: str = MAP) -> int:
    return client.put(url, content=contents.encode(), headers=MARKED).status_code


@pytest.mark.parametrize("url", [SITE, PROJECT])
def test_what_is_not_set_is_not_found(client, url):
    for query in ("", "?contents=true"):
        assert client(OWNER).get(url + query).status_code == 404


def test_a_map_is_text_with_contents_and_a_table_without(client):
    assert put(client(ADMIN), SITE) == 201
    plain = client(OUTSIDER).get(SITE, params={"contents": "true"})
    assert (plain.headers["content-type"], plain.text) == ("text/plain;charset=ISO-8859-1", MAP)
    (row,) = rows(client(OUTSIDER).get(SITE))
    assert (row["tool"], row["path"], row["contents"], row["status"]) == ("bids", "bidsmap", MAP, "enabled")
    assert rows(client(OWNER).get(f"{SITE}?meta=true"))[0]["contents"] == ""
    assert rows(client(OWNER).get("/data/config")) == [{"tool": "bids"}]
    assert [row["path"] for row in rows(client(OWNER).get("/data/config/bids"))] == ["bidsmap"]


def test_a_projects_map_is_apart_from_the_sites(client):
    assert put(client(ADMIN), SITE, "[]") == 201
    assert client(OWNER).get(f"{PROJECT}?contents=true").status_code == 404
    assert put(client(OWNER), PROJECT) == 201
    assert client(COLLABORATOR).get(f"{PROJECT}?contents=true").json() == json.loads(MAP)
    assert client(OWNER).get(f"{SITE}?contents=true").text == "[]"
    assert rows(client(OWNER).get("/data/projects/P/config")) == [{"tool": "bids"}]


def test_writing_takes_the_right_to_edit(client):
    for user, url in ((OWNER, SITE), (COLLABORATOR, PROJECT)):
        assert put(client(user), url) == 403
    assert put(client(OUTSIDER), PROJECT) == 404
    assert client(OUTSIDER).get(f"{PROJECT}?contents=true").status_code == 404
    assert put(client(MEMBER), PROJECT) == 201


def test_each_change_makes_a_version(client):
    owner = client(OWNER)
    assert [put(owner, PROJECT, text) for text in ("[1]", "[1]", "[2]")] == [201, 200, 201]
    assert owner.get(f"{PROJECT}?contents=true").text == "[2]"
    assert owner.get(f"{PROJECT}?contents=true&version=1").text == "[1]"
    assert [row["version"] for row in rows(owner.get(f"{PROJECT}?action=getHistory&sortBy=version"))] == ["1", "2"]


def test_a_deleted_map_is_disabled_and_can_be_enabled(client):
    owner = client(OWNER)
    assert put(owner, PROJECT) == 201
    assert owner.delete(PROJECT).status_code == 200
    assert owner.get(f"{PROJECT}?contents=true").status_code == 404
    assert rows(owner.get(PROJECT))[0]["status"] == "disabled"
    assert owner.put(f"{PROJECT}?status=enabled").status_code == 200
    assert owner.get(f"{PROJECT}?contents=true").json() == json.loads(MAP)
    assert owner.put(f"{PROJECT}?status=perhaps").status_code == 400


def test_items_alone_have_the_archives_alias(client):
    assert put(client(ADMIN), SITE) == put(client(OWNER), PROJECT) == 201
    assert client(OWNER).get("/data/archive/config/bids/bidsmap?contents=true").status_code == 404
    assert client(OWNER).get("/data/archive/projects/P/config/bids/bidsmap?contents=true").status_code == 400
