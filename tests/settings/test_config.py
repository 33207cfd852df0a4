"""Test profiles, and the settings that take precedence over them."""

from pathlib import Path

import pytest

from xnatfs.common.errors import ConfigError
from xnatfs.common.urls import server_key
from xnatfs.settings.config import normalised_url, read_profiles, select_profile, server_directory


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_a_sole_profile_is_the_default(tmp_path):
    path = written(tmp_path, "profiles:\n  production:\n    url: https://x.org\n    default_project: P\n")
    assert select_profile(None, {}, path).url == "https://x.org"


def test_the_flag_wins_over_the_environment_over_the_default(tmp_path):
    path = written(
        tmp_path, "default_profile: a\nprofiles: {a: {url: http://a}, b: {url: http://b}, c: {url: http://c}}"
    )
    assert select_profile("c", {"XNAT_PROFILE": "b"}, path).name == "c"
    assert select_profile(None, {"XNAT_PROFILE": "b"}, path).name == "b"
    assert select_profile(None, {}, path).name == "a"


def test_an_unknown_profile_is_named_with_the_known_ones(tmp_path):
    path = written(tmp_path, "profiles: {a: {url: http://a}}")
    with pytest.raises(ConfigError, match=r"'x' is not in .*config.yaml \(profiles there: a\)"):
        select_profile("x", {}, path)


def test_broken_yaml_is_one_line_with_its_place(tmp_path):
    with pytest.raises(ConfigError, match=r"config.yaml line 2 is not valid YAML") as caught:
        read_profiles(written(tmp_path, "profiles:\n\ta: 1\n"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "profiles: 3\n", "profiles: {a: 3}\n", "profiles: {a: {verify_ssl: 1}}\n"]
)
def test_another_shape_is_refused(tmp_path, text):
    with pytest.raises(ConfigError):
        read_profiles(written(tmp_path, text))


@pytest.mark.parametrize("text", ["", "default_profile: a\n", "profiles:\n"])
def test_an_empty_file_has_no_profiles(tmp_path, text):
    assert read_profiles(written(tmp_path, text))[0] == {}


def test_a_missing_file_has_no_profiles(tmp_path):
    assert select_profile(None, {}, tmp_path / "none.yaml").url == ""


def test_a_password_does_not_show_in_repr(tmp_path):
    path = written(tmp_path, "profiles: {a: {url: http://a, username: u, password: hush}}")
    assert "hush" not in repr(select_profile(None, {}, path))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://x.org/", "https://x.org"),
        (" http://x.org:8080/xnat/ ", "http://x.org:8080/xnat"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_urls_are_normalised(text, url):
    assert normalised_url(text) == url


@pytest.mark.parametrize(
    "text", ["x.org", "ftp://x.org", "https://", "https://u:p@x.org", "https://x.org?a=b", "http://x.org:port", ""]
)
def test_what_is_no_site_is_refused(text):
    with pytest.raises(ConfigError):
        normalised_url(text)


def test_servers_have_folders_of_their_own():
    urls = ["https://x.org", "http://x.org", "https://x.org:8080", "https://x.org/xnat", "https://y.org"]
    assert len({server_directory(url) for url in urls}) == len(urls)
    assert all("/" not in server_directory(url) for url in urls)


def test_one_server_has_one_folder_however_it_is_spelled():
    urls = ["https://x.org", "https://x.org/", "HTTPS://X.org:443", "https://x.ORG//"]
    assert len({server_directory(url) for url in urls}) == 1
    assert len({server_key(url) for url in (*urls, "http://[::1]:80/", "http://[::1]", "https://x.org/A")}) == 3
    assert [server_key(url) for url in ("http://x:port", "no url", "")] == ["http://x:port", "no url", ""]


@pytest.mark.parametrize("written_as", ["0123", "yes", "1.50", "2024-01-01", "0x1F", "1_000", "12:30:45", "1e3"])
def test_users_and_passwords_are_what_stands_there(tmp_path, written_as):
    text = (
        f"profiles:\n  a:\n    url: http://a\n    username: {written_as}\n    password: {written_as}\n    timeout: 30\n"
    )
    profile = select_profile(None, {}, written(tmp_path, text))
    assert (profile.username, profile.password, profile.timeout) == (written_as, written_as, 30)


def test_a_password_of_a_profile_is_never_that_of_another(tmp_path):
    """A merged mapping comes first for one loader of YAML, and where it stands for another."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "base: &base\n  b: {url: 'http://b.org', password: 0456}\n"
        "profiles:\n  a: {url: 'http://a.org', password: 0123}\n  <<: *base\n"
    )
    profiles, _ = read_profiles(path)
    assert profiles["a"].password == "0123"
    assert profiles["b"].password != "0123"
