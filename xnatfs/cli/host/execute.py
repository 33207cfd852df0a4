"""Run the command exec: one command with a mount of its own, which no other process sees.

Three processes: the *command* makes a mount namespace, mounts there, and waits. The *daemon* serves the descriptor of
that mount from outside the namespace. This process waits for both. When it ends, by whatever signal, the kernel ends
the command and the daemon; when the daemon ends, the command gets errors; when the command ends, the daemon is ended.
"""

import argparse
import os
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from xnatfs.cli import daemon, options, serving, statusline, streams
from xnatfs.cli.output import print_message
from xnatfs.common.errors import CacheError, NamespaceError, Reported, UsageError, XnatError
from xnatfs.common.files import make_private
from xnatfs.common.mountinfo import mount_on
from xnatfs.fuse.mount_namespace import end_with_parent, is_abandoned, mount_in_namespace
from xnatfs.fuse.mountpoint import check_device, check_directory
from xnatfs.settings.config import Config, cache_home, server_name
from xnatfs.settings.logins import find_mount_login, mount_login

# Exit status of a command that cannot be started, and of one that does not exist, as shells have them.
CANNOT_RUN, NOT_A_COMMAND = 126, 127
# Signals that are passed on. The terminal sends its own to the command as well, which has the same process group.
PASSED_ON = {signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
# Seconds that the daemon has to write its cache once the command has ended.
DAEMON_STOP_SECONDS = 15.0
# Seconds that a command which ends may outlive its mount: the kernel removes that first.
LAST_GASP_SECONDS = 1.0
# Longest reason that the command's process gives for not mounting, in bytes.
MAX_REASON_BYTES = 4096


def run_exec(arguments: argparse.Namespace) -> int:
    if arguments.words or not (arguments.command_words or arguments.report_fd is not None):
        raise UsageError("which command? It stands after --: xnatfs exec [URL] -- COMMAND")
    if arguments.source and (arguments.url or arguments.profile):
        raise UsageError("give one of URL, --url and --profile")
    arguments.url = arguments.url or arguments.source
    config = options.mount_config(arguments, options.server_config(arguments, os.environ))
    if arguments.report_fd is not None:
        return _serve(arguments, config)
    command = arguments.command_words
    if "/" not in command[0] and shutil.which(command[0]) is None:
        raise Reported(NOT_A_COMMAND, f"{command[0]}: command not found")
    check_device()
    arguments.mountpoint = _free_directory(config) if arguments.at is None else Path(os.path.realpath(arguments.at))
    check_directory(arguments.mountpoint)
    with _Command.waiting(command, arguments.mountpoint, config.url) as waiting:
        found = find_mount_login(config, arguments.credentials, before_asking=serving.import_mount)
        for warning in serving.access_warnings(arguments, config):
            print_message(f"xnatfs: {warning}")
        login = daemon.pack_login(found.credentials, found.token)
        log_file = Path(arguments.log_file or cache_home() / "log" / f"exec-{server_name(config.url)}.log")
        words = [*arguments.command_line, "--at", str(arguments.mountpoint), "--fuse-fd", str(waiting.fuse)]
        with statusline.waiting(f"Mounting {config.url}"):
            server, _ = daemon.launch(words, login, log_file, [waiting.fuse])
        try:
            waiting.close_fuse()
            return waiting.run(server, f"the mount of {config.url} has ended, and COMMAND gets errors: see {log_file}")
        finally:
            _stop(server)


def _serve(arguments: argparse.Namespace, config: Config) -> int:
    """Serve the mount, in the daemon."""
    end_with_parent(signal.SIGTERM)
    credentials, token = daemon.receive_login()
    found = mount_login(config, arguments.credentials, credentials, token)
    if is_abandoned(arguments.report_fd):
        return 1
    arguments.mountpoint = arguments.at
    serving.serve(arguments, config, found, arguments.reporter.ready)
    return 0


def _free_directory(config: Config) -> Path:
    """Return an empty directory of this user that nothing is mounted on in this namespace.

    It is the same one for all commands at a server, each of which has its own mount there, and stays: only an exec in
    an exec needs another one. Raises CacheError.
    """
    number = 0
    while True:
        directory = cache_home() / "exec" / (server_name(config.url) + (f"-{number}" if number else ""))
        if mount_on(Path(os.path.realpath(directory))) is None:
            break
        number += 1
    try:
        make_private(directory)
    except OSError as error:
        raise CacheError(f"cannot make {directory}: {error.strerror}; --at names another directory") from None
    return Path(os.path.realpath(directory))


class _Command:
    """The command, in a process that has mounted and waits until the mount is served."""

    def __init__(self, process: int, fuse: int, go: socket.socket) -> None:
        self._process = process
        self.fuse = fuse
        self._go = go
        self._status: int | None = None

    @classmethod
    @contextmanager
    def waiting(cls, words: list[str], mountpoint: Path, source: str) -> Iterator["_Command"]:
        """Start the process, and end it with the context. Raises NamespaceError if it cannot mount."""
        ours, its = socket.socketpair()
        with ours, its:
            if not (process := os.fork()):
                ours.close()
                _mount_and_run(words, mountpoint, source, its)
            its.close()
            reason, descriptors, _, _ = socket.recv_fds(ours, MAX_REASON_BYTES, 1)
            command = cls(process, descriptors[0] if descriptors else -1, ours)
            try:
                if not descriptors:
                    raise NamespaceError(reason.decode("utf-8", "replace") or "the process that mounts has ended")
                yield command
            finally:
                command._end()

    def close_fuse(self) -> None:
        """Leave the descriptor to the daemon: it ends the mount by ending."""
        if self.fuse >= 0:
            os.close(self.fuse)
            self.fuse = -1

    def run(self, server: "subprocess.Popen[str]", warning: str) -> int:
        """Let the command run, pass signals on to it, and return its exit status."""
        signals = {*PASSED_ON, signal.SIGCHLD}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by a caller, it would lose the exit status
        try:
            self._go.send(b"1")
            self._go.close()
            is_served = True
            while self._wait() is None:
                has_ended = is_served and server.poll() is not None
                received = signal.sigtimedwait(signals, LAST_GASP_SECONDS) if has_ended else signal.sigwaitinfo(signals)
                if received is None:
                    is_served = False
                    streams.report(f"xnatfs: {warning}")
                # What the kernel sends, as for Ctrl-C, goes to the whole process group of the terminal.
                elif received.si_signo != signal.SIGCHLD and received.si_code <= 0:
                    os.kill(self._process, received.si_signo)
        finally:
            while signal.sigtimedwait(signals, 0):
                pass  # the Ctrl-C that has ended the command is not for the rest of this one
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert self._status is not None
        return os.WEXITSTATUS(self._status) if os.WIFEXITED(self._status) else 128 + os.WTERMSIG(self._status)

    def _wait(self) -> int | None:
        """Return the status of the command if it has ended; stop as it does, as shells expect of a job."""
        process, status = os.waitpid(self._process, os.WNOHANG | os.WUNTRACED)
        if process and os.WIFSTOPPED(status):
            os.kill(os.getpid(), signal.SIGSTOP)
            with suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGCONT)
        elif process:
            self._status = status
        return self._status

    def _end(self) -> None:
        self.close_fuse()
        if self._status is None:
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)


def _mount_and_run(words: list[str], mountpoint: Path, source: str, parent: socket.socket) -> NoReturn:
    """Mount, pass the descriptor to the parent, and become the command when the parent allows it."""
    status = CANNOT_RUN
    try:
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)  # as a shell starts it; Python ignores the other two
        try:
            fuse = mount_in_namespace(mountpoint, source)
        except XnatError as error:
            parent.sendall(str(error).encode())
            os._exit(status)
        end_with_parent(signal.SIGKILL)  # not before: a new namespace forgets it
        socket.send_fds(parent, [b"mounted"], [fuse])
        os.close(fuse)
        if parent.recv(1):
            here = os.getcwd()
            if Path(here).is_relative_to(mountpoint):
                os.chdir(here)  # what is mounted there, and not what was there before
            os.environ["XNATFS_MOUNT"] = str(mountpoint)
            os.execvp(words[0], words)
    except FileNotFoundError:
        status = NOT_A_COMMAND
        streams.report(f"xnatfs: {shlex.quote(words[0])}: command not found")
    except OSError as error:
        streams.report(f"xnatfs: {shlex.quote(words[0])}: {error.strerror}")
    finally:
        os._exit(status)


def _stop(server: "subprocess.Popen[str]") -> None:
    """End the daemon, and wait until it has ended."""
    server.terminate()
    try:
        with statusline.waiting("Unmounting"):
            server.wait(DAEMON_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
