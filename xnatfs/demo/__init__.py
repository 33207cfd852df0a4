"""A made-up XNAT on this machine, to try and to test things on. It needs no network, and holds no real person."""

from xnatfs.demo.fixtures.lab import BIG_PROJECT, OUTSIDER, PASSWORDS

__all__ = ["BIG_PROJECT", "OUTSIDER", "PASSWORDS", "login_hint"]


def login_hint(xnatctl: str, url: str, user: str) -> str:
    """Return a line for a shell that logs in; echo is built into shells, so that the password is in no argv."""
    return f"echo {PASSWORDS[user]} | {xnatctl} auth login --url {url} --username {user} --password-stdin"
