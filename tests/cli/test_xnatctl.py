"""Test xnatctl as a program: start-up, error lines, requests per command, and where logins are stored."""

import json
import stat
import subprocess
import sys
from typing import Any

import pytest

from tests.support.commanding import COLLABORATOR, LABEL, OUTSIDER, OWNER, PASSWORD, SESSION, Shell, shell
from tests.support.failing import DEAD
from tests.support.mounting import environment, run
from xnatfs.cli.ctl.main import commands
from xnatfs.demo.server.app import Request
from xnatfs.demo.server.reply import Reply

# -- starting ----------------------------------------------------------------------------------------------------


def test_the_version_needs_none_of_the_libraries(tmp_path):
    code = """if True:
        import sys
        from xnatfs.cli import main_xnatctl
        try:
            main_xnatctl(["--version"])
        except SystemExit as end:
            print(end.code)
        print(sorted({"httpx", "trio", "pyfuse3", "rich", "keyring", "yaml", "pydicom"} & sys.modules.keys()))
    """
    done = run(sys.executable, "-c", code, env=environment(tmp_path))
    assert done.stdout.splitlines()[1:] == ["0", "[]"]


def test_it_works_where_pyfuse3_cannot_be_imported(prompt):
    code = """if True:
        import sys
        sys.modules["pyfuse3"] = None
        from xnatfs.cli import main_xnatctl
        sys.exit(main_xnatctl(sys.argv[1:]))
    """
    blocked = Shell(prompt.app, prompt.url, prompt.home, prompt.env, (sys.executable, "-c", code))
    for words in (("project", "list"), ("scan", "download", "-E", SESSION, "-s", "1", "--out", "x"), ("--help",)):
        blocked.ctl(*words)
    assert blocked.ctl("project", "list", "-q").lines == prompt.ctl("project", "list", "-q").lines


def test_the_module_is_the_program_whatever_the_script_is(prompt):
    module = Shell(prompt.app, prompt.url, prompt.home, prompt.env, (sys.executable, "-m", "xnatfs.cli"))
    assert module.ctl("--version").out == prompt.ctl("--version").out
    assert module.ctl("project", "list").out == prompt.ctl("project", "list").out


@pytest.mark.parametrize("program", ["main", "main_xnatctl"])
@pytest.mark.parametrize("module", ["argparse", "xnatfs.common.errors", "xnatfs.cli.output", "xnatfs.cli.options"])
def test_ctrl_c_while_modules_are_imported_is_one_line(tmp_path, program, module):
    code = f"""if True:
        import sys
        class Interrupting:
            def find_spec(self, name, path=None, target=None):
                if name == {module!r}:
                    raise KeyboardInterrupt
        sys.modules.pop({module!r}, None)
        sys.meta_path.insert(0, Interrupting())
        from xnatfs.cli import {program}
        sys.exit({program}(["--help"]))
    """
    done = run(sys.executable, "-c", code, env=environment(tmp_path))
    name = "xnatfs" if program == "main" else "xnatctl"
    assert (done.returncode, done.stderr) == (130, f"{name}: interrupted\n")


@pytest.mark.parametrize("command", commands(), ids=lambda command: f"{command.noun} {command.verb}".strip())
def test_every_command_has_help_with_an_example(command, capsys):
    from xnatfs.cli import main_xnatctl

    words = [*command.noun.split(), command.verb]
    with pytest.raises(SystemExit) as end:
        main_xnatctl([*words, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    example = said.rpartition("example: ")[2].split()
    assert example[: 1 + len(words)] == ["xnatctl", *words]


# -- wrong input -------------------------------------------------------------------------------------------------

PROFILES = "profiles:\n  one:\n    url: {url}\n  two:\n    url: {url}\n"

ARCHIVE_WAITING = ("prearchive", "archive", "-P", "MYPROJECT", "--session", "WAITING")
# What is wrong; the file of profiles; the environment; the command; the status; what the one line says.
WRONG: dict[str, tuple[str, dict[str, str | None], tuple[str, ...], int, str]] = {
    "no profile": ("", {"XNAT_URL": None}, ("project", "list"), 2, "which XNAT?"),
    "unknown profile": (PROFILES, {"XNAT_URL": None}, ("project", "list", "-p", "three"), 2, "three"),
    "several profiles and no default": (PROFILES, {"XNAT_URL": None}, ("project", "list"), 2, "one, two"),
    "broken YAML": ("profiles: [", {"XNAT_URL": None}, ("project", "list"), 2, "config.yaml"),
    "no credentials": ("", {"XNAT_PASS": None, "XNAT_USER": None}, ("project", "list"), 3, "auth login"),
    "no credentials, whoami": ("", {"XNAT_PASS": None, "XNAT_USER": None}, ("whoami",), 3, "auth login"),
    "wrong password": ("", {"XNAT_PASS": "wrong"}, ("project", "list"), 3, "wrong user or password"),
    "wrong password, login": ("", {"XNAT_PASS": "wrong"}, ("auth", "login"), 3, "wrong user or password"),
    "no project": ("", {}, ("subject", "list"), 2, "which project?"),
    "unknown project": ("", {}, ("session", "list", "-P", "NOPE"), 5, "project NOPE not found on http"),
    "unknown project, subjects": ("", {}, ("subject", "list", "-P", "NOPE"), 5, "project NOPE not found on http"),
    "unknown project, show": ("", {}, ("project", "show", "NOPE"), 5, "project NOPE not found on http"),
    "unknown project, prearchive": ("", {}, ("prearchive", "list", "-P", "NOPE"), 5, "project NOPE not found on http"),
    "unknown session": ("", {}, ("session", "show", "-E", "NOPE"), 5, "session NOPE not found on http"),
    "unknown subject": ("", {}, ("subject", "show", "-P", "MYPROJECT", "NOPE"), 5, "subject NOPE in project"),
    "unknown label": ("", {}, ("scan", "list", "-P", "MYPROJECT", "-E", "NOPE"), 5, "session NOPE in project"),
    "unknown session, download": ("", {}, ("scan", "download", "-E", "NOPE", "-s", "1"), 5, "session NOPE not found"),
    "unknown scan": ("", {}, ("scan", "download", "-E", SESSION, "-s", "9"), 5, "scan 9 is not in the session"),
    "unknown resource": ("", {}, ("resource", "show", "-E", SESSION, "NOPE"), 5, "resource NOPE not found"),
    "blanks and dots": ("", {}, ("session", "show", "-E", "a b.c", "-P", "MYPROJECT"), 5, "session a b.c in"),
    "no -E": ("", {}, ("scan", "list"), 2, "which session?"),
    "no --scans": ("", {}, ("scan", "download", "-E", SESSION), 2, "which scans?"),
    "an empty --scans": ("", {}, ("scan", "download", "-E", SESSION, "-s", ""), 2, "which scans?"),
    "a bad -o": ("", {}, ("project", "list", "-o", "xml"), 2, "invalid choice: 'xml'"),
    "an unknown column": ("", {}, ("project", "list", "--columns", "id,colour"), 2, "no column 'colour'"),
    "an unknown field to sort by": ("", {}, ("project", "list", "--sort-by", "colour"), 2, "no column 'colour'"),
    "a limit that is no number": ("", {}, ("project", "list", "--limit", "x"), 2, "--limit: 'x' is not a number"),
    "a filter without a pattern": ("", {}, ("project", "list", "--filter", "id"), 2, "FIELD:PATTERN"),
    "an unknown command": ("", {}, ("project", "lisst"), 2, "there is no command 'lisst': did you mean list?"),
    "an unknown noun": ("", {}, ("sesion", "list"), 2, "there is no command 'sesion': did you mean session?"),
    "a verb without a noun": ("", {}, ("upload", "x"), 2, "did you mean session upload or resource upload?"),
    "an unknown option": ("", {}, ("session", "list", "--projct", "P"), 2, "--projct: did you mean --project?"),
    "a misspelt option that is required": (
        "", {}, ("session", "upload", "x", "--subjct", "S"), 2, "--subjct: did you mean --subject?",
    ),
    "an option before its command": ("", {}, ("session", "-P", "P", "list"), 2, "give it after the command"),
    "an option before its noun": ("", {}, ("-P", "P", "session", "list"), 2, "give it after the command"),
    "an argument too many": ("", {}, ("session", "list", "P"), 2, "arguments: P (see xnatctl session list --help)"),
    "a password in argv": ("", {}, ("auth", "login", "--password", "x"), 2, "--password-stdin"),
    "not allowed": ("", {"XNAT_USER": COLLABORATOR}, ARCHIVE_WAITING, 6, "Member"),
    "nothing there": ("", {"XNAT_URL": DEAD}, ("project", "list"), 4, "cannot be reached: Connection refused"),
    "not an address": ("", {"XNAT_URL": "xnat.example.org"}, ("project", "list"), 2, "xnat.example.org"),
    "upload of nothing": ("", {}, ("session", "upload", "nothing", "-P", "A", "-S", "S", "-E", "E"), 2, "nothing"),
    "upload without DICOM": ("", {}, ("session", "upload", ".", "-P", "A", "-S", "S", "-E", "E"), 2, "holds no DICOM"),
    "a file as directory": ("", {}, ("session", "download", "-E", SESSION, "--out", "file"), 2, "not a directory"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("output", ["table", "json"])
def test_wrong_input(prompt, tmp_path, kind, output):
    profiles, variables, words, status, said = WRONG[kind]
    env = {key: value for key, value in {**prompt.env, **variables}.items() if value is not None}
    desk = Shell(prompt.app, prompt.url, tmp_path, env)
    (tmp_path / "file").write_text("no images")
    if profiles:
        desk.config(profiles.format(url=prompt.url))
    before = len(prompt.app.requests)
    done = desk.ctl(*words, *(("-o", "json") if output == "json" and "-o" not in words else ()), status=status)
    assert done.out == ""
    if output == "json" and "-o" not in words:
        error = json.loads(done.err)["error"]
        assert error.keys() == {"kind", "message", "hint", "status", "url", "exit_code"}
        assert (error["exit_code"], said in error["message"]) == (status, True)
        assert error["status"] == {3: None, 4: None, 5: 404, 6: 403}.get(status, error["status"]) or status == 3
    else:
        (line,) = done.err.splitlines()
        assert line.startswith("xnatctl: ")
        assert said in line
    if status == 6:
        assert "authenticat" not in done.err.lower()
    if status == 2:
        assert len(prompt.app.requests) == before, "refused before anything is asked"


def test_one_ladder_of_tries_where_nobody_answers(fresh):
    """Retry in one place, with a saved session as well: no check precedes the work, which fails by itself."""
    fresh.ctl("auth", "login")
    cells = json.loads(fresh.slot.read_text())
    fresh.env["XNAT_URL"] = cells["url"] = DEAD
    fresh.slot.write_text(json.dumps(cells))
    done = fresh.ctl("project", "list", "-v", status=4)
    assert "cannot be reached" in done.err.splitlines()[-1]


# -- requests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "budget"),
    [
        (("whoami",), 1),
        (("project", "list"), 1),
        (("project", "show", "MYPROJECT"), 4),  # three lists at once beside it, so one round trip
        (("subject", "list", "-P", "MYPROJECT"), 2),
        (("subject", "show", "-P", "MYPROJECT", "SUB001"), 2),
        (("session", "list", "-P", "MYPROJECT"), 1),
        (("session", "show", "-E", SESSION), 4),
        (("scan", "list", "-E", SESSION), 1),
        (("scan", "list", "-E", LABEL, "-P", "MYPROJECT"), 2),
        (("resource", "list", "-E", SESSION), 1),
        (("resource", "list", "-E", LABEL, "-P", "MYPROJECT", "--scan", "1"), 2),
        (("prearchive", "list", "-P", "MYPROJECT"), 1),
    ],
)
def test_round_trips_of_a_command(prompt, words, budget):
    prompt.ctl("whoami")
    asked = prompt.asked(*words)
    assert len(asked) <= budget, asked


# -- output ------------------------------------------------------------------------------------------------------


def test_lists_are_chosen_from_here(prompt):
    base = ("scan", "list", "-E", SESSION)
    assert prompt.ctl(*base, "--filter", "type:T[12]", "-q").lines == ["2", "3"]
    assert prompt.ctl(*base, "--sort-by", "id:desc", "--limit", "2", "-q").lines == ["10", "4-MR2"]
    assert prompt.ctl(*base, "--columns", "type,id", "-o", "tsv", "--limit", "1").lines == ["Type\tID", "T0\t1"]
    assert prompt.ctl(*base, "--no-headers", "-o", "tsv", "--columns", "id").lines == ["1", "2", "3", "4-MR2", "10"]
    rows = [json.loads(line) for line in prompt.ctl(*base, "-o", "jsonl").lines]
    assert rows == prompt.ctl(*base, "-o", "json").rows


def test_options_go_before_or_after_the_verb_and_the_nearest_counts(prompt):
    one = prompt.ctl("-o", "json", "project", "list").rows
    assert prompt.ctl("project", "-o", "table", "list", "-o", "json").rows == one
    assert prompt.ctl("-q", "project", "list", "-o", "json").lines == [row["id"] for row in one]


def test_the_output_format_of_the_profile_file(fresh):
    fresh.config(f"output_format: json\nprofiles:\n  one:\n    url: {fresh.url}\n")
    assert isinstance(fresh.ctl("project", "list").rows, list)
    assert fresh.ctl("project", "list", "-o", "tsv").lines[0].startswith("ID\t")


def test_a_reader_that_has_seen_enough_is_no_error(prompt):
    done = run("sh", "-c", "xnatctl project list | head -n 1", env=prompt.environment())
    assert (done.stdout.split(), done.stderr) == (["ID", "Name", "PI", "Description"], "")


def test_api_sends_once_and_prints_the_body(fresh):
    done = fresh.ctl("api", "GET", "/data/projects?format=csv")
    assert "MYPROJECT" in done.out
    assert fresh.ctl("api", "get", "/data/projects", "--params", "format=csv").out == done.out
    before = len(fresh.app.requests)

    def busy(request: Request) -> Reply | None:
        return Reply(503, b"busy", "text/plain") if request.path == "/data/projects/A/subjects/NEW" else None

    fresh.app.faults.append(busy)
    fresh.ctl("api", "PUT", "/data/projects/A/subjects/NEW", status=4)
    assert [(r.method, r.status) for r in fresh.app.requests[before:] if "NEW" in r.path] == [("PUT", 503)]
    fresh.app.faults.clear()
    assert fresh.ctl("api", "PUT", "/data/projects/A/subjects/NEW").out.startswith("DEMO_S")
    fresh.ctl("api", "DELETE", "/data/projects/A/subjects/NEW?removeFiles=true")
    assert "NEW" not in fresh.ctl("subject", "list", "-P", "A", "-q").lines


def test_a_resource_whose_files_are_not_listed_is_no_empty_one(tmp_path):
    empty = b'{"ResultSet": {"Result": []}}'

    def lists_none(request: Request) -> Reply | None:
        return Reply(200, empty, "application/json") if request.path.endswith("/files") else None

    with shell(tmp_path) as fresh:
        fresh.app.faults.append(lists_none)
        done = fresh.ctl("resource", "show", "-E", SESSION, "--scan", "1", "NIFTI", status=4)
        assert done.out == ""
        assert "files, and lists none" in done.err


def test_rows_without_any_value_are_shown(tmp_path):
    rows = b'{"ResultSet": {"Result": [{"ID": ""}]}}'

    def empty(request: Request) -> Reply | None:
        return Reply(200, rows, "application/json") if request.path.endswith("/scans") else None

    with shell(tmp_path) as fresh:
        fresh.app.faults.append(empty)
        assert "[Scans (1)]" in fresh.ctl("session", "show", "-E", SESSION).lines


def test_profiles_of_which_none_is_the_default_are_listed(fresh):
    fresh.config(PROFILES.format(url=fresh.url))
    rows = fresh.ctl("config", "show", "-o", "json").rows
    assert [(row["profile"], row["default"]) for row in rows] == [("one", False), ("two", False)]


# -- logins ------------------------------------------------------------------------------------------------------


def log_in(shell: Shell, *words: str, password: str = PASSWORD) -> Any:
    return run(*shell.program, "auth", "login", *words, env=shell.environment(), stdin=None, input=password + "\n")


def test_a_password_comes_from_standard_input_and_is_kept_nowhere_here(fresh):
    """Report once that a bare machine has no keyring, and name the alternatives."""
    fresh.config(f"profiles:\n  lab:\n    url: {fresh.url}\n    username: {OWNER}\n")
    for name in ("XNAT_URL", "XNAT_USER", "XNAT_PASS"):
        del fresh.env[name]
    done = log_in(fresh, "--password-stdin")
    assert done.returncode == 0, done.stderr
    assert all(word in done.stderr for word in ("not stored", "--token", "XNAT_PASS"))
    assert fresh.ctl("project", "list").err == ""
    held = [path for path in fresh.home.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert held == []
    fresh.app.sessions.end_all(OWNER)
    done = fresh.ctl("project", "list", status=3)
    assert "auth login" in done.err


def test_a_password_goes_into_the_keyring_where_there_is_one(fresh):
    """Store the password in a file-backed keyring, in the entry that the other program uses."""
    modules = fresh.home / "modules"
    modules.mkdir()
    (modules / "filed.py").write_text(
        "import json, os, pathlib\n"
        "from keyring.backend import KeyringBackend\n"
        "class Filed(KeyringBackend):\n"
        "    priority = 9\n"
        "    path = pathlib.Path(os.environ['HOME'], 'keyring.json')\n"
        "    def _all(self): return json.loads(self.path.read_text()) if self.path.exists() else {}\n"
        "    def get_password(self, service, user): return self._all().get(f'{service}|{user}')\n"
        "    def set_password(self, service, user, password):\n"
        "        self.path.write_text(json.dumps({**self._all(), f'{service}|{user}': password}))\n"
        "    def delete_password(self, service, user): pass\n"
    )
    fresh.config(f"profiles:\n  lab:\n    url: {fresh.url}/\n    username: {OWNER}\n")
    for name in ("XNAT_URL", "XNAT_USER", "XNAT_PASS"):
        del fresh.env[name]
    fresh.env |= {"PYTHONPATH": str(modules), "PYTHON_KEYRING_BACKEND": "filed.Filed"}
    done = log_in(fresh, "--password-stdin")
    assert done.returncode == 0, done.stderr
    assert json.loads((fresh.home / "keyring.json").read_text()) == {f"xnatctl|lab@{fresh.url}/": PASSWORD}
    fresh.app.sessions.end_all(OWNER)
    fresh.ctl("project", "list")
    config = (fresh.home / ".config" / "xnatctl" / "config.yaml").read_text()
    assert "password_source: keyring" in config
    assert PASSWORD not in config


def test_an_alias_token_in_place_of_the_password(fresh):
    assert log_in(fresh, "--password-stdin", "--token").returncode == 0
    del fresh.env["XNAT_USER"], fresh.env["XNAT_PASS"]
    (token,) = (fresh.home / ".config" / "xnatfs" / "tokens").glob("*.json")
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    fresh.app.sessions.end_all(OWNER)
    assert fresh.ctl("whoami", "-q").out == f"{OWNER}\n"  # logged in with the token
    fresh.ctl("auth", "logout")
    assert not token.exists()
    fresh.ctl("project", "list", status=3)


def test_logout_closes_the_session_and_nothing_of_others(fresh):
    fresh.ctl("auth", "login")
    assert fresh.app.sessions.alive(OWNER) == 1
    assert fresh.ctl("auth", "status", "-o", "json").rows["status"] == "authenticated"
    fresh.ctl("auth", "logout")
    assert fresh.app.sessions.alive(OWNER) == 0
    assert not fresh.slot.exists()


def test_a_token_from_the_environment_is_not_kept(fresh):
    token = fresh.app.sessions.log_in(OWNER, None).id
    fresh.env = {"XNAT_URL": fresh.url, "XNAT_TOKEN": token}
    assert fresh.ctl("whoami", "-q").out == f"{OWNER}\n"
    assert fresh.logins() == 0
    assert not fresh.slot.exists()


def test_if_needed_does_nothing_where_a_session_lives(fresh):
    fresh.ctl("auth", "login", "--if-needed")
    fresh.ctl("auth", "login", "--if-needed")
    assert fresh.logins() == 1


# -- profiles ----------------------------------------------------------------------------------------------------

WRITTEN = """\
# our servers
default_profile: lab
profiles:
  lab:   # the one in the cellar
    url: {url}/
    password: hush
    colour: blue
"""


def test_profiles_are_edited_and_nothing_of_them_is_lost(fresh):
    fresh.config(WRITTEN.format(url=fresh.url))
    fresh.ctl("config", "add-profile", "two", "--url", "https://two.example.org", "--default-project", "P2")
    fresh.ctl("config", "use-context", "two")
    text = (fresh.home / ".config" / "xnatctl" / "config.yaml").read_text()
    assert all(
        line in text for line in ("# our servers", "# the one in the cellar", "colour: blue", f"url: {fresh.url}/")
    )
    assert fresh.ctl("config", "current-context").out == "two\n"
    shown = fresh.ctl("config", "show").out + fresh.ctl("config", "show", "-o", "json").out
    assert "hush" not in shown
    assert fresh.url not in text.replace(f"{fresh.url}/", "")  # the environment's server is not written down
    assert stat.S_IMODE((fresh.home / ".config" / "xnatctl" / "config.yaml").stat().st_mode) == 0o600


def test_a_first_profile(fresh):
    assert "--url" in fresh.ctl("config", "init", status=2).err  # the environment's is for now
    fresh.ctl("config", "init", "--url", fresh.url, "-p", "lab", "--timeout", "30")
    (row,) = fresh.ctl("config", "show", "-o", "json", "-p", "lab").rows
    assert (row["profile"], row["timeout"], row["default"]) == ("lab", 30, True)
    assert "lab" in fresh.ctl("config", "show", "-p", "other", status=2).err
    assert "not both" in fresh.ctl("project", "list", "-p", "lab", "--url", fresh.url, status=2).err
    del fresh.env["XNAT_URL"]
    assert fresh.ctl("project", "list", "-q").lines


def test_standard_input_is_not_waited_for(fresh):
    """Prompt for no password and ask no question where there is no terminal."""
    del fresh.env["XNAT_PASS"]
    done = subprocess.run(
        [*fresh.program, "project", "list"],
        env=fresh.environment(),
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert OUTSIDER not in done.stderr
