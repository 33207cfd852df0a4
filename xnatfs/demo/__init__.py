"""A demo XNAT server on this machine, for trying xnatfs and for tests.

It needs no network, and its data belong to no real person.
"""

from xnatfs.demo.fixtures.lab import BIG_PROJECT, OUTSIDER, PASSWORDS

__all__ = ["BIG_PROJECT", "OUTSIDER", "PASSWORDS", "login_hint"]


def login_hint(xnatctl: str, url: str, user: str) -> str:
    """Return a shell command that logs in.

    The shell's built-in `echo` passes the password, so that it appears in no process's arguments.

    Args:
        xnatctl: The command for xnatctl.
        url: The URL of the demo server.
        user: One of the demo's users.
    """
    return f"echo {PASSWORDS[user]} | {xnatctl} auth login --url {url} --username {user} --password-stdin"
