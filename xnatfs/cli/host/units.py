"""Run the command install-unit: write a systemd service that mounts at the login of a user, or at the boot."""

import argparse
import os
import re
from pathlib import Path

from xnatfs.cli import options
from xnatfs.common import program
from xnatfs.common.errors import ConfigError, Conflict

# The first line of each unit: a file without it is another's, and not replaced.
MARK = "# Written by xnatfs install-unit, which replaces it."
SYSTEM_DIRECTORY = Path("/etc/systemd/system")
# Exit statuses after which another attempt fails in the same way, or locks the account.
FINAL_STATUSES = "2 3 66 69"


def run_install_unit(arguments: argparse.Namespace) -> int:
    is_system = arguments.system or (os.geteuid() == 0 and not arguments.user)
    unit = _unit(arguments, is_system)
    if arguments.print:
        print(unit, end="")
        return 0
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    directory = SYSTEM_DIRECTORY if is_system else home / "systemd" / "user"
    path = directory / f"{unit_name(_place(arguments))}.service"
    if path.exists() and not path.read_text(errors="replace").startswith(MARK):
        raise Conflict(f"{path} was written by another program: remove it first, or use --print")
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(unit)
    systemctl = "systemctl" if is_system else "systemctl --user"
    print(f"wrote {path}; start it with: {systemctl} daemon-reload && {systemctl} enable --now {path.name}")
    return 0


def unit_name(mountpoint: Path) -> str:
    """Return the name of a service, as `systemd-escape --path` has the path."""
    text = str(mountpoint).strip("/")

    def escaped(match: "re.Match[bytes]") -> bytes:
        return b"-" if match[0] == b"/" else f"\\x{match[0][0]:02x}".encode()

    return "xnatfs-" + re.sub(rb"^\.|[^A-Za-z0-9:_.]", escaped, os.fsencode(text)).decode() if text else "xnatfs--"


def _place(arguments: argparse.Namespace) -> Path:
    return Path(os.path.abspath(arguments.mountpoint))


def _unit(arguments: argparse.Namespace, is_system: bool) -> str:
    """Return the text of the unit. Raises ConfigError if the mount would not find its server or its login."""
    options.apply_mount_options(arguments)
    config = options.server_config(arguments, os.environ)
    if is_system and not arguments.credentials and not config.profile.name:
        raise ConfigError("a service of the system needs a login: give --credentials FILE, or a profile of root")
    words = [*program.find("xnatfs"), "mount", "--foreground", "--mkdir", "--lazy", *_options(arguments, config.url)]
    place = _place(arguments)
    network = "\nWants=network-online.target\nAfter=network-online.target" if is_system else ""
    start = " ".join(map(quoted, [*words, str(place)]))
    return f"""{MARK}
[Unit]
Description=XNAT server {_plain(config.url)} on {_plain(str(place))}
Documentation=man:xnatfs-mount(1){network}

[Service]
Type=notify
ExecStart={start}
ExecReload=/bin/kill -HUP $MAINPID
ExecStopPost=-/usr/bin/env fusermount3 -q -u -z {quoted(str(place))}
Restart=on-failure
RestartSec=10
RestartPreventExitStatus={FINAL_STATUSES}

[Install]
WantedBy={"multi-user.target" if is_system else "default.target"}
"""


def _options(arguments: argparse.Namespace, url: str) -> list[str]:
    """Return the options for the server and the mount, in full, since the service has another environment."""
    given = ["--profile", arguments.profile] if arguments.profile and not arguments.url else ["--url", url]
    parser = argparse.ArgumentParser(add_help=False)
    options.add_server(parser)
    options.add_mount(parser)
    for action in parser._actions:
        value = getattr(arguments, action.dest)
        if value == action.default or action.dest in ("url", "profile", "foreground", "mkdir", "lazy", "options"):
            continue
        flag = action.option_strings[-1]
        value = f"{value:03o}" if action.dest == "umask" else value
        given += [flag] if value is True else [flag, os.path.abspath(value) if isinstance(value, Path) else str(value)]
    return given + [word for text in sorted(arguments.kernel_options) for word in ("-o", text)]


def quoted(word: str) -> str:
    """Quote a word for a command line of a unit: systemd.service(5)."""
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    text = _plain(text).replace("$", "$$")
    return text if re.fullmatch(r"[\w./:@%$=,+-]+", text) else f'"{text}"'


def _plain(text: str) -> str:
    return text.replace("%", "%%")
