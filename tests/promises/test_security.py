"""Test secrets against other users of the machine and against the network. docs/SECURITY.md has the list."""

import argparse
import ast
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

import pytest
import trio

from tests.support.commanding import SESSION
from tests.support.demos import Demo, serving
from tests.support.hostile import TOKEN, answer, hostile, listing, ok
from tests.support.mounting import SCRIPTS, daemons, end, environment, mounted_file_system, run
from xnatfs.cli import logs
from xnatfs.cli.ctl.command import Context
from xnatfs.common.errors import CacheError, ConfigError, NotXnat, Unreachable
from xnatfs.common.files import write_private
from xnatfs.content.disk.directory import open_directory
from xnatfs.demo.archive.model import Archive, User
from xnatfs.demo.server.app import DemoXnat
from xnatfs.demo.server.socket import serve
from xnatfs.listings.background_store import ListingStore
from xnatfs.listings.completion import Name, find_names, store_names
from xnatfs.rest.client import open_xnat
from xnatfs.settings.config import Config, Profile, connection_warning, normalised_url
from xnatfs.settings.credentials import Credentials, for_children, forget_secrets
from xnatfs.settings.logins import session_store
from xnatfs.settings.session_store import SessionStore, StoredSession

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "xnatfs"
PASSWORD = "hush-hush-the-password"


# -- a mount, and what of it others could see ----------------------------------------------------------------------


@dataclass
class UsedMount:
    """A mount that was used, and what it has left behind."""

    home: Path
    stderr: str
    log: str
    wide: list[str]  # files and directories that others may look into
    lines: dict[str, str]  # /proc/PID/cmdline of its processes
    environments: dict[str, str]
    limits: dict[str, str]
    secrets: list[str]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UsedMount]:
    """Mount without a umask, with the full log, open to all users, and read a big file."""
    root = tmp_path_factory.mktemp("seen")
    home, place, log = root / "home", root / "mnt", root / "home" / "log"
    home.mkdir()
    place.mkdir()
    with serving() as demo:
        password = demo.login["password"]
        env = environment(home, XNAT_USER=demo.login["user"], XNAT_PASS=password, XNAT_TOKEN="")
        words = [
            "mount",
            "--url",
            demo.url,
            "--log-level",
            "debug",
            "--log-file",
            str(log),
            "--allow-other",
            str(place),
        ]
        done = run(SCRIPTS / "xnatfs", *words, env=env, umask=0)
        try:
            assert done.returncode == 0, done.stderr
            _read_big(demo, place)
            children = daemons(home)
            made = [home, *home.rglob("*")]
            proc = {name: Path("/proc", str(child)) for child in children for name in [str(child)]}
            yield UsedMount(
                home,
                done.stderr,
                log.read_text(),
                [str(path) for path in made if path != home and path.lstat().st_mode & 0o077],
                {name: _words(each / "cmdline") for name, each in proc.items()},
                {name: _words(each / "environ") for name, each in proc.items()},
                {name: (each / "limits").read_text() for name, each in proc.items()},
                [password, *_tokens(home)],
            )
            assert run(SCRIPTS / "xnatfs", "umount", place, env=env).returncode == 0
            assert mounted_file_system(place) == ""
        finally:
            end(place, home)


def _read_big(demo: Demo, place: Path) -> None:
    """Read the beginning of a file that a process of its own fetches."""
    big = max((entry for entry in demo.manifest if entry.size), key=lambda entry: entry.size or 0)
    assert (big.size or 0) > 8 * 2**20
    run("head", "-c", "100000", place.joinpath(*big.path))


def _words(path: Path) -> str:
    return path.read_bytes().replace(b"\0", b" ").decode()


def _tokens(home: Path) -> list[str]:
    found = [
        json.loads(path.read_text())["token"] for path in (home / ".config" / "xnatfs" / "sessions").glob("*.json")
    ]
    assert found
    return found


@pytest.mark.fuse
def test_files_and_directories_of_a_mount_are_private_whatever_the_umask(seen):
    assert (seen.home / ".cache" / "xnatfs").stat().st_mode & 0o777 == 0o700
    assert len(list(seen.home.rglob("*"))) > 10
    assert seen.wide == []


@pytest.mark.fuse
def test_no_process_has_a_secret_on_its_command_line_or_in_its_environment(seen):
    assert len(seen.lines) >= 2, seen.lines
    assert any("xnatfs.download_worker" in line for line in seen.lines.values())
    for secret in seen.secrets:
        assert not any(secret in text for text in [*seen.lines.values(), *seen.environments.values()])


def test_what_a_mount_in_the_foreground_starts_is_told_no_secret(monkeypatch):
    for name in ("XNAT_PASS", "XNAT_TOKEN"):
        monkeypatch.setenv(name, PASSWORD)
    assert PASSWORD not in for_children().values()
    forget_secrets()  # libfuse starts fusermount3 by itself
    told = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    assert "PATH=" in told
    assert PASSWORD not in told


@pytest.mark.fuse
def test_no_process_leaves_a_core_dump(seen):
    for limits in seen.limits.values():
        assert re.search(r"Max core file size +1 +1 +bytes", limits)


@pytest.mark.fuse
def test_a_mount_that_tells_all_tells_no_secret(seen):
    assert " DEBUG " in seen.log
    for secret in (*seen.secrets, "Authorization", "Basic "):
        assert secret not in seen.log
        assert secret not in seen.stderr


@pytest.mark.fuse
def test_what_allow_other_opens_is_said_in_a_line_and_in_the_log(seen):
    line = "every user and program of this machine may read in this mount what your account may"
    assert seen.stderr.count("\n") == 1
    assert line in seen.stderr
    assert [f" WARNING xnatfs.cli.serving: {line}" in text for text in seen.log.splitlines()].count(True) == 1


# -- commands ----------------------------------------------------------------------------------------------------


def test_files_and_directories_of_commands_are_private_whatever_the_umask(fresh):
    kept = [
        ("auth", "login", "--token", "--log-file", "log"),
        ("config", "init", "--url", fresh.url),
        ("scan", "download", "-E", SESSION, "-s", "1", "--out", "data"),
    ]
    for words in kept:
        fresh.ctl(*words, umask=0)
    ours = [path for path in fresh.home.rglob("*") if "data" not in path.relative_to(fresh.home).parts]
    assert len(ours) > 10
    assert [str(path) for path in ours if path.lstat().st_mode & 0o077] == []
    copied = [path for path in (fresh.home / "data").rglob("*.dcm")]
    assert copied
    assert {path.stat().st_mode & 0o777 for path in copied} == {0o666}  # what the user wanted is as the umask says


SCENES = {
    "a login that is refused": ({r"POST /data/JSESSION ": answer(401, "<h3>no</h3>")}, 3),
    "a page instead of a login": ({r"POST /data/JSESSION ": ok("<html><h3>log in</h3>", "text/html")}, 4),
    "a redirect": ({"GET /data/projects": answer(302, "", "Location: http://127.0.0.1:9/x")}, 4),
    "a server that is busy": ({"GET /data/projects": answer(503, "", "Retry-After: 9999")}, 4),
    "a session that is lost again and again": ({"GET /data/projects": answer(401)}, 3),
    "a cookie that is none": (
        {"GET /data/projects": ok(listing([]), "application/json", f"Set-Cookie: JSESSIONID={TOKEN}\xe4")},
        0,
    ),
    "something else": ({"GET /data/projects": ok("<html>", "text/html")}, 4),
    "a crash": ({"GET /data/projects": ok(listing(['{"ID":"P"}']))}, os.EX_SOFTWARE),
}
# A fault of our own, with what it was about in its hands.
CRASHING = """
import sys
from xnatfs.cli import main_xnatctl
from xnatfs.rest import client

async def crash(self, *item, **more):
    token = await self.login.token()
    f"JSESSIONID={token}\\xe4 {self.login._request._credentials.password}".encode("ascii")

client.Xnat.rows = crash
sys.exit(main_xnatctl())
"""


@pytest.mark.parametrize("scene", SCENES)
def test_no_secret_is_in_any_output_however_a_command_ends(tmp_path, scene):
    says, status = SCENES[scene]
    log = tmp_path / "log"
    command: list[str | Path] = [sys.executable, "-c", CRASHING] if scene == "a crash" else [SCRIPTS / "xnatctl"]
    with hostile(dict(says)) as server:
        env = environment(tmp_path, XNAT_URL=server.url, XNAT_USER="u", XNAT_PASS=PASSWORD, XNATCTL_DEBUG="1")
        done = run(*command, "project", "list", "--log-file", log, env=env)
        assert done.returncode == status, done
        assert any("authorization: basic" in head.lower() for head in server.heads)
    said = done.stdout + done.stderr + log.read_text()
    assert ("Traceback" in said) == (scene == "a crash")
    for secret in (PASSWORD, TOKEN, "dTpodXNo", "JSESSIONID=", "Authorization"):
        assert secret not in re.sub(r'f"JSESSIONID=\{token\}', "", said)


@pytest.mark.parametrize("token", ["short", "with\nend", "größer-als-acht", "x" * 300])
def test_a_token_that_no_header_may_hold_is_refused_and_not_shown(tmp_path, token):
    with pytest.raises(ConfigError, match="XNAT_TOKEN is not a session ID") as caught:
        session_store(Config("https://h"), token)
    assert token not in str(caught.value)
    if "\n" in token:
        env = environment(tmp_path, XNAT_URL="http://127.0.0.1:9", XNAT_USER="u", XNAT_TOKEN=token)
        done = run(SCRIPTS / "xnatctl", "whoami", env=env)
        assert (done.returncode, done.stderr) == (2, f"xnatctl: {caught.value}\n")


def test_a_password_in_an_url_is_not_shown():
    for url in (
        f"https://u:{PASSWORD}@h:x",
        f"ftp://u:{PASSWORD}@h",
        f"https://u:{PASSWORD}@h?q",
        f"https://u:{PASSWORD}@[",
    ):
        with pytest.raises(ConfigError) as caught:
            normalised_url(url)
        assert PASSWORD not in str(caught.value)


async def test_no_repr_shows_a_secret(tmp_path):
    now = datetime.now()
    credentials = Credentials("u", PASSWORD)
    profile = Profile("p", "https://h", "u", PASSWORD)
    config = Config("https://h", profile)
    store = SessionStore("https://h", "u", tmp_path, given=TOKEN)
    async with open_xnat(config, credentials) as xnat:
        shown = [
            *(
                credentials,
                profile,
                config,
                store,
                xnat,
                xnat.login,
                xnat._transport,
                vars(xnat),
                vars(xnat._transport),
            ),
            StoredSession(TOKEN, "https://h", "u", now, now, 1.0),
            Context(argparse.Namespace(), config, {"XNAT_PASS": PASSWORD, "XNAT_TOKEN": TOKEN}),
        ]
        for thing in shown:
            assert PASSWORD not in repr(thing)
            assert TOKEN not in repr(thing)


def test_a_process_that_is_killed_with_a_password_in_memory_leaves_no_core(tmp_path):
    script = "import os; from xnatfs.cli.run import no_core_dumps; no_core_dumps(); os.abort()"
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(["sh", "-c", 'ulimit -c unlimited; exec "$@"', "sh", *command], cwd=tmp_path)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = 0
    assert os.WIFSIGNALED(status)
    assert not os.WCOREDUMP(status)
    assert list(tmp_path.iterdir()) == []


# -- files -------------------------------------------------------------------------------------------------------

# Where files are made for the user, with the user's own mask.
FOR_THE_USER = {
    *("transfer/download", "transfer/local_files", "transfer/manifest", "cli/lookup/export"),
    *("api/files", "api/filesystem", "cli/serving", "cli/host/units"),
}
# Files of the kernel.
KERNEL_FILES = ("/sys/class/bdi", "/proc/self/")


@cache
def calls() -> list[tuple[str, ast.Call, str]]:
    """Return every call in the package, with the module it is in and the name of what is called."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).with_suffix("").as_posix()
        if not module.startswith("demo"):
            nodes = ast.walk(ast.parse(path.read_text()))
            found += [(module, node, ast.unparse(node.func)) for node in nodes if isinstance(node, ast.Call)]
    return found


def makes(call: ast.Call, name: str) -> bool:
    """Return whether the call may create a file or directory, as far as can be seen."""
    text = ast.unparse(call)
    if name == "os.open":
        return "O_CREAT" in text
    if name == "open":
        mode = [str(argument.value) for argument in call.args[1:2] if isinstance(argument, ast.Constant)]
        writes = any(set(text) & set("wax") for text in mode)
        return writes and not isinstance(call.args[0], ast.Call) and "descriptor" not in text
    touches = name.endswith(".touch") and not call.args  # a path's; the cache has another
    return touches or name in ("os.mkdir", "os.makedirs") or name.endswith((".mkdir", ".write_text", ".write_bytes"))


def test_whatever_makes_a_file_says_that_it_is_private():
    wide = []
    for module, call, name in calls():
        text = ast.unparse(call)
        if (
            makes(call, name)
            and module not in FOR_THE_USER
            and "0o600" not in _octal(text)
            and "0o700" not in _octal(text)
        ):
            wide.append(f"{module}: {text}")
    # A descriptor has its mode already.
    assert [each for each in wide if not any(name in each for name in KERNEL_FILES)] == []


def _octal(text: str) -> str:
    return text.replace("384", "0o600").replace("448", "0o700")


def test_nothing_is_made_under_a_name_that_others_could_know_in_a_place_that_is_theirs():
    """Create temporary files in a directory of the program, or by tempfile."""
    found = [
        module for module, call, _ in calls() if re.search(r"['\"]/(var/)?tmp|gettempdir|mktemp\(", ast.unparse(call))
    ]
    assert found == []


def test_a_private_file_replaces_a_link_and_not_what_it_leads_to(tmp_path):
    victim, place = tmp_path / "victim", tmp_path / "ours" / "session.json"
    victim.write_text("precious")
    place.parent.mkdir(mode=0o700)
    place.symlink_to(victim)
    write_private(place, "{}")
    assert (victim.read_text(), place.read_text(), place.is_symlink()) == ("precious", "{}", False)
    assert place.stat().st_mode & 0o777 == 0o600


def test_a_cache_directory_of_another_user_is_not_used(tmp_path, monkeypatch):
    open_directory(tmp_path / "cache", 2**20).index.close()
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(CacheError, match="belongs to another user"):
        open_directory(tmp_path / "cache", 2**20)


def test_a_log_is_lines_that_nobody_else_can_write(caplog):
    record = logging.LogRecord("x", logging.INFO, "", 0, "a %s", ("b\n2026 CRITICAL forged\x1b[2J",), None)
    try:
        raise ValueError("x\x1b[31m")
    except ValueError:
        record.exc_info = sys.exc_info()
    first, *rest = logs.LineFormatter().format(record).split("\n")
    assert first.endswith("INFO x: a b 2026 CRITICAL forged?[2J")
    assert rest[-1] == "ValueError: x?[31m"


def test_a_shell_completes_no_name_that_a_terminal_obeys(tmp_path):
    store = ListingStore(tmp_path, lambda: "u")
    names = [("P", "fine\x1b"), ("P\nrm -rf ~", ""), ("\x1b[2J", ""), ("half-\ud800", "")]
    store_names(store, ["projects"], [Name(*each) for each in names])
    assert find_names(store, ["projects"]) == [("P", "fine?")]


# -- the way there -----------------------------------------------------------------------------------------------


def test_who_may_read_along_is_told():
    plain, bundle = Config("http://xnat.example.org"), Config("https://h", verify_ssl=False, ca_bundle="/x")
    assert "not encrypted" in connection_warning(plain)
    assert "not verified" in connection_warning(Config("https://127.0.0.1", verify_ssl=False))
    for quiet in (Config("https://h"), Config("http://127.0.0.1:80"), Config("http://[::1]"), Config(""), bundle):
        assert connection_warning(quiet) == ""


def test_a_way_without_encryption_is_warned_of_whatever_is_printed(tmp_path):
    with hostile({"GET /data/projects": ok(listing(['{"ID":"P"}']))}) as server:
        url = server.url.replace("127.0.0.1", "0.0.0.0")  # which no rule takes for this machine, and is
        env = environment(tmp_path, XNAT_USER="u", XNAT_PASS=PASSWORD)
        done = run(SCRIPTS / "xnatctl", "project", "list", "-q", "--url", url, env=env)
    assert (done.returncode, done.stdout) == (0, "P\n")
    assert done.stderr == f"xnatctl: {url} is not encrypted: the password and all data can be read on the way\n"


def certificate(directory: Path, name: str, days: int = 2) -> tuple[Path, Path]:
    """Make a certificate for a host that is its own authority."""
    made, key, request = directory / "made.pem", directory / "key.pem", directory / "request.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-addext", f"subjectAltName={name}"]
    for words in (
        ["req", *kind, "-subj", "/CN=x", "-keyout", str(key), "-out", str(request)],
        # `req -x509` makes none that is over.
        [
            "x509",
            "-req",
            "-in",
            str(request),
            "-signkey",
            str(key),
            "-days",
            str(days),
            "-copy_extensions",
            "copy",
            "-out",
            str(made),
        ],
    ):
        subprocess.run(["openssl", *words], check=True, capture_output=True)
    return made, key


@pytest.mark.parametrize(
    ("name", "days", "why"),
    [("DNS:other.example.org", 2, "IP address mismatch"), ("IP:127.0.0.1", -1, "expired"), ("IP:127.0.0.1", 2, "")],
)
async def test_a_certificate_that_is_not_for_this_server_now_is_refused_before_anything_is_sent(
    tmp_path, name, days, why
):
    made, key = certificate(tmp_path, name, days)
    archive = Archive()
    archive.users["u"] = User("u", PASSWORD)
    app = DemoXnat(archive)
    with serve(app, certificate=(made, key)) as url:
        async with open_xnat(Config(url, ca_bundle=str(made), timeout=5.0), Credentials("u", PASSWORD)) as xnat:
            if why:
                with pytest.raises(Unreachable, match=f"is not trusted.*{why}"):
                    await xnat.log_in()
                assert app.requests == []
            else:
                await xnat.log_in()


async def test_a_redirect_to_another_protocol_sends_no_password_there():
    with hostile() as plain:
        with hostile({".* /data/JSESSION": answer(302, "", f"Location: {plain.url}/data/JSESSION")}) as server:
            async with open_xnat(Config(server.url, timeout=1.0), Credentials("u", PASSWORD)) as xnat:
                with pytest.raises(NotXnat, match="redirects to"), trio.fail_after(20):
                    await xnat.log_in()
        assert plain.heads == []


# -- the page ----------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "SECURITY.md").read_text()
TESTS = ROOT / "tests"


def named_in(pattern: str) -> set[str]:
    found = set()
    for path in TESTS.rglob(pattern):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found.add(node.name)
    return found


def test_the_page_names_tests_that_there_are_and_all_of_ours():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert named - named_in("test_*.py") - {path.stem for path in TESTS.rglob("test_*.py")} == set()
    ours = named_in("test_security*.py") | named_in("test_hostile*.py") | named_in("test_fuzz*.py")
    assert ours - named == set()


def test_every_row_of_the_page_names_its_test():
    tables = PAGE.split("| threat |")[1:]  # each with its rows, and the words after it
    rows = [line for table in tables for line in table.partition("\n\n")[0].splitlines()[2:]]
    assert len(rows) > 40
    assert [row for row in rows if "`test_" not in row] == []
