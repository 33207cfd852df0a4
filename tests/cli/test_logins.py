"""Test logins as users make them: by profile or URL, with any password, and what is left of one when it ends."""

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.commanding import OUTSIDER, OWNER, PASSWORD, Done, Shell, page_archive, shell
from tests.support.mounting import SCRIPTS, end, run
from xnatfs.common.files import write_private
from xnatfs.demo.server.app import Request
from xnatfs.demo.server.releases import RELEASES, XNAT_1_8
from xnatfs.demo.server.reply import Reply
from xnatfs.settings.config import find_profile, read_profiles

DEAD = "http://127.0.0.1:9"
# What people choose, and what shells, YAML, JSON, netrc and base64 stumble over.
PASSWORDS = [
    "pa$$word $HOME",
    " blanks before and after ",
    "colons:a:b:",
    "Übergröße-€",
    "quote'\"s",
    "back\\slash \\n",
    "#hash %41 & = + ?",
    "0123",
    "yes",
    "1.50",
    "~",
]


@pytest.fixture
def fresh(tmp_path) -> Iterator[Shell]:
    with shell(tmp_path / "home") as made:
        made.env = {}
        yield made


def profile(shell: Shell, **cells: str) -> None:
    lines = "".join(f"    {key}: {json.dumps(value)}\n" for key, value in cells.items())
    shell.config(f"profiles:\n  lab:\n    url: {shell.url}\n{lines}")


def log_in(shell: Shell, *words: str, password: str = PASSWORD, status: int = 0) -> Done:
    words = ("auth", "login", "--password-stdin", *words)
    done = run(*shell.program, *words, env=shell.environment(), stdin=None, input=f"{password}\n")
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def prompted(shell: Shell, *words: str, answers: tuple[str, ...]) -> tuple[int, str]:
    """Run a command on a terminal, answer its prompts, and return its exit status and its output."""
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [*shell.program, *words],
        env=shell.environment(),
        cwd=shell.home,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(slave)
    said, left = b"", list(answers)
    try:
        while piece := os.read(master, 4096):
            said += piece
            if left and said.rstrip().endswith(b":") and f" on {shell.url}".encode() in said.rpartition(b"\n")[2]:
                os.write(master, f"{left.pop(0)}\n".encode())
                said += b"\n"
    except OSError:  # the terminal is gone with its last program
        pass
    os.close(master)
    return child.wait(), said.decode(errors="replace")


def spelled(url: str) -> list[str]:
    port = urlsplit(url).port
    return [f"{url}/", f"HTTP://127.0.0.1:{port}", f" {url}// "]


# -- one server, whatever it is called by --------------------------------------------------------------------------


def test_a_url_means_the_profile_of_its_server(fresh):
    profile(fresh, username=OWNER, password=PASSWORD, default_project="MYPROJECT")
    assert fresh.ctl("whoami", "-q").out == f"{OWNER}\n"
    for url in spelled(fresh.url):
        assert fresh.ctl("whoami", "--url", url, "-q").out == f"{OWNER}\n"
        assert fresh.ctl("auth", "status", "--url", url, "-o", "json").rows["profile"] == "lab"
    fresh.env["XNAT_URL"] = f"{fresh.url}/"
    assert fresh.ctl("subject", "list", "-q").lines == ["SUB001", "SUB002"]
    assert fresh.logins() == 1


def test_a_login_by_url_is_that_of_the_profile(fresh):
    profile(fresh, username=OWNER)
    log_in(fresh, "--url", f"{fresh.url}/")
    assert fresh.ctl("project", "list", "-p", "lab", "-q").lines
    fresh.ctl("auth", "logout", "--url", fresh.url)
    assert "auth login" in fresh.ctl("project", "list", "-p", "lab", status=3).err
    assert fresh.app.sessions.alive(OWNER) == 0


def test_another_server_is_not_meant(fresh):
    """A server differs by its port, path or scheme."""
    profile(fresh, username=OWNER, password=PASSWORD)
    for url in (f"{fresh.url}/xnat", "http://127.0.0.1:1", fresh.url.replace("http:", "https:")):
        done = fresh.ctl("project", "list", "--url", url, status=3)
        assert PASSWORD not in done.err
    assert fresh.app.requests == []


@pytest.mark.fuse
@pytest.mark.parametrize("secret", ["XNAT_PASS", "XNAT_TOKEN"])
def test_a_login_of_the_environment_is_not_sent_to_another_server(fresh, tmp_path, secret):
    """XNAT_URL names the server that it is for."""
    fresh.env = {"XNAT_URL": fresh.url, "XNAT_USER": OWNER, "XNAT_PASS": PASSWORD}
    if secret == "XNAT_TOKEN":
        fresh.env = {"XNAT_URL": fresh.url, "XNAT_TOKEN": fresh.app.sessions.log_in(OWNER, None).id}
    with shell(tmp_path / "other") as other:
        for words in (("project", "list"), ("auth", "login"), ("whoami",)):
            said = fresh.ctl(*words, "--url", other.url, status=3).err
            assert "auth login" in said
            assert words == ("auth", "login") or "is for XNAT_URL, another server" in said
        assert other.app.requests == []
        (fresh.home / "mnt").mkdir()
        command = [SCRIPTS / "xnatfs", "mount", "--url", other.url, fresh.home / "mnt"]
        assert run(*command, env=fresh.environment()).returncode == 3
        assert other.app.requests == []
    assert fresh.ctl("whoami", "--url", f"{fresh.url}/", "-q").out == f"{OWNER}\n"


def test_of_several_profiles_of_a_server_the_preferred_one_counts(tmp_path):
    path = tmp_path / "config.yaml"
    text = "profiles:\n" + "".join(f"  {name}: {{url: 'http://{host}'}}\n" for name, host in
                                   (("a", "X.org"), ("b", "x.org:80/"), ("c", "y.org")))  # fmt: skip
    path.write_text(text)
    assert find_profile("http://x.org", path=path) is None
    found = find_profile("http://x.org", "b", path)
    assert found is not None
    assert found.name == "b"
    found = find_profile("http://Y.org/", "b", path)
    assert found is not None
    assert found.name == "c"
    path.write_text(f"default_profile: a\n{text}")
    found = find_profile("http://x.org", path=path)
    assert found is not None
    assert found.name == "a"


# -- auth login --url ----------------------------------------------------------------------------------------------


def test_a_login_remembers_its_url(fresh):
    done = log_in(fresh, "--url", f"{fresh.url}/", "-u", OWNER)
    assert "Profile 127.0.0.1_" in done.err
    assert fresh.ctl("project", "list", "-q").lines
    (kept,) = read_profiles(fresh.home / ".config" / "xnatctl" / "config.yaml")[0].values()
    assert (kept.url, kept.username) == (fresh.url, OWNER)
    assert PASSWORD not in (fresh.home / ".config" / "xnatctl" / "config.yaml").read_text()
    log_in(fresh, "--url", fresh.url)
    assert len(fresh.ctl("config", "show", "-q").lines) == 1


def test_a_second_server_does_not_become_the_default(fresh):
    fresh.config("# ours\nprofiles:\n  one:\n    url: http://one.example.org\n")
    done = log_in(fresh, "--url", fresh.url, "-u", OWNER)
    assert "config use-context 127.0.0.1_" in done.err
    assert fresh.ctl("config", "current-context").out == "one\n"
    name = f"127.0.0.1_{urlsplit(fresh.url).port}"
    assert fresh.ctl("project", "list", "-p", name, "-q").lines
    assert "# ours" in (fresh.home / ".config" / "xnatctl" / "config.yaml").read_text()


def test_what_is_not_said_on_the_command_line_is_not_written_down(fresh):
    fresh.env = {"XNAT_URL": fresh.url, "XNAT_USER": OWNER, "XNAT_PASS": PASSWORD}
    fresh.ctl("auth", "login")
    assert not (fresh.home / ".config" / "xnatctl" / "config.yaml").exists()
    fresh.ctl("auth", "login", "--url", fresh.url, "--no-verify-ssl")
    text = (fresh.home / ".config" / "xnatctl" / "config.yaml").read_text()
    assert OWNER not in text
    assert "verify_ssl: false" in text


def test_a_login_that_fails_remembers_nothing(fresh):
    log_in(fresh, "--url", fresh.url, "-u", OWNER, password="wrong", status=3)
    assert not (fresh.home / ".config" / "xnatctl" / "config.yaml").exists()


def test_a_login_goes_on_where_no_profile_can_be_written(fresh):
    fresh.config("version: 9\nprofiles: {}\n")
    done = log_in(fresh, "--url", fresh.url, "-u", OWNER)
    assert "needs --url, too" in done.err
    assert "Logged in" in done.err


def test_the_session_is_that_of_the_user_who_logged_in(fresh):
    """This holds even if the profile names another user."""
    profile(fresh, username=OWNER, password=PASSWORD)
    fresh.ctl("auth", "login")
    log_in(fresh, "-u", OUTSIDER)
    assert fresh.ctl("whoami", "-q").out == f"{OWNER}\n"
    fresh.env["XNAT_USER"] = OUTSIDER
    assert fresh.ctl("whoami", "-q").out == f"{OUTSIDER}\n"
    assert fresh.logins() == 2


def test_a_server_that_moved_to_https_gets_a_profile_of_its_own(fresh):
    """Another server may have the name of the new profile already, as the same host without encryption has."""
    name = f"127.0.0.1_{urlsplit(fresh.url).port}"
    fresh.config(f"profiles:\n  {name}:\n    url: {fresh.url.replace('http:', 'https:')}\n")
    done = log_in(fresh, "--url", fresh.url, "-u", OWNER)
    assert f"config use-context {name}-2" in done.err
    assert fresh.ctl("project", "list", "-p", f"{name}-2", "-q").lines
    known, default = read_profiles(fresh.home / ".config" / "xnatctl" / "config.yaml")
    assert (known[name].url, default) == (fresh.url.replace("http:", "https:"), name)


def test_a_session_from_the_environment_is_not_ended_by_a_login(fresh):
    """The session may be another user's."""
    given = fresh.app.sessions.log_in(OUTSIDER, None).id
    profile(fresh, username=OWNER, password=PASSWORD)
    fresh.env["XNAT_TOKEN"] = given
    done = fresh.ctl("auth", "login")
    assert f"as {OWNER}" in done.err
    assert "while XNAT_TOKEN is set" in done.err
    assert fresh.app.sessions.alive(OUTSIDER) == 1
    assert fresh.ctl("whoami", "-q").out == f"{OUTSIDER}\n"
    del fresh.env["XNAT_TOKEN"]
    assert fresh.ctl("whoami", "-q").out == f"{OWNER}\n"
    assert fresh.logins() == 1


@pytest.mark.parametrize("words", [(), ("--token",)])
def test_a_login_that_the_next_command_does_not_use_says_so(fresh, words):
    profile(fresh, username=OWNER)
    assert "XNAT_USER" not in log_in(fresh, "-u", OWNER, "--token").err
    assert (
        f"runs as {OWNER}, the user that the profile names: set XNAT_USER={OUTSIDER}"
        in log_in(fresh, "-u", OUTSIDER, *words).err
    )
    fresh.env["XNAT_USER"] = OUTSIDER
    assert fresh.ctl("whoami", "-q").out == f"{OUTSIDER}\n"
    assert f"runs as {OUTSIDER}, the user that XNAT_USER names" in log_in(fresh, "-u", OWNER).err
    fresh.env = {}
    placed(fresh, "keyring", PASSWORD)
    assert "XNAT_USER" not in log_in(fresh, "-u", OUTSIDER).err
    assert fresh.ctl("whoami", "-q").out == f"{OUTSIDER}\n"


def test_a_profile_file_that_is_a_link_stays_one(fresh):
    kept = fresh.home / "dotfiles.yaml"
    write_private(kept, "# mine\nprofiles: {}\n")
    link = fresh.home / ".config" / "xnatctl" / "config.yaml"
    link.parent.mkdir(parents=True)
    link.symlink_to(kept)
    log_in(fresh, "--url", fresh.url, "-u", OWNER)
    assert link.is_symlink()
    assert "# mine" in kept.read_text()
    assert fresh.ctl("project", "list", "-q").lines


# -- who is logged in ----------------------------------------------------------------------------------------------


def status_of(shell: Shell, *words: str, status: int = 0) -> tuple[str, str | None, str]:
    done = shell.ctl("auth", "status", *words, "-o", "json", status=status)
    return done.rows["status"], done.rows["username"], done.err


def test_status_says_whose_session_it_is_and_was(fresh):
    assert status_of(fresh, "--url", fresh.url, status=3)[:2] == ("not authenticated", None)
    log_in(fresh, "--url", fresh.url, "-u", OWNER)
    for words in ((), ("--url", f"{fresh.url}/")):
        assert status_of(fresh, *words)[:2] == ("authenticated", OWNER)
    fresh.app.sessions.end_all(OWNER)
    state, user, said = status_of(fresh, status=3)
    assert (state, user) == ("expired", OWNER)
    assert "xnatctl auth login" in said
    fresh.older(1000)
    assert status_of(fresh, status=3)[:2] == ("expired", OWNER)
    assert "xnatctl auth login" in fresh.ctl("project", "list", status=3).err
    fresh.ctl("auth", "logout")
    assert status_of(fresh, status=3)[0] == "not authenticated"


def test_status_says_that_the_next_command_logs_in_by_itself(fresh):
    profile(fresh, username=OWNER, password=PASSWORD)
    state, user, said = status_of(fresh, status=3)
    assert (state, user) == ("not authenticated", OWNER)
    assert "by itself: the profile has the password" in said


def test_a_login_from_netrc_has_a_name(fresh):
    write_private(fresh.home / ".netrc", f"machine 127.0.0.1 login {OWNER} password '{PASSWORD}'\n".replace("'", '"'))
    fresh.env["XNAT_URL"] = fresh.url
    fresh.ctl("project", "list")
    assert status_of(fresh)[:2] == ("authenticated", OWNER)


def test_a_session_from_the_environment_has_a_name(fresh):
    fresh.env = {"XNAT_URL": fresh.url, "XNAT_TOKEN": fresh.app.sessions.log_in(OWNER, None).id}
    assert status_of(fresh)[:2] == ("authenticated", OWNER)


# -- tokens and logging out ----------------------------------------------------------------------------------------


@pytest.fixture
def token(fresh) -> Path:
    profile(fresh, username=OWNER)
    log_in(fresh, "--token")
    path: Path
    (path,) = (fresh.home / ".config" / "xnatfs" / "tokens").glob("*.json")
    assert len(fresh.app.sessions.tokens) == 1
    return path


@pytest.mark.parametrize("ended", ["alive", "at the server", "here", "by another"])
def test_logging_out_ends_the_token(fresh, token, ended):
    if ended == "at the server":
        fresh.app.sessions.end_all(OWNER)
    elif ended == "here":
        fresh.older(1000)
    elif ended == "by another":
        fresh.env["XNAT_TOKEN"] = fresh.app.sessions.log_in(OUTSIDER, None).id
    done = fresh.ctl("auth", "logout")
    assert "Logged out" in done.err
    assert fresh.app.sessions.tokens == {}
    assert not token.exists()
    if ended != "by another":
        assert fresh.app.sessions.alive(OWNER) == 0
    else:
        del fresh.env["XNAT_TOKEN"]
        fresh.ctl("auth", "logout")
    fresh.ctl("project", "list", status=3)


def test_a_second_token_takes_the_place_of_the_first(fresh, token):
    first = json.loads(token.read_text())["alias"]
    log_in(fresh, "--token")
    second = json.loads(token.read_text())["alias"]
    assert list(fresh.app.sessions.tokens) == [second] != [first]
    fresh.app.sessions.end_all(OWNER)
    assert fresh.ctl("whoami", "-q").out == f"{OWNER}\n"
    fresh.ctl("auth", "logout")
    assert fresh.app.sessions.tokens == {}


def test_a_first_token_that_the_server_keeps_is_reported(fresh, token):
    first = json.loads(token.read_text())["alias"]

    def keeps(request: Request) -> Reply | None:
        return Reply(500, b"no", "text/plain") if "/tokens/invalidate/" in request.path else None

    fresh.app.faults.append(keeps)
    assert f"the alias token {first} is valid until it expires" in log_in(fresh, "--token").err
    fresh.app.faults.remove(keeps)
    assert json.loads(token.read_text())["alias"] in fresh.app.sessions.tokens


def test_a_token_beside_a_password_is_ended_too(fresh, token):
    profile(fresh, username=OWNER, password=PASSWORD)
    done = fresh.ctl("auth", "logout")
    assert fresh.app.sessions.tokens == {}
    assert not token.exists()
    assert "logs in again: the profile has the password of jane" in done.err


def test_a_token_is_not_used_for_another_user(fresh, token):
    fresh.ctl("project", "list")
    fresh.env["XNAT_USER"] = OUTSIDER
    before = len(fresh.app.requests)
    assert f"no password for {fresh.url}" in fresh.ctl("project", "list", status=3).err
    assert len(fresh.app.requests) == before
    fresh.env["XNAT_USER"] = OWNER.upper()
    fresh.app.sessions.end_all(OWNER)
    assert fresh.ctl("whoami", "-q").out == f"{OWNER}\n"


def test_a_login_by_token_is_shared_where_the_server_has_another_name_for_the_user(fresh):
    """A site that takes logins from a directory has such names."""
    profile(fresh, username=f"ldap/{OWNER}")
    log_in(fresh, "--token")
    fresh.app.sessions.end_all(OWNER)
    before = fresh.logins()
    for _ in range(3):
        assert fresh.ctl("whoami", "-q").out == f"{OWNER}\n"
    assert fresh.logins() == before + 1


@pytest.mark.parametrize("status", [403, 405, 500, 503])
def test_logging_out_says_that_the_session_was_not_ended(fresh, status):
    profile(fresh, username=OWNER)
    log_in(fresh)
    fresh.app.faults.append(lambda request: Reply(status, b"", "text/html") if request.method == "DELETE" else None)
    done = fresh.ctl("auth", "logout", status=8)
    assert f"the server did not close the session, and will when it has been idle ({status} " in done.err
    assert not fresh.slot.exists()


def test_a_token_that_has_ended_says_so(fresh, token):
    fresh.app.sessions.tokens.clear()
    fresh.app.sessions.end_all(OWNER)
    done = fresh.ctl("project", "list", status=3)
    assert "alias token of jane" in done.err
    assert "xnatctl auth login" in done.err
    assert "had expired before" in fresh.ctl("auth", "logout").err
    assert not token.exists()


def test_logging_out_says_what_the_server_keeps(fresh, token):
    def busy(request: Request) -> Reply | None:
        wanted = "/tokens/invalidate/" in request.path or request.method == "DELETE"
        return Reply(503, b"", "text/html") if wanted else None

    fresh.app.faults.append(busy)
    done = fresh.ctl("auth", "logout", status=8)
    (alias,) = fresh.app.sessions.tokens
    assert f"the alias token {alias} is valid until it expires" in done.err
    assert not token.exists()
    assert not fresh.slot.exists()


def test_logging_out_of_a_server_that_is_gone(fresh, token):
    """Local state is removed, and what is left on the server is reported."""
    for path in (token, fresh.slot, *(fresh.home / ".config" / "xnatfs" / "sessions").glob("*.json")):
        cells = json.loads(path.read_text())
        path.write_text(json.dumps({**cells, "url": DEAD}))
    kept = list((fresh.home / ".config" / "xnatfs").rglob("*.json"))
    from xnatfs.settings.credentials import _token_path

    home = os.environ.get("HOME")
    try:
        os.environ["HOME"] = str(fresh.home)
        token.rename(_token_path(DEAD))
    finally:
        os.environ["HOME"] = home or ""
    assert kept
    fresh.config(f"profiles:\n  lab:\n    url: {DEAD}\n    username: {OWNER}\n")
    done = fresh.ctl("auth", "logout", status=8)
    assert "is valid until it expires" in done.err
    assert list((fresh.home / ".config" / "xnatfs" / "tokens").glob("*.json")) == []
    assert not fresh.slot.exists()


# -- any password --------------------------------------------------------------------------------------------------


def placed(shell: Shell, place: str, password: str) -> None:
    """Store a password in one of the places where commands look for it."""
    if place == "environment":
        shell.env = {"XNAT_URL": shell.url, "XNAT_USER": OWNER, "XNAT_PASS": password}
    elif place == "profile":
        profile(shell, username=OWNER, password=password)
    elif place == "netrc":
        quoted = password.replace("\\", "\\\\").replace('"', '\\"')
        write_private(shell.home / ".netrc", f'machine 127.0.0.1 login {OWNER} password "{quoted}"\n')
        shell.env = {"XNAT_URL": shell.url}
    elif place == "keyring":
        profile(shell, username=OWNER, password_source="keyring")
        modules = shell.home / "modules"
        modules.mkdir()
        (modules / "filed.py").write_text(
            "import json, os, pathlib\n"
            "from keyring.backend import KeyringBackend\n"
            "class Filed(KeyringBackend):\n"
            "    priority = 9\n"
            "    def get_password(self, service, user):\n"
            "        return json.loads(pathlib.Path(os.environ['HOME'], 'keyring.json').read_text())[user]\n"
            "    def set_password(self, service, user, password): pass\n"
            "    def delete_password(self, service, user): pass\n"
        )
        (shell.home / "keyring.json").write_text(json.dumps({f"lab@{shell.url}": password}))
        shell.env = {"PYTHONPATH": str(modules), "PYTHON_KEYRING_BACKEND": "filed.Filed"}


@pytest.mark.parametrize("place", ["environment", "profile", "netrc", "keyring"])
def test_any_password_is_found_as_it_is(fresh, place):
    for password in PASSWORDS:
        fresh.app.archive.users[OWNER].password = password
        for path in (fresh.home / "modules" / "filed.py", fresh.home / "modules"):
            if path.is_file():
                path.unlink()
            elif path.is_dir():
                __import__("shutil").rmtree(path)
        placed(fresh, place, password)
        fresh.app.sessions.end_all()
        assert fresh.ctl("whoami", "-q").out == f"{OWNER}\n", password


def test_any_password_comes_from_standard_input(fresh):
    profile(fresh, username=OWNER)
    for password in PASSWORDS:
        fresh.app.archive.users[OWNER].password = password
        log_in(fresh, password=password)


def test_any_password_is_answered_at_the_prompt(fresh):
    for password in PASSWORDS[:6]:
        fresh.app.archive.users[OWNER].password = password
        status, said = prompted(fresh, "auth", "login", "--url", fresh.url, "--no-save", answers=(OWNER, password))
        assert status == 0, said
        fresh.config("profiles: {}\n")


def test_a_password_of_the_keyring_that_was_changed_is_asked_for(fresh):
    """This holds on a terminal; elsewhere the password is refused, as any other."""
    placed(fresh, "keyring", "of last year")
    assert "wrong user or password" in fresh.ctl("auth", "login", status=3).err
    status, said = prompted(fresh, "auth", "login", answers=(PASSWORD,))
    assert status == 0, said
    assert "Logged in" in said


def test_a_password_of_the_keyring_is_not_offered_for_another_user(fresh):
    placed(fresh, "keyring", PASSWORD)
    fresh.env["XNAT_USER"] = OUTSIDER
    assert f"no password for {fresh.url}" in fresh.ctl("project", "list", status=3).err
    assert fresh.app.requests == []


def test_a_profile_with_a_password_stays_one_of_its_user(fresh):
    """A profile's password is preferred to one of the keyring, and is not that of another user."""
    placed(fresh, "keyring", PASSWORD)
    profile(fresh, username=OWNER, password=PASSWORD)
    done = log_in(fresh, "-u", OUTSIDER)
    assert "profile lab has a password of its own" in done.err
    (kept,) = read_profiles(fresh.home / ".config" / "xnatctl" / "config.yaml")[0].values()
    assert (kept.username, kept.password_source) == (OWNER, "")
    fresh.app.sessions.end_all()
    assert fresh.ctl("whoami", "-q").out == f"{OWNER}\n"


def test_a_password_that_yaml_reads_as_something_else(fresh):
    """Without quotes, the password is the text as it is written."""
    for password in ("0123", "yes", "1.50", "2024-01-01", "0x1F", "1_000"):
        fresh.app.archive.users[OWNER].password = password
        fresh.config(f"profiles:\n  lab: {{url: '{fresh.url}', username: {OWNER}, password: {password}}}\n")
        fresh.app.sessions.end_all()
        assert fresh.ctl("whoami", "-q").out == f"{OWNER}\n", password


@pytest.mark.parametrize("release", [replace(XNAT_1_8, basic_colon=False), *RELEASES.values()], ids=lambda r: r.name)
def test_colons_in_a_password_work_on_every_release(tmp_path, release):
    archive = page_archive()
    archive.users[OWNER].password = "a:b"
    with shell(tmp_path, archive, release=release) as made:
        made.env["XNAT_PASS"] = "a:b"
        assert made.ctl("whoami", "-q").out == f"{OWNER}\n"
        assert made.ctl("project", "list", "-q").lines
        made.env["XNAT_PASS"] = "a:c"
        made.app.sessions.end_all()
        assert "wrong user or password" in made.ctl("project", "list", status=3).err


def test_a_user_with_a_colon_is_refused_with_a_reason(fresh):
    fresh.env = {"XNAT_URL": fresh.url, "XNAT_USER": "a:b", "XNAT_PASS": PASSWORD}
    done = fresh.ctl("project", "list", status=2)
    assert "a name with ':' cannot be sent" in done.err
    fresh.env = {"XNAT_URL": fresh.url}
    assert "cannot be sent" in log_in(fresh, "-u", "a:b", status=2).err
    assert fresh.app.requests == []


def test_a_password_that_is_no_text_is_refused_with_a_reason(fresh):
    env: dict[bytes, bytes] = {os.fsencode(key): os.fsencode(value) for key, value in fresh.environment().items()}
    env |= {b"XNAT_URL": fresh.url.encode(), b"XNAT_USER": OWNER.encode(), b"XNAT_PASS": b"\xfcber"}
    done = subprocess.run([*fresh.program, "project", "list"], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "is not UTF-8" in done.stderr
    assert "Traceback" not in done.stderr


# -- login methods, and what stands in the way of a login ----------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES.values(), ids=lambda release: release.name)
def test_a_login_method_of_the_profile(tmp_path, release):
    archive = page_archive()
    archive.users[OWNER].method = "ldap"
    with shell(tmp_path, archive, release=release) as made:
        made.env = {}
        profile(made, username=OWNER, password=PASSWORD, provider="ldap")
        assert made.ctl("whoami", "-q").out == f"{OWNER}\n"
        assert made.requests("POST", "/data/services/auth")
        assert made.requests("POST", "/data/JSESSION") == []
        place = tmp_path / "mnt"
        place.mkdir()
        made.app.sessions.end_all()
        xnatfs = Path(made.program[0]).with_name("xnatfs")
        try:
            done = run(xnatfs, "mount", place, env=made.environment())
            assert done.returncode == 0, done.stderr
            made.app.sessions.end_all()
            assert "MYPROJECT" in os.listdir(place / "projects")
        finally:
            run(xnatfs, "umount", place, env=made.environment())
            end(place, made.home)


def test_a_login_method_that_there_is_none_of(fresh):
    profile(fresh, username=OWNER, password=PASSWORD, provider="kerberos")
    done = fresh.ctl("project", "list", status=3)
    assert "wrong user or password" in done.err
    assert "login method 'kerberos'" in done.err


@pytest.mark.parametrize("way", ["redirects", "refuses"])
def test_an_expired_password_is_told_from_a_wrong_one(tmp_path, way):
    archive = page_archive()
    archive.users[OWNER].expired = True
    with shell(tmp_path, archive, release=replace(XNAT_1_8, expired_password=way)) as made:
        for words in (("project", "list"), ("auth", "login")):
            done = made.ctl(*words, status=3)
            assert "the password has expired" in done.err
            assert "with a browser" in done.err
            assert made.url in done.err
            assert "wrong" not in done.err
        archive.users[OWNER].expired = False
        assert made.ctl("project", "list", "-q").lines


def test_a_password_that_expires_in_the_midst_of_it(fresh):
    profile(fresh, username=OWNER, password=PASSWORD)
    fresh.ctl("project", "list")
    fresh.app.archive.users[OWNER].expired = True
    assert "the password has expired" in fresh.ctl("project", "list", status=3).err


def test_a_login_that_is_sent_elsewhere_says_where(fresh):
    def sends(request: Request) -> Reply | None:
        there = {"Location": "https://sso.example.org/login?state=of-a-session"}
        return Reply(302, b"", "text/html", there) if request.path == "/data/JSESSION" else None

    fresh.app.faults.append(sends)
    profile(fresh, username=OWNER, password=PASSWORD)
    done = fresh.ctl("project", "list", status=3)
    assert "302 Found to https://sso.example.org/login" in done.err
    assert "state" not in done.err


def test_a_second_factor_is_told_from_a_wrong_password(fresh):
    def asks(request: Request) -> Reply | None:
        text = b"<html><title>Two-Factor Authentication</title><form>Enter your verification code</form></html>"
        return Reply(200, text, "text/html") if request.path == "/data/JSESSION" else None

    fresh.app.faults.append(asks)
    profile(fresh, username=OWNER, password=PASSWORD)
    done = fresh.ctl("project", "list", status=3)
    assert "second factor" in done.err
    assert "Manage Alias Tokens" in done.err


# -- a mount whose session has ended -------------------------------------------------------------------------------


def test_a_mount_says_once_what_to_do_when_the_session_has_ended(fresh, tmp_path):
    profile(fresh, username=OWNER)
    log_in(fresh)
    place, log = tmp_path / "mnt", tmp_path / "log"
    place.mkdir()
    xnatfs = Path(fresh.program[0]).with_name("xnatfs")
    try:
        done = run(xnatfs, "mount", place, "--ttl", "0", "--log-file", log, env=fresh.environment())
        assert done.returncode == 0, done.stderr
        assert os.listdir(place / "projects")
        fresh.app.sessions.end_all()
        for _ in range(3):
            with pytest.raises(PermissionError):
                os.listdir(place / "projects" / "MYPROJECT")
        assert log.read_text().count("'xnatctl auth login'") == 1
        log_in(fresh)
        assert os.listdir(place / "projects" / "MYPROJECT")
    finally:
        run(xnatfs, "umount", place, env=fresh.environment())
        end(place, fresh.home)
