"""A made-up XNAT on this machine, to try and to test things on. It needs no network, and holds no real person."""

from xnatfs.demo.content import BIG_PROJECT, PASSWORDS

__all__ = ["BIG_PROJECT", "PASSWORDS"]
