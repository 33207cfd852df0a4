"""Run commands by `xnatfs exec`: what they see, what passes through, and that nothing is left of it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_manners import TAKE, Terminal, terminal
from tests.fuse.test_mount import wait_for
from tests.support.demos import Demo
from tests.support.failing import AS_STRANGER, DEAD, OPEN_FUSE, OWN_MOUNTS, desk
from tests.support.mounting import LIMIT, SCRIPTS, daemons, environment, run
from xnatfs.cli.commands import split_exec

pytestmark = pytest.mark.fuse

XNATFS = str(SCRIPTS / "xnatfs")
MOUNTS = Path("/proc/self/mountinfo")


@dataclass
class User:
    """A user of the demo, and the commands that they run by `xnatfs exec`."""

    demo: Demo
    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        login = self.demo.login
        return environment(self.home, XNAT_USER=login["user"], XNAT_PASS=login["password"], **more)

    def words(self, *command: str | Path, options: tuple[str | Path, ...] = ()) -> list[str]:
        return [XNATFS, "exec", self.demo.url, *map(str, options), "--", *map(str, command)]

    def exec(
        self, *command: str | Path, options: tuple[str | Path, ...] = (), **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end, after which nothing may be left."""
        done = run(*self.words(*command, options=options), env=self.environment(), **more)
        self.check()
        return done

    def check(self) -> None:
        """Fail if a process, a mount or more than one directory is left."""
        assert daemons(self.home) == []
        assert str(self.home) not in MOUNTS.read_text()
        assert len(list((self.home / ".cache" / "xnatfs").glob("exec/*"))) <= 1

    @contextmanager
    def running(self, *command: str | Path) -> Iterator["subprocess.Popen[str]"]:
        """Run a command in the background; its output is a pipe."""
        with subprocess.Popen(
            self.words(*command),
            env=self.environment(),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def daemon(self) -> int:
        """Return the process that serves the mount."""
        (found,) = [each for each in daemons(self.home) if "--fuse-fd" in command_line(each)]
        return found


def command_line(process: int) -> list[str]:
    return Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")


def is_gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


@pytest.fixture
def user(demo: Demo, tmp_path: Path) -> User:
    return User(demo, tmp_path)


# -- what the command sees -------------------------------------------------------------------------------------


def test_a_command_reads_the_archive_where_the_variable_says_and_stays_where_it_was(user, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    done = user.exec("sh", "-c", 'pwd; echo "$XNATFS_MOUNT"; ls "$XNATFS_MOUNT/projects"', cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    where, mount, *projects = done.stdout.splitlines()
    assert where == str(here)
    assert mount.startswith(str(user.home / ".cache" / "xnatfs" / "exec"))
    assert "BRAINS" in projects
    assert list(Path(mount).iterdir()) == []


def test_a_command_reads_the_archive_where_it_was_told_to_mount(user, tmp_path):
    place = tmp_path / "a b"
    place.mkdir()
    find = 'test "$XNATFS_MOUNT" = "$(pwd)" && find projects/BRAINS -name "*.nii.gz" | head -n 1 | xargs wc -c'
    done = user.exec("sh", "-c", find, options=("--at", place), cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout.split()[0]) > 0
    assert list(place.iterdir()) == []


def test_the_mount_is_read_only_and_root_gains_nothing(user):
    done = user.exec("sh", "-c", 'touch "$XNATFS_MOUNT/x"')
    assert "Read-only file system" in done.stderr


def test_other_processes_do_not_see_the_mount(user):
    with user.running("sh", "-c", 'echo "$XNATFS_MOUNT"; read line') as process:
        assert process.stdout is not None
        place = Path(process.stdout.readline().strip())
        assert list(place.iterdir()) == []
        assert str(place) not in MOUNTS.read_text()
        process.communicate("\n", timeout=LIMIT)
    user.check()


def test_an_ordinary_user_needs_no_fusermount_and_gets_no_privilege(demo):
    with desk() as sitting:
        sitting.belongs_to_stranger()
        stranger = User(demo, sitting.home)
        say = 'id -u; grep CapEff /proc/self/status; ls "$XNATFS_MOUNT/projects"'
        stage = f'{OPEN_FUSE}; mount --bind /bin/false "$(command -v fusermount3)"; exec {AS_STRANGER} "$@"'
        words = [*OWN_MOUNTS, "sh", "-ec", stage, "sh", *stranger.words("sh", "-c", say)]
        done = run(*words, env=stranger.environment(), cwd=sitting.home)
        assert (done.returncode, done.stderr) == (0, "")
        uid, capabilities, *projects = done.stdout.splitlines()
        if os.geteuid() == 0:
            assert uid == "12345"
            # What the stage has given the stranger, to read the checkout, is lost with the namespace.
            assert capabilities.split()[1] == "0" * 16
        assert "BRAINS" in projects
        stranger.check()


def test_an_exec_in_an_exec_has_a_mount_of_its_own(user):
    inner = user.words("sh", "-c", 'echo "$XNATFS_MOUNT"; ls "$XNATFS_MOUNT/projects" | head -n 1')
    done = run(*user.words("sh", "-c", 'echo "$XNATFS_MOUNT"; "$@"', "sh", *inner), env=user.environment())
    assert (done.returncode, done.stderr) == (0, "")
    outside, inside, project = done.stdout.splitlines()
    assert inside == f"{outside}-1"
    assert project == "BRAINS"
    assert daemons(user.home) == []


# -- what passes through ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -9 $$", 137)]
)
def test_the_exit_status_is_that_of_the_command(user, script, status):
    done = user.exec("sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_input_output_and_descriptors_are_those_of_the_caller(user, tmp_path):
    with open(tmp_path / "extra", "w") as extra:
        done = user.exec(
            "bash", "-c", f"cat; echo err >&2; echo extra >&{extra.fileno()}", input="in\n", pass_fds=[extra.fileno()]
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "in\n", "err\n")
    assert (tmp_path / "extra").read_text() == "extra\n"


def test_a_reader_that_closes_the_pipe_ends_the_command_as_in_a_shell(user):
    done = run("bash", "-c", '"$@" | head -n 1; echo ${PIPESTATUS[0]}', "-", *user.words("yes"), env=user.environment())
    assert done.stdout == "y\n141\n"
    assert done.stderr == ""
    user.check()


@pytest.mark.parametrize("name", ["TERM", "HUP", "INT", "QUIT", "USR1", "USR2"])
def test_a_signal_is_passed_on_once(user, name):
    count = f"n=0; trap 'n=$((n+1)); echo {name} $n' {name}; echo ready; while [ $n = 0 ]; do sleep 0.05; done; exit 9"
    with user.running("sh", "-c", count) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.Signals[f"SIG{name}"])
        out, err = process.communicate(timeout=LIMIT)
        assert (process.returncode, out, err) == (9, f"{name} 1\n", "")
    user.check()


def test_a_caller_that_ignores_its_children_gets_the_status(user):
    done = user.exec("sh", "-c", "exit 7", preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    assert (done.returncode, done.stderr) == (7, "")


def on_terminal(screen: Terminal, user: User, *command: str) -> "subprocess.Popen[bytes]":
    device = screen.device
    return subprocess.Popen(
        [sys.executable, "-c", TAKE, *user.words(*command)],
        env=user.environment(TERM="xterm"),
        start_new_session=True,
        stdin=device,
        stdout=device,
        stderr=device,
    )


def test_ctrl_c_reaches_the_command_once(user):
    # Not one call that waits for input: a signal just before it is handled only when it returns.
    wait = "os.write(1, b'ready\\n')\nwhile not select.select([0], [], [], 0.1)[0]: pass\nsys.exit(5)"
    count = f"import os, select, signal, sys; signal.signal(2, lambda *_: os.write(1, b'caught\\n'))\n{wait}"
    with terminal() as screen, on_terminal(screen, user, sys.executable, "-c", count) as process:
        screen.wait_for("ready\n")
        screen.type(b"\x03")
        screen.wait_for("caught\n")
        screen.type(b"\n")
        assert process.wait(LIMIT) == 5
        assert screen.text.count("caught") == 1
    user.check()


def test_a_job_is_stopped_and_continued(user):
    job = 'set -m; "$@"; echo "status $?"; fg >/dev/null; echo "then $?"'
    with terminal() as screen:
        command = ["bash", "-c", job, "-", *user.words("sh", "-c", "echo ready; read line; exit 4")]
        with subprocess.Popen(
            [sys.executable, "-c", TAKE, "/bin/bash", *command[1:]],
            env=user.environment(TERM="xterm"),
            start_new_session=True,
            stdin=screen.device,
            stdout=screen.device,
            stderr=screen.device,
        ) as process:
            screen.wait_for("ready\n")
            screen.type(b"\x1a")
            screen.wait_for("status 148\n")
            screen.type(b"\n")
            screen.wait_for("then 4\n")
            assert process.wait(LIMIT) == 0
    user.check()


def test_a_command_that_stops_itself_stops_the_job(user):
    job = 'set -m; "$@"; echo "status $?"; fg >/dev/null; echo "then $?"'
    with terminal() as screen:
        words = user.words("sh", "-c", "kill -STOP $$; exit 4")
        with subprocess.Popen(
            [sys.executable, "-c", TAKE, "/bin/bash", "-c", job, "-", *words],
            env=user.environment(TERM="xterm"),
            start_new_session=True,
            stdin=screen.device,
            stdout=screen.device,
            stderr=screen.device,
        ) as process:
            screen.wait_for("then 4\n")
            assert "status 147\n" in screen.text
            assert process.wait(LIMIT) == 0
    user.check()


# -- what is left ----------------------------------------------------------------------------------------------

LOOK_AGAIN = 'ls "$XNATFS_MOUNT/projects" >/dev/null && echo ready; read line; ls "$XNATFS_MOUNT/projects"; exit 3'


def test_a_command_whose_daemon_is_killed_gets_errors_and_its_user_one_line(user):
    with user.running("sh", "-c", LOOK_AGAIN) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(user.daemon(), signal.SIGKILL)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith(f"xnatfs: the mount of {user.demo.url} has ended, and COMMAND gets errors: see /")
        out, err = process.communicate("\n", timeout=LIMIT)
        assert (process.returncode, out) == (3, "")
        assert "not connected" in err
    user.check()


def test_a_command_whose_parent_is_killed_ends_with_its_daemon(user):
    with user.running("sh", "-c", f"echo $$; {LOOK_AGAIN}") as process:
        assert process.stdout is not None
        command = int(process.stdout.readline())
        assert process.stdout.readline() == "ready\n"
        daemon = user.daemon()
        process.kill()
        process.wait(LIMIT)
        assert wait_for(lambda: is_gone(command))
        assert wait_for(lambda: is_gone(daemon))
    user.check()


def test_a_parent_that_is_killed_while_it_mounts_leaves_nothing(user):
    with user.running("true") as process:
        assert wait_for(lambda: len(daemons(user.home)) > 1)
        process.kill()
    assert wait_for(lambda: daemons(user.home) == [])
    user.check()


def test_what_the_command_leaves_in_the_background_loses_the_mount(user, tmp_path):
    log = tmp_path / "late"
    wait = f'until [ -e "{tmp_path}/go" ]; do sleep 0.1; done; ls "$XNATFS_MOUNT/projects"'
    assert user.exec("sh", "-c", f"({wait}) >{log} 2>&1 &").returncode == 0
    (tmp_path / "go").touch()
    assert wait_for(lambda: log.exists() and "not connected" in log.read_text())


def test_twenty_at_once_share_a_cache_and_a_login(user):
    read = 'cat "$(find "$XNATFS_MOUNT/projects/BRAINS" -name "*.nii.gz" | sort | head -n 1)" | md5sum'
    user.demo.forget_requests()
    words = user.words("sh", "-c", read)
    pipe = subprocess.PIPE
    started = [subprocess.Popen(words, env=user.environment(), text=True, stdout=pipe, stderr=pipe) for _ in range(20)]
    ended = [(*process.communicate(timeout=LIMIT), process.returncode) for process in started]
    assert len(set(ended)) == 1
    assert ended[0][1:] == ("", 0)
    logins = [r for r in user.demo.app.requests if r.path.endswith("/JSESSION") and r.method == "POST"]
    assert len(logins) == 1
    user.check()


def test_no_process_shows_the_password(user):
    with user.running("sh", "-c", "echo ready; read line") as process:
        assert process.stdout is not None
        process.stdout.readline()
        daemon = user.daemon()
        shown = [Path(f"/proc/{daemon}/{name}").read_bytes() for name in ("cmdline", "environ")]
        shown.append(Path(f"/proc/{process.pid}/cmdline").read_bytes())
        assert [text for text in shown if user.demo.login["password"].encode() in text] == []
        process.communicate("\n", timeout=LIMIT)


# -- wrong input -----------------------------------------------------------------------------------------------


def test_a_command_that_does_not_exist_is_127_before_anything_is_asked(sitting):
    assert sitting.fails(127, "exec", DEAD, "--", "no-such-command") == "xnatfs: no-such-command: command not found"


@pytest.mark.parametrize(("path", "status", "text"), [("/no/such", 127, "command not found"), ("/tmp", 126, "denied")])
def test_a_path_that_is_no_command_is_found_out_in_the_mount(user, path, status, text):
    done = user.exec(path)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"xnatfs: {path}: ")
    assert text in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("exec",), 2, "which command?"),
        (("exec", DEAD), 2, "which command?"),
        (("exec", DEAD, "ls"), 2, "stands after --"),
        (("exec", "--", "ls"), 2, "which XNAT?"),
        (("exec", DEAD, "--url", DEAD, "--", "ls"), 2, "give one of URL"),
        (("exec", "xnat.example.org", "--", "ls"), 2, "must begin with https://"),
        (("exec", DEAD, "--allow-other", "--", "ls"), 2, "--allow-other"),
        (("exec", "--at", "/no/such", DEAD, "--", "ls"), 66, "/no/such does not exist"),
        (("exec", "--at", "/etc", DEAD, "--", "ls"), 66, "/etc is not empty"),
        (("exec", "--timeout", "0.1", DEAD, "--", "ls"), 4, "cannot be reached"),
    ],
)
def test_wrong_input_is_one_line(sitting, words, status, text):
    assert text in sitting.fails(status, *words)


def test_a_machine_without_namespaces_is_named(sitting):
    forbid = "echo 0 >/proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin"
    stage = ["unshare", "-r", "-U", "sh", "-ec", f'{forbid} "$@"', "sh"]
    done = run(*stage, XNATFS, "exec", DEAD, "--", "ls", env=environment(sitting.home), stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("xnatfs: no mount namespace can be made: ")
    assert "user namespaces" in line


def test_a_command_line_is_split_at_the_first_dashes():
    assert split_exec(["exec", "u", "--", "a", "--", "b"]) == (["exec", "u"], ["a", "--", "b"])
    assert split_exec(["mount", "--", "a"]) == (["mount", "--", "a"], [])
