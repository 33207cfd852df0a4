"""Test `-o`: options of fstab lines and of other mount commands are taken, or refused with a reason, as documented."""

import argparse
import os
import re
from pathlib import Path

import pytest

from tests.support.demos import serving
from tests.support.failing import (
    AS_STRANGER,
    DEAD,
    OPEN_FUSE,
    OWN_MOUNTS,
    STRANGER,
    XNATFS,
    desk,
)
from tests.support.mounting import environment, mounting, run
from xnatfs.cli import options
from xnatfs.cli.host.view_options import view_options
from xnatfs.cli.options import IGNORED_OPTIONS, REFUSED_OPTIONS, SELINUX_OPTIONS
from xnatfs.common.errors import ConfigError
from xnatfs.settings.views import ALL_VIEWS, DEFAULT_VIEWS

PAGE = Path(__file__).parents[2] / "docs" / "MOUNT-OPTIONS.md"
ROW = re.compile(r"^\| (`.*?) \| (taken|refused)(.*) \|$", re.MULTILINE)
TAKEN = {
    name
    for names, verb, _ in ROW.findall(PAGE.read_text())
    if verb == "taken"
    for name in re.findall(r"`(\w+)`", names)
}
NOT_TAKEN = {
    name
    for names, verb, _ in ROW.findall(PAGE.read_text())
    if verb == "refused"
    for name in re.findall(r"`(\w+)`", names)
}
VALUES = {
    "url": "https://xnat.example.org", "profile": "p", "credentials": "/f", "ca_bundle": "/f", "uid": "1", "gid": "1",
    "umask": "022",
    "cache_dir": "/d", "cache_size": "1G", "shared_cache": "/s", "ttl": "60", "timeout": "60", "revalidate": "60",
    "log_level": "debug", "log_file": "/f", "user": "jdoe", "comment": "a", "uhelper": "udisks2", "helper": "x",
    "view": "projects:archive", "projects": "A:B", "scan_types": "T1*", "quality": "usable", "resources": "DICOM",
    "hide": "SNAPSHOTS:secondary", "bids_map": "/f", "bids_quality": "any", "bids_options": "dates:ses=suffix",
    "context": "system_u:object_r:fusefs_t:s0",
}  # fmt: skip


def parsed(*given: str) -> tuple[argparse.Namespace, frozenset[str]]:
    parser = argparse.ArgumentParser()
    options.add_server(parser)
    options.add_mount(parser)
    arguments = parser.parse_args([part for option in given for part in ("-o", option)])
    options.apply_mount_options(arguments)
    return arguments, arguments.kernel_options


def test_the_document_has_every_option_and_no_other():
    parser = argparse.ArgumentParser(add_help=False)
    options.add_server(parser)
    options.add_mount(parser)
    flags = {action.dest for action in parser._actions if action.help is not argparse.SUPPRESS}
    assert flags - {"foreground", "options"} | IGNORED_OPTIONS | SELINUX_OPTIONS | {"exec", "noexec"} == TAKEN
    assert set(REFUSED_OPTIONS) == NOT_TAKEN


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_what_is_taken_is_taken(name):
    text = f"{name}={VALUES[name]}" if name in VALUES else name
    default, _ = parsed()
    arguments, handed = parsed(text)
    changed = {flag for flag, value in vars(arguments).items() if value != getattr(default, flag)}
    of_kernel = name in ("exec", "noexec") or (name in SELINUX_OPTIONS and options.SELINUX_ROOT.exists())
    assert handed == ({text} if of_kernel else set())
    no_flag = of_kernel or name in IGNORED_OPTIONS | SELINUX_OPTIONS
    assert changed - {"options", "kernel_options"} == (set() if no_flag else {name})


@pytest.mark.parametrize("name", sorted({*NOT_TAKEN, "nonsense", "report_fd", "foreground"}))
def test_what_is_refused_is_refused_with_a_reason_in_one_line(name):
    for text in (name, f"{name}=1"):
        with pytest.raises(ConfigError) as caught:
            parsed(f"ttl=5,{text}")
        said = str(caught.value)
        assert said.startswith(f"-o {name}: ")
        assert len(said) > len(f"-o {name}: ") + 8
        assert "\n" not in said


@pytest.mark.parametrize("text", ["projects=A:B*", 'projects="A,B*"', "projects=X,projects=A : B*"])
def test_a_list_is_of_names_with_colons_or_quoted_ones_with_commas(text):
    assert view_options(parsed(text)[0]).projects == ("A", "B*")


def test_a_comma_that_ends_a_list_is_explained():
    with pytest.raises(ConfigError, match="-o B: no such option; a list has colons in -o, as scan-types=A:B"):
        parsed("scan-types=A,B")


def test_views_are_chosen_by_name_and_keep_their_order():
    assert view_options(parsed()[0]).shown == DEFAULT_VIEWS
    assert view_options(parsed("view=archive:projects")[0]).shown == ("projects", "archive")
    assert view_options(parsed("view=all")[0]).shown == ALL_VIEWS
    with pytest.raises(ConfigError, match="'nonsense' is none of projects, "):
        parsed("view=nonsense")


def test_of_two_that_say_the_contrary_the_last_one_counts():
    assert parsed("noexec,exec")[1] == {"exec"}
    assert parsed("user,exec", "noexec")[1] == {"noexec"}


@pytest.mark.parametrize("name", ["uid", "gid"])
def test_an_owner_is_one_that_the_kernel_can_show(name):
    """A larger number made a mount of which every call failed; the largest means no owner at all."""
    assert getattr(parsed(f"{name}={2**32 - 2}")[0], name) == 2**32 - 2
    for number in (2**32 - 1, 2**32, 99_999_999_999):
        with pytest.raises(ConfigError, match=f"-o {name}: .*{number}.* is not a numeric ID of"):
            parsed(f"{name}={number}")


def test_others_and_root_alone_are_not_let_in_both():
    with pytest.raises(ConfigError, match="not both"):
        parsed("allow_other,allow_root")


def test_root_alone_is_let_in_beside_the_user_and_no_other_owner():
    with pytest.raises(ConfigError, match="omit --uid"):
        parsed("allow_root,uid=12")


def test_a_quote_that_is_not_closed_hides_no_option():
    with pytest.raises(ConfigError, match="a quote is not closed"):
        parsed('comment=it"s,strict,umask=027')


def test_labels_are_for_kernels_that_have_them_and_from_root(monkeypatch, tmp_path):
    label = 'context="system_u:object_r:fusefs_t:s0:c1,c2"'
    monkeypatch.setattr(options, "SELINUX_ROOT", tmp_path / "none")
    assert parsed(f"{label},ttl=5")[1] == frozenset()
    monkeypatch.setattr(options, "SELINUX_ROOT", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    arguments, kernel = parsed(f"nofail,{label},ttl=5")
    assert arguments.ttl == 5
    assert kernel == {label}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="only root"):
        parsed(label)


def test_a_refusal_leaves_nothing_behind():
    with desk() as sitting:
        line = sitting.fails(2, "mount", "-o", "auto_unmount", "--url", DEAD, sitting.place)
        assert "-o auto_unmount: " in line


@pytest.mark.fuse
def test_all_that_a_line_of_fstab_holds_is_taken_by_a_real_mount(tmp_path):
    given = sorted(IGNORED_OPTIONS - {"helper", "uhelper"}) + [
        "user=jdoe",
        "x-systemd.automount",
        "X-mount.mkdir=0755",
        "noexec",
    ]
    with serving() as demo, mounting(demo.url, tmp_path, "-o", ",".join(given), **demo.login) as mount:
        shown = run("findmnt", "-n", "-o", "OPTIONS", "--mountpoint", mount.path).stdout.strip().split(",")
        assert {"ro", "nosuid", "nodev", "noexec", "default_permissions"} <= {*shown}
        assert run("ls", mount.path / "projects").returncode == 0


@pytest.mark.fuse
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(("option", "third"), [("allow_root", False), ("allow_other", True)])
def test_who_is_let_in(option, third):
    file = "projects/BRAINS/resources/protocol/protocol.txt"
    with serving() as demo, desk() as sitting:
        sitting.belongs_to_stranger()
        path = sitting.place / file
        stage = f"""
            {OPEN_FUSE}
            echo user_allow_other > /mnt/fuse.conf; mount --bind /mnt/fuse.conf /etc/fuse.conf
            (cat /etc/passwd; echo jane:x:{STRANGER}:{STRANGER}::{sitting.home}:/bin/sh) > /mnt/passwd
            mount --bind /mnt/passwd /etc/passwd
            {AS_STRANGER} {XNATFS} mount -q --url {demo.url} -o {option} {sitting.place} 2> /dev/null
            trap '{AS_STRANGER} {XNATFS} umount {sitting.place}' EXIT
            for user in {STRANGER} 0 {STRANGER + 1}; do
                setpriv --reuid=$user --regid=$user --clear-groups cat {path} 2>&1 || true
            done
        """
        login = {"XNAT_USER": demo.login["user"], "XNAT_PASS": demo.login["password"]}
        done = run(*OWN_MOUNTS, "sh", "-ec", stage, env=environment(sitting.home, **login))
    assert done.returncode == 0, done.stderr
    first, second, last = done.stdout.splitlines()
    assert first == second == "Lie still."
    assert last == ("Lie still." if third else f"cat: {path}: Permission denied")
