"""Test where logins are found."""

from dataclasses import replace

import pytest

from xnatfs.common.errors import ConfigError, LoginRequired
from xnatfs.settings.config import Profile
from xnatfs.settings.credentials import Credentials, find_credentials, forget_token, login_variables, store_token

URL = "https://x.org"
PROFILE = Profile("p", URL, "pat", "from-profile")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_environment_wins_over_the_profile():
    found = find_credentials(URL, PROFILE, {"XNAT_USER": "eve", "XNAT_PASS": "from-env"})
    assert found == Credentials("eve", "from-env")


def test_the_profile_is_used_for_its_own_server():
    assert find_credentials(URL + "", PROFILE, {}) == Credentials("pat", "from-profile")


def test_a_profile_password_is_not_offered_to_another_server():
    with pytest.raises(LoginRequired):
        find_credentials("https://other.org", PROFILE, {})


def test_a_profile_password_is_not_offered_for_another_user():
    with pytest.raises(LoginRequired, match="no password"):
        find_credentials(URL, PROFILE, {"XNAT_USER": "eve"})


@pytest.mark.parametrize(("url", "is_sent"), [("https://X.org:443/", True), ("https://other.org", False)])
def test_a_login_of_the_environment_is_for_the_server_of_the_environment(url, is_sent):
    environ = {"XNAT_URL": URL, "XNAT_USER": "eve", "XNAT_PASS": "p", "XNAT_TOKEN": "T" * 32, "HOME": "/"}
    assert login_variables(url, environ) == (environ if is_sent else {"XNAT_URL": URL, "HOME": "/"})
    del environ["XNAT_URL"]
    assert login_variables(url, environ) == environ


def test_netrc_is_looked_up_by_host(home):
    (home / ".netrc").write_text("machine x.org login nina password from-netrc\n")
    (home / ".netrc").chmod(0o600)
    assert find_credentials(URL, Profile(""), {}) == Credentials("nina", "from-netrc")
    with pytest.raises(LoginRequired):
        find_credentials("https://y.org", Profile(""), {})


def test_a_broken_netrc_is_one_line_without_its_text(home):
    (home / ".netrc").write_text("machine x.org login nina pasword hush\n")
    (home / ".netrc").chmod(0o600)
    with pytest.raises(ConfigError, match="netrc") as caught:
        find_credentials(URL, Profile(""), {})
    assert "hush" not in str(caught.value)


def test_without_a_terminal_nobody_is_asked():
    with pytest.raises(LoginRequired, match="XNAT_USER"):
        find_credentials(URL, Profile(""), {})


def test_a_password_does_not_show_in_repr():
    assert "hush" not in repr(Credentials("u", "hush"))


@pytest.mark.parametrize("url", [f"{URL}/", "HTTPS://X.ORG", "https://x.org:443/"])
def test_a_server_is_the_same_however_it_is_spelled(home, url):
    assert find_credentials(url, PROFILE, {}) == Credentials("pat", "from-profile")
    store_token(url, "pat", "alias", "secret")
    found = find_credentials(URL, Profile(""), {})
    assert (found, found.user) == (Credentials("alias", "secret"), "pat")
    forget_token(URL)
    with pytest.raises(LoginRequired):
        find_credentials(url, Profile(""), {})


@pytest.mark.parametrize("url", ["http://x.org", "https://x.org:8443", "https://x.org/xnat", "https://x.org.evil.org"])
def test_another_server_is_another_one(url):
    with pytest.raises(LoginRequired):
        find_credentials(url, replace(PROFILE, provider="ldap"), {})


def test_the_login_method_goes_with_every_login_but_a_token(home):
    profile = replace(PROFILE, provider="ldap")
    assert find_credentials(URL, profile, {}).provider == "ldap"
    assert find_credentials(URL, profile, {"XNAT_USER": "eve", "XNAT_PASS": "p"}).provider == "ldap"
    assert find_credentials("https://y.org", profile, {"XNAT_USER": "eve", "XNAT_PASS": "p"}).provider == ""
    store_token(URL, "pat", "alias", "secret")
    assert find_credentials(URL, replace(profile, password=""), {}).provider == ""


def test_a_damaged_token_is_none(home):
    store_token(URL, "pat", "a:b", "secret")
    with pytest.raises(LoginRequired):
        find_credentials(URL, Profile(""), {})
