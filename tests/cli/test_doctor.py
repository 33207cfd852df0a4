"""Run `xnatfs doctor` where something is wrong: it names that, says what to do, and shows no secret."""

import http.server
import json
import os
import shutil
import signal
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.promises.test_security import certificate
from tests.support import failing
from tests.support.commanding import OUTSIDER, Shell
from tests.support.demos import Demo, serving
from tests.support.failing import DEAD, OWN_MOUNTS, Page
from tests.support.mounting import SCRIPTS, daemons, end, environment, run
from xnatfs.cli.host import doctor
from xnatfs.cli.host.recording import ROUTES, Scrubber
from xnatfs.common.files import write_private
from xnatfs.http.probe import LOGIN_PAGE_PATH

XNATFS = SCRIPTS / "xnatfs"
PASSWORD = "hush-hush"
BUILD = b'{"version": "1.8.11"}'


def diagnose(home: Path, *words: str | Path, before: Any = (), **more: str) -> dict[str, dict[str, Any]]:
    """Return the checks by name. The exit status is 1 if and only if something needs doing."""
    env = environment(home, **{"XNAT_USER": "u", "XNAT_PASS": PASSWORD, **more})
    done = run(*before, XNATFS, "doctor", "-o", "json", *words, env=env, stdin=-3)
    assert done.stderr == ""
    assert env["XNAT_PASS"] not in done.stdout
    checks: list[dict[str, Any]] = json.loads(done.stdout)
    assert done.returncode == (0 if all(check["ok"] for check in checks) else 1)
    assert all(check["ok"] != bool(check["todo"]) for check in checks)
    assert all("\n" not in check["text"] + check["todo"] for check in checks)
    return {check["name"]: check for check in checks}


def wrong(checks: dict[str, dict[str, Any]]) -> list[str]:
    """Return the names of the checks that need doing, less those of this machine, where tests run, too."""
    return [
        name for name, check in checks.items() if not check["ok"] and name not in ("mounts", "cache", "exec", "FUSE")
    ]


class AnsweringServer(Page):
    """A server whose answers are given by the beginning of the path: status, location, body."""

    answers: dict[str, tuple[int, str, bytes]] = {}
    ahead = 0.0

    def do_GET(self) -> None:
        default = (404, "", b"<html><h3>no</h3></html>")
        status, location, body = next(
            (reply for path, reply in self.answers.items() if self.path.startswith(path)), default
        )
        self.send_response_only(status)
        self.send_header("Date", formatdate(self.ahead + time.time(), usegmt=True))
        self.send_header("Content-Type", "text/html" if body.startswith(b"<") else "application/json")
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_DELETE = do_GET


def answering(ahead: float = 0.0, **answers: tuple[int, str, bytes]) -> type[http.server.BaseHTTPRequestHandler]:
    paths = {"build": "/xapi/siteConfig/buildInfo", "login": "/data/JSESSION", "all": "/", "methods": LOGIN_PAGE_PATH}
    found = {paths[name]: answer for name, answer in answers.items()}
    return type("Answering", (AnsweringServer,), {"answers": found, "ahead": ahead})


def login(demo: Demo) -> dict[str, str]:
    return {"XNAT_USER": demo.login["user"], "XNAT_PASS": demo.login["password"]}


# -- the server ------------------------------------------------------------------------------------------------


def test_a_server_that_is_well_is_described(demo, tmp_path):
    checks = diagnose(tmp_path, demo.url, **login(demo))
    assert wrong(checks) == []
    assert "is XNAT 1.8.11" in checks["server"]["text"]
    assert f"as {demo.login['user']}, by the environment" in checks["login"]["text"]
    assert checks["permission"]["text"].startswith("the account sees ")
    assert list(checks) == [
        *("versions", "FUSE", "exec", "mounts", "cache", "proxy", "DNS", "server", "clock", "login", "permission")
    ]


def test_text_has_one_line_for_each_check(demo, tmp_path):
    done = run(XNATFS, "doctor", demo.url, env=environment(tmp_path, **login(demo)))
    lines = done.stdout.splitlines()
    assert {line[:6] for line in lines} <= {"ok    ", "to do "}
    assert any(line.startswith("ok    server: ") for line in lines)


def test_a_reader_that_has_seen_enough_ends_it_without_an_error(demo, tmp_path):
    env = environment(tmp_path, **login(demo))
    done = run("bash", "-c", 'set -o pipefail; "$0" doctor "$1" | head -1', XNATFS, demo.url, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ok    versions: ")


@pytest.mark.parametrize(
    ("handler", "name", "said"),
    [
        (Page, "server", "is not an XNAT"),
        (answering(build=(403, "", b"<h3>Site has not yet been configured.</h3>")), "server", "has not been set up"),
        (answering(all=(302, "https://other.example.org/x?secret=1", b"")), "server", "redirects to https://other"),
        (answering(build=(503, "", b"<h3>Maintenance</h3>")), "server", "503"),
        (answering(build=(200, "", BUILD), login=(401, "", b"")), "login", "wrong user or password"),
        (
            answering(build=(200, "", BUILD), login=(200, "", b"<title>Two-Factor Authentication</title>")),
            "login",
            "alias token",
        ),
        (
            answering(build=(200, "", BUILD), login=(302, "/app/template/XDATScreen_UpdateUser.vm", b"")),
            "login",
            "set a new one",
        ),
        (answering(3600.0, build=(200, "", BUILD), login=(401, "", b"")), "clock", "ahead of this machine"),
    ],
)
def test_what_is_wrong_with_a_server_is_named(tmp_path, handler, name, said):
    with failing.serving(handler) as url:
        checks = diagnose(tmp_path, url)
    assert name in wrong(checks)
    assert said in checks[name]["text"] + checks[name]["todo"]
    assert "secret" not in json.dumps(checks)


@pytest.mark.parametrize(
    ("url", "name", "said"),
    [
        (DEAD, "server", "Connection refused"),
        ("https://no-such-host.invalid", "DNS", "no-such-host.invalid is not known"),
        ("ftp://x", "server", "must begin with https://"),
    ],
)
def test_what_is_wrong_on_the_way_is_named(tmp_path, url, name, said):
    checks = diagnose(tmp_path, url)
    assert name in wrong(checks)
    assert said in checks[name]["text"] + checks[name]["todo"]


LOGIN_PAGE = b"""<form><select id="login_method" name="login_method">
<option value="localdb" selected>Database</option><option value="ldap &amp; \x1b[1m">LDAP</option></select>
<select name="other"><option value="none">none</option></select></form>"""


@pytest.mark.parametrize(
    ("provider", "text", "is_well"),
    [
        ("", "localdb, ldap & ?[1m; the server chooses one", True),
        ("localdb", "localdb by the profile", True),
        ("kerberos", "kerberos by the profile", False),
    ],
)
def test_the_login_methods_of_a_server_are_named(tmp_path, provider, text, is_well):
    handler = answering(build=(200, "", BUILD), methods=(200, "", LOGIN_PAGE), login=(401, "", b""))
    with failing.serving(handler) as url:
        profile = f"profiles:\n  here: {{url: '{url}', provider: '{provider}'}}\n"
        write_private(tmp_path / ".config" / "xnatctl" / "config.yaml", profile)
        checks = diagnose(tmp_path, url)
    assert text in checks["login methods"]["text"]
    assert checks["login methods"]["ok"] == is_well
    assert ("'provider'" in checks["login methods"]["todo"]) != is_well


@pytest.mark.parametrize("page", [b"", b'<input type="hidden" name="login_method" value="localdb">', b"<option" * 9000])
def test_a_server_with_one_login_method_has_no_line_about_it(tmp_path, page):
    with failing.serving(answering(build=(200, "", BUILD), methods=(200, "", page), login=(401, "", b""))) as url:
        assert "login methods" not in diagnose(tmp_path, url)


def test_a_server_that_is_not_named_is_asked_for(tmp_path):
    assert "--url" in diagnose(tmp_path)["server"]["todo"]


def test_a_proxy_is_named_without_its_login(tmp_path):
    proxy = "http://me:proxy-secret@127.0.0.1:9"
    checks = diagnose(tmp_path, "http://xnat.example.org", HTTP_PROXY=proxy, http_proxy=proxy)
    assert "through 127.0.0.1:9" in checks["proxy"]["text"]
    assert "proxy" in checks["server"]["text"] + checks["server"]["todo"]
    assert "proxy-secret" not in json.dumps(checks)


@pytest.mark.parametrize(
    ("name", "days", "trusted", "said"),
    [
        ("IP:127.0.0.1", 400, True, ""),
        ("IP:127.0.0.1", 2, True, "its managers must renew it"),
        ("IP:127.0.0.1", 400, False, "is not trusted"),
        ("DNS:other.example.org", 400, True, "is not trusted"),
    ],
)
def test_a_certificate_is_looked_at(tmp_path, name, days, trusted, said):
    made = certificate(tmp_path, name, days)
    with serving(certificate=made) as demo:
        words: list[str | Path] = ["--ca-bundle", made[0]] if trusted else []
        checks = diagnose(tmp_path, demo.url, *words, **login(demo))
    assert (checks["TLS"]["ok"], said in checks["TLS"]["text"] + checks["TLS"]["todo"]) == (said == "", True)


def test_without_a_login_the_next_step_is_named_and_nothing_is_asked(demo, tmp_path):
    done = run(XNATFS, "doctor", demo.url, env=environment(tmp_path), stdin=-3)
    assert done.returncode == 1
    assert "to do login: no login is stored for it: run 'xnatctl auth login'" in done.stdout


def test_an_account_that_sees_nothing_is_sent_to_an_owner(fresh: Shell):
    checks = diagnose(fresh.home, fresh.url, XNAT_USER=OUTSIDER, XNAT_PASS=fresh.env["XNAT_PASS"])
    assert wrong(checks) == ["permission"]
    assert "ask the owner" in checks["permission"]["todo"]


# -- this machine ----------------------------------------------------------------------------------------------


@pytest.mark.fuse
def test_a_mount_whose_process_was_killed_is_named_beside_those_that_live(demo, tmp_path):
    home, dead, alive = tmp_path / "home", tmp_path / "dead", tmp_path / "alive"
    for directory in (home, dead, alive):
        directory.mkdir()
    env = environment(home, **login(demo))
    try:
        run(XNATFS, "mount", "--url", demo.url, dead, env=env)
        (daemon,) = daemons(home)
        run(XNATFS, "mount", "--url", demo.url, alive, env=env)
        assert f"{demo.url} on {dead}" in diagnose(home, demo.url, **login(demo))["mounts"]["text"]
        os.kill(daemon, signal.SIGKILL)
        done = run(XNATFS, "doctor", demo.url, env=env)
        assert f"to do mounts: the process of the mount on {dead} has ended: xnatfs umount {dead}\n" in done.stdout
        assert f"{demo.url} on {alive}" in diagnose(home, demo.url, **login(demo))["mounts"]["text"]
        assert run(XNATFS, "umount", dead, env=environment(home)).returncode == 0
    finally:
        end(dead, home)
        end(alive, home)


def test_a_machine_without_fuse_is_told_what_to_install(demo, tmp_path):
    hide = 'mount --bind /bin/false "$(command -v fusermount3)" && PATH=/tmp exec "$0" "$@"'
    before = (*OWN_MOUNTS, "sh", "-ec", hide)
    checks = diagnose(tmp_path, demo.url, before=before, **login(demo))
    assert not checks["FUSE"]["ok"]
    assert "fuse3" in checks["FUSE"]["todo"]


def test_a_cache_without_room_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    check = doctor._cache(tmp_path)
    assert "0.0 GiB free" in check.text
    assert "free some space" in check.todo


# -- recording -------------------------------------------------------------------------------------------------


def test_a_recording_that_cannot_be_written_is_named_beside_a_login_that_is_well(demo, tmp_path):
    (tmp_path / "file").write_text("")
    checks = diagnose(tmp_path, demo.url, "--record", tmp_path / "file" / "recording", **login(demo))
    assert checks["login"]["ok"]
    assert checks["record"]["text"] == f"cannot write to {tmp_path}/file/recording: Not a directory"
    assert not checks["record"]["ok"]


def test_a_recording_has_no_name_of_the_server(demo, tmp_path):
    target = tmp_path / "recording"
    checks = diagnose(tmp_path, demo.url, "--record", target, **login(demo))
    assert checks["record"]["ok"]
    files = sorted(target.iterdir())
    assert [path.name.partition("-")[2] for path in files] == [
        *("buildInfo.json", "username.json", "projects.json", "subjects.json", "experiments.json"),
        *("scans.json", "assessors.json", "resources.json", "files.json"),
    ]
    text = "".join(path.read_text() for path in files)
    archive = demo.archive
    names = {*archive.projects, *archive.experiments, demo.login["user"], demo.login["password"], demo.url}
    names |= {subject.label for subject in archive.subjects.values()} if hasattr(archive, "subjects") else set()
    names -= ROUTES
    assert [name for name in names if f'"{name}"' in text or f"/{name}/" in text or f'/{name}"' in text] == []
    assert "JSESSIONID" not in text
    assert json.loads(files[2].read_text())["body"]["ResultSet"]["Result"]


def test_scrubbing_keeps_the_form_and_what_belongs_together():
    scrub = Scrubber().value
    one = scrub(
        {"ID": "Doe_Jane", "URI": "/data/experiments/Doe_Jane/scans/12", "insert_date": "2024-01-31 10:11:12.5"}
    )
    assert one["URI"] == f"/data/experiments/{one['ID']}/scans/{one['URI'].rpartition('/')[2]}"
    assert "Jane" not in json.dumps(one)
    assert one["insert_date"] == "0000-00-00 00:00:00.0"
    assert scrub({"Name": "Jane Doe.nii.gz"})["Name"].endswith(".nii.gz")
    kept = {"xsiType": "xnat:mrSessionData", "format": "DICOM", "file_count": "12"}
    assert scrub(kept) == kept
    assert "Doe" not in json.dumps(scrub({"quality": "see /home/Doe/x", "12 Doe": 1, "note": ["Doe", {"a": "Doe"}]}))
