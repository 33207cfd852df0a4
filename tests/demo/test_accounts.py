"""Test sessions, tokens and users of the demo (XNAT REST contract 2)."""

from collections.abc import Callable
from dataclasses import replace

import httpx
import pytest

from xnatfs.demo.archive.model import Archive, User

NAMES = ("jane", "john", "root")
Clients = Callable[..., httpx.Client]


@pytest.fixture
def archive() -> Archive:
    archive = Archive()
    for name in NAMES:
        archive.users[name] = User(name, name.upper(), admin=name == "root")
    archive.project("P", "P", jane="Owners")
    return archive


def test_a_wrong_password_opens_a_session_all_the_same(client):
    reply = client().get("/data/projects", auth=("jane", "wrong"))
    assert reply.status_code == 401
    assert {"JSESSIONID", "SESSION_EXPIRATION_TIME"} <= set(reply.cookies)


def test_a_login_changes_the_session(client, demo):
    one = client()
    before = one.get("/data/JSESSION").text
    after = one.get("/data/JSESSION", auth=("jane", "JANE")).text
    assert before != after
    assert demo.sessions.find(before) is None
    assert one.cookies["JSESSIONID"] == after


def test_another_user_needs_a_password_and_gets_another_session(client):
    one = client("jane")
    before = one.cookies["JSESSIONID"]
    assert one.get("/xapi/users/username", auth=("jane", "not looked at")).text == "jane"
    assert one.get("/xapi/users/username", auth=("john", "wrong")).status_code == 401
    assert one.get("/xapi/users/username", auth=("john", "JOHN")).text == "john"
    assert one.cookies["JSESSIONID"] != before


@pytest.mark.parametrize("path", ["/data/JSESSIONS", "/xapi/siteConfig/buildInfo/version", "/data/services/authority"])
def test_only_exactly_the_open_addresses_are_open(client, path):
    assert client().get(path).status_code == 401


def test_pages_send_everybody_to_the_login(client):
    reply = client().get("/app/template/Index.vm")
    assert (reply.status_code, reply.headers["location"]) == (302, "/app/template/Login.vm")


@pytest.mark.parametrize("path", ["JSESSION", "auth", "services/tokens/issue"])
def test_services_have_no_alias_below_archive(client, path):
    one = client("jane")
    assert one.get(f"/data/{path}").status_code == 200
    assert one.get(f"/REST/{path}").status_code == 200
    assert one.get(f"/data/archive/{path}").status_code == 404


def test_switches_are_on_by_anything_but_false_and_0(client):
    one = client("jane")
    assert all("XNAT_CSRF" in one.get(f"/data/JSESSION?CSRF={value}").text for value in ("true", "1", "no"))
    assert not any("XNAT_CSRF" in one.get(f"/data/JSESSION?CSRF={value}").text for value in ("false", "0"))


def test_the_form_takes_no_get(client):
    assert client().get("/data/services/auth").status_code == 405


def test_a_lockout_that_is_over_leaves_nothing_behind(client, clock):
    one = client()
    for _ in range(20):
        assert one.get("/data/auth", auth=("jane", "wrong")).status_code == 401
    assert one.get("/data/auth", auth=("jane", "JANE")).status_code == 401
    clock.now += 3601
    assert one.get("/data/auth", auth=("jane", "wrong")).status_code == 401
    assert one.get("/data/auth", auth=("jane", "JANE")).status_code == 200


# -- tokens ----------------------------------------------------------------------------------------------------


def issued(one: httpx.Client, path: str = "issue") -> dict[str, str]:
    made: dict[str, str] = one.get(f"/data/services/tokens/{path}").json()
    return made


def test_a_token_is_described(client):
    token = issued(client("jane"))
    assert (token["xdatUserId"], len(token["secret"]), token["secret"].isalnum()) == ("jane", 64, True)
    assert {"alias", "id", "enabled", "created", "timestamp", "disabled", "singleUse"} <= token.keys()


def test_a_token_dies_after_two_days(client, clock):
    token = issued(client("jane"))
    login = (token["alias"], token["secret"])
    assert client().get("/data/auth", auth=login).text == "User 'jane' is logged in"
    clock.now += 2 * 86400
    assert client().get("/data/auth", auth=login).status_code == 401


def test_tokens_are_shown_validated_and_invalidated(client):
    one = client("jane")
    token = issued(one)
    base, alias = "/data/services/tokens", token["alias"]
    assert [shown["alias"] for shown in one.get(f"{base}/show").json()] == [alias]
    assert one.get(f"{base}/show/{alias}").json()["xdatUserId"] == "jane"
    assert one.get(f"{base}/validate/{alias}/{token['secret']}").json() == {"valid": "jane"}
    assert "valid" not in one.get(f"{base}/validate/{alias}/wrong").json()
    assert one.get(f"{base}/invalidate/{alias}").json() == {"result": "OK"}
    assert one.get(f"{base}/show/{alias}").status_code == 404


def test_tokens_of_others_are_for_admins(client):
    alias = issued(client("jane"))["alias"]
    for call in (f"show/{alias}", f"validate/{alias}/x", f"invalidate/{alias}", "issue/user/jane"):
        assert client("john").get(f"/data/services/tokens/{call}").status_code == 403
    assert issued(client("root"), "issue/user/jane")["xdatUserId"] == "jane"


def test_guests_get_no_token_even_on_an_open_site(client, demo):
    demo.site.require_login = False
    assert client().get("/data/services/tokens/issue").status_code == 403


# -- users -----------------------------------------------------------------------------------------------------


def test_a_guest_is_nobody_to_xapi_even_on_an_open_site(client, demo):
    demo.site.require_login = False
    assert client().get("/data/auth").text == "User 'guest' is logged in"
    reply = client().get("/xapi/users/username")
    assert (reply.status_code, reply.content) == (401, b"")


def test_profiles_are_for_oneself_and_for_admins(client):
    one = client("jane")
    assert one.get("/xapi/users/jane").json()["username"] == one.get("/xapi/users/profile").json()["username"] == "jane"
    assert one.get("/xapi/users/john").status_code == 403
    assert client("root").get("/xapi/users/john").json()["enabled"] is True
    assert client("root").get("/xapi/users/nobody").status_code == 404


def test_the_current_users_are_not_who_is_asking(client):
    client("john")
    assert client("jane").get("/xapi/users/current").json() == ["jane", "john"]


def test_all_sessions_of_a_user_are_counted_and_ended(client, demo):
    one = client("jane")
    client("jane")
    assert one.get("/data/user/jane/sessions").text == "2"
    assert client("john").get("/data/user/jane/sessions").status_code == 403
    assert client("john").delete("/xapi/users/active/jane").status_code == 403
    assert len(one.delete("/xapi/users/active/jane").json()) == 2
    assert one.get("/data/auth").status_code == 401
    assert demo.sessions.alive("jane") == 0


def test_login_names_are_for_admins(client):
    assert client("jane").get("/data/user").status_code == 403
    assert client("root").get("/data/user").json() == sorted(NAMES)


@pytest.mark.parametrize(
    ("path", "status"),
    [("/data/JSESSION", 302), ("/data/projects", 302), ("/xapi/users/username", 302), ("/app/template/Login.vm", 200)],
)
def test_an_expired_password_leads_to_the_page_that_changes_it(client, demo, path, status):
    demo.archive.users["jane"].expired = True
    reply = client().get(path, auth=("jane", "JANE"))
    assert reply.status_code == status
    assert reply.headers.get("location", "").endswith("/XDATScreen_UpdateUser.vm") is (status == 302)
    assert client("john").get("/data/projects").status_code == 200


def test_some_releases_look_at_the_password_before_the_login(client, demo):
    demo.site.release = replace(demo.site.release, expired_password="refuses", basic_colon=False)
    demo.archive.users["jane"].expired = True
    demo.archive.users["john"].password = "a:b"
    reply = client().get("/data/JSESSION", auth=("jane", "whatever"))
    assert (reply.status_code, "password has expired" in reply.text) == (403, True)
    assert "separated by the &#x27;:&#x27;" in client().get("/data/JSESSION", auth=("john", "a:b")).text
    form = {"username": "john", "password": "a:b"}
    assert client().post("/data/services/auth", data=form).status_code == 200


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({}, 200),
        ({"provider": "ldap"}, 200),
        ({"provider": "localdb"}, 401),
        ({"provider": "other"}, 401),
        ({"authenticatorId": "ldap"}, 200),
        ({"authenticatorId": "other", "provider": "ldap"}, 400),
    ],
)
def test_the_form_may_name_a_login_method(client, demo, more, status):
    demo.archive.users["jane"].method = "ldap"
    form = {"username": "jane", "password": "JANE", **more}
    assert client().post("/data/services/auth", data=form).status_code == status
