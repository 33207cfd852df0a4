"""Report the state of this process to systemd, or to another program that started it so: sd_notify(3)."""

import os
import socket
from contextlib import suppress


def notify(*states: str) -> None:
    """Send states such as READY=1 to the socket that NOTIFY_SOCKET names; without it, or if that fails, do nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # A leading @ stands for the null byte of an abstract address: unix(7).
    where = os.fsencode(f"\0{address[1:]}" if address.startswith("@") else address)
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto("\n".join(state.replace("\n", " ") for state in states).encode(), where)
