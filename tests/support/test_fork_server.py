"""Test that a forked command is what a started one is."""

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.mounting import SCRIPTS, environment, run


@pytest.mark.parametrize(
    "words",
    [
        ("xnatctl", "--version"),
        ("xnatctl", "config", "list", "-o", "json"),
        ("xnatctl", "project", "list", "--nonsense"),
        ("xnatctl", "project", "list", "--url", "http://127.0.0.1:1"),
        ("xnatctl", "config", "show", "\udcff"),
        ("xnatctl", "auth", "login", "--password-stdin", "--url", "http://127.0.0.1:1"),
        ("xnatfs", "umount", "here"),
        ("xnatfs", "status", "nowhere"),
    ],
    ids=" ".join,
)
def test_status_output_and_errors_are_those_of_a_started_program(tmp_path, words):
    (tmp_path / "here").mkdir()
    env = environment(tmp_path, XNAT_PASS="x", TZ="Asia/Tokyo")
    command = [str(SCRIPTS / words[0]), *words[1:]]
    options = {"env": env, "cwd": tmp_path, "stdin": None, "input": "word\n"}
    forked = run(*command, **options)
    started = run(*command, **options, umask=0o22)  # an option that takes a process of its own
    assert (forked.args, forked.returncode, forked.stdout, forked.stderr) == (
        started.args,
        started.returncode,
        started.stdout,
        started.stderr,
    )


def test_commands_of_several_threads_get_their_own_answers(tmp_path):
    env = environment(tmp_path)
    asked = [("--version",), ("config", "list"), ("nonsense",)] * 5
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda words: run(SCRIPTS / "xnatctl", *words, env=env, cwd=tmp_path), asked))
    assert [done.args[1:] for done in found] == [list(words) for words in asked]
    assert [done.returncode for done in found] == [0, 0, 2] * 5
    assert len({done.stdout for done in found[::3]}) == 1


def test_a_command_that_takes_too_long_is_killed(tmp_path):
    with pytest.raises(subprocess.TimeoutExpired):
        run(SCRIPTS / "xnatctl", "--version", env=environment(tmp_path), timeout=0.0)
    assert run(SCRIPTS / "xnatctl", "--version", env=environment(tmp_path)).returncode == 0
