"""Test the life of a portal: threads, fork and spawn, the end of the interpreter, Ctrl-C, a lost session."""

import os
import signal
import sys
import threading
import time

import pytest

import xnatfs
from tests.api.conftest import BIG, DICOM, NIFTI
from tests.support.mounting import environment, run
from xnatfs.api.endpoint import endpoint_of
from xnatfs.api.portal import Portal, get_portal
from xnatfs.demo.server.reply import Reply

READ = """
import hashlib, multiprocessing, os, sys, threading
import xnatfs

def md5(path, url=sys.argv[1]):
    with xnatfs.open(url) as server:
        return hashlib.md5(server.read(path)).hexdigest()
"""
# Serves the first piece of each file only, and then keeps the connection until the test ends.
STALL_SECONDS = 30.0


@pytest.fixture
def stalled(user):
    """Have the big file's bytes wait until the test is over."""
    over = threading.Event()

    def wait(request: object) -> Reply | None:
        if "functional.nii" in request.path:  # type: ignore[attr-defined]
            over.wait(STALL_SECONDS)
        return None

    user.demo.app.faults.append(wait)
    yield over
    over.set()
    user.demo.app.faults.clear()


def test_a_process_has_one_portal_whatever_the_number_of_threads(user):
    before = _portals(user)
    with xnatfs.open(user.demo.url) as server:
        threads = [threading.Thread(target=server.read, args=(NIFTI,)) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert _portals(user) == before + 1
    assert _portals(user) == before


def test_the_settings_of_a_process_are_its_own(user):
    """Compare what a library could change in a program: before it is imported, while a server is open, and after."""
    done = user.python(
        f"""
import gc, json, locale, logging, os, pathlib, resource, signal, sys, threading, warnings
import httpcore, httpx

def settings():
    return {{
        "collector": (gc.isenabled(), gc.get_threshold(), len(gc.callbacks), gc.get_freeze_count()),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "masked signals": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "umask": [line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if "Umask" in line],
        "hooks": (sys.unraisablehook, sys.excepthook, threading.excepthook),
        "logging": (logging.root.level, len(logging.root.handlers), logging.getLogger("httpx").level),
        "limits": [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")],
        "environment": (dict(os.environ), os.getcwd(), locale.setlocale(locale.LC_ALL), list(warnings.filters)),
        "httpx": httpcore.AsyncHTTP11Connection.READ_NUM_BYTES,
    }}

def changed():
    return [name for name, value in settings().items() if value != own[name]]

own = settings()
import xnatfs
with xnatfs.open(sys.argv[1]) as server:
    server.read({BIG!r})
    gc.collect()
    print(json.dumps(changed()))
print(json.dumps(changed()))
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n[]\n", "")


def _portals(user):
    return [thread.name for thread in threading.enumerate()].count(f"xnatfs {user.demo.url}")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_child_processes_read_by_themselves_with_the_same_login(user, tmp_path, method):
    program = tmp_path / "program.py"
    program.write_text(
        READ
        + f"""
if __name__ == "__main__":
    before = md5({NIFTI!r})
    with multiprocessing.get_context({method!r}).Pool(1) as pool:
        print(before, *pool.map(md5, [{NIFTI!r}] * 2))
"""
    )
    done = run(sys.executable, program, user.demo.url, env=environment(user.home, **user.login), timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [user.content(NIFTI)] * 3
    assert user.logins() == 1
    assert len(user.bodies()) == 1


def test_a_forked_child_continues_with_a_file_that_its_parent_reads_and_harms_it_not(user):
    done = user.python(
        READ
        + f"""
import gc
server = xnatfs.open(sys.argv[1])
file, other = server.open({BIG!r}), server.open({NIFTI!r})
head = file.read(100)
child = os.fork()
if not child:
    gc.collect()
    same = hashlib.md5(head + file.read()).hexdigest() == {user.content(BIG)!r}
    same = same and hashlib.md5(other.read()).hexdigest() == {user.content(NIFTI)!r}
    file.close()
    sys.exit(0 if same else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
print(hashlib.md5(head + file.read()).hexdigest())
print(hashlib.md5(other.read()).hexdigest())
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["0", user.content(BIG), user.content(NIFTI)]
    assert user.logins() == 1


END = """
import contextlib, threading, time

def read():
    with contextlib.suppress(ValueError):  # it is closed meanwhile
        xnatfs.open(sys.argv[1]).read(sys.argv[2])

threading.Thread(target=read, daemon=True).start()
files = xnatfs.open(sys.argv[1]).list(sys.argv[3])
while "begun" not in os.listdir(sys.argv[4]):
    time.sleep(0.01)
print(time.time(), flush=True)
"""


def test_the_interpreter_ends_at_once_while_downloads_are_under_way(user, stalled, tmp_path):
    begun = tmp_path / "begun"
    user.demo.app.faults.insert(0, lambda request: begun.touch() if "functional.nii" in request.path else None)
    done = user.python(READ + END, BIG, DICOM, str(tmp_path))
    ended = time.time()
    assert (done.returncode, done.stderr) == (0, "")
    assert ended - float(done.stdout) < STALL_SECONDS / 2, "it has waited for the download"


def test_ctrl_c_ends_a_call_and_the_connection_goes_on(user, stalled):
    with xnatfs.open(user.demo.url) as server:
        main = threading.get_ident()

        def interrupt() -> None:
            while not user.demo.app.faults:
                time.sleep(0.01)
            time.sleep(0.3)
            signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            server.read(BIG)
        thread.join()
        assert server.read(NIFTI)


def test_a_session_that_the_server_ends_costs_one_login_for_all_threads(user):
    with xnatfs.open(user.demo.url) as server:
        paths = [entry.path for entry in server.list(DICOM)]
        user.demo.app.sessions.end_all()
        threads = [threading.Thread(target=server.read, args=(path,)) for path in paths[:8]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert user.logins() == 2


def test_a_failed_start_is_tried_again_at_the_next_open(user, monkeypatch):
    monkeypatch.setenv("XNAT_PASS", "wrong")
    with pytest.raises(xnatfs.LoginRequired):
        xnatfs.open(user.demo.url)
    monkeypatch.setenv("XNAT_PASS", user.login["XNAT_PASS"])
    with xnatfs.open(user.demo.url) as server:
        assert server.exists(NIFTI)


def test_a_portal_that_is_closed_while_it_opens_fails_its_users(user):
    user.demo.app.faults.append(lambda request: time.sleep(0.5))
    try:
        made = Portal(endpoint_of(user.demo.url, {}))
        made.close(5.0)
        with pytest.raises(ValueError, match="is closed"):
            made.wait_until_open()
        assert not made.post(os.getpid)
    finally:
        user.demo.app.faults.clear()


def test_an_exception_of_any_signal_handler_ends_the_call_in_the_portal(user, stalled):
    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with xnatfs.open(user.demo.url) as server:
            portal = get_portal(server._endpoint)
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(Alarm):
                server.read(BIG)
            for _ in range(500):
                if not portal._nursery.child_tasks:
                    break
                time.sleep(0.01)
            assert not portal._nursery.child_tasks
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_portal_that_ends_is_not_given_to_the_next_user(user, monkeypatch):
    """Release and get at the same moment: the one that is closing is found no more."""
    close = Portal.close

    def open_meanwhile(portal: Portal, seconds: float) -> None:
        monkeypatch.setattr(Portal, "close", close)
        others.append(xnatfs.open(user.demo.url))
        close(portal, seconds)

    others: list[xnatfs.Server] = []
    before = _portals(user)
    first = xnatfs.open(user.demo.url)
    monkeypatch.setattr(Portal, "close", open_meanwhile)
    first.close()
    with others[0] as server:
        assert server._portal is get_portal(server._endpoint)
        assert not server._portal.is_closed
        assert server.exists(NIFTI)
    assert _portals(user) == before


TESTS = f"""
import hashlib, os
import fsspec, pytest, xnatfs

@pytest.mark.parametrize("number", range(8))
def test_read(number):
    fs, path = fsspec.url_to_fs(os.environ["SERIES"])
    name = fs.ls(path, detail=False)[number]
    assert hashlib.md5(fs.cat_file(name)).hexdigest() == fs.info(name)["digest"]
    with xnatfs.open(fs.url) as server:
        assert server.list({DICOM!r})
"""


def test_processes_of_a_test_run_share_a_login_and_end(user, tmp_path):
    (tmp_path / "test_series.py").write_text(TESTS)
    env = environment(user.home, **user.login, SERIES=user.url(DICOM))
    words = ["-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "--basetemp=temporary", "test_series.py"]
    done = run(sys.executable, *words, cwd=tmp_path, env=env, timeout=60)
    assert done.returncode == 0, done.stdout
    assert "8 passed" in done.stdout
    assert user.logins() == 1
    assert len(user.bodies()) == len(set(user.bodies()))
