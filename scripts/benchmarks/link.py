"""Make a link of known rate, shared by all connections: the kernel's traffic control on two virtual interfaces."""

import contextlib
import ipaddress
import itertools
import os
import subprocess
from collections.abc import Iterator

# The address inside is of the block for benchmarking networks (RFC 2544), which no host has.
BLOCK = int(ipaddress.ip_address("198.18.0.0"))
# The addresses of the nodes' links, four for each: 10.0.0.0/8 is for private networks. Only namespaces have them.
NODES_BLOCK = int(ipaddress.ip_address("10.18.0.0"))
RATE = ["tbf", "rate", "1gbit", "burst", "256k", "latency", "50ms"]

_serial = itertools.count()


@contextlib.contextmanager
def paced_link() -> Iterator[tuple[list[str], str]]:
    """Create a link to a network namespace, paced in the direction of the clients, until the context ends.

    Yields the words that start a command inside the namespace, and the address inside. Names and addresses depend on
    the process ID, so that two rigs do not collide.
    """
    name = f"bench{os.getpid()}"
    near = f"bench{os.getpid()}-{next(_serial)}"  # the kernel removes the last one some time after its namespace
    far = ["ip", "-n", name]
    block = BLOCK + 4 * (os.getpid() % 2**15)
    here, there = ipaddress.ip_address(block + 1), ipaddress.ip_address(block + 2)
    # The bucket holds 2 ms; the queue in front of it 50 ms, as a switch's does.
    steps = [
        ["ip", "netns", "add", name],
        ["ip", "link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", name],
        ["ip", "addr", "add", f"{here}/30", "dev", near],
        ["ip", "link", "set", near, "up"],
        [*far, "addr", "add", f"{there}/30", "dev", "eth0"],
        [*far, "link", "set", "eth0", "up"],
        [*far, "link", "set", "lo", "up"],
        ["tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", *RATE],
    ]
    with _namespace(name, steps):
        yield [*ENTER, name], str(there)


@contextlib.contextmanager
def node(number: int, server: str) -> Iterator[list[str]]:
    """Create a network namespace with a paced link of its own to that of `paced_link`, until the context ends.

    Args:
        number: The node's, from 0.
        server: The address inside the namespace of `paced_link`.

    Yields the words that start a command inside the namespace.
    """
    servers = f"bench{os.getpid()}"
    name = f"{servers}-{number}"
    here, there = (str(ipaddress.ip_address(NODES_BLOCK + 4 * number + place)) for place in (1, 2))
    steps = [
        ["ip", "netns", "add", name],
        ["ip", "-n", servers, "link", "add", f"node{number}", "type", "veth", "peer", "name", "eth0", "netns", name],
        ["ip", "-n", servers, "addr", "add", f"{there}/30", "dev", f"node{number}"],
        ["ip", "-n", servers, "link", "set", f"node{number}", "up"],
        ["tc", "-n", servers, "qdisc", "add", "dev", f"node{number}", "root", *RATE],
        ["ip", "-n", name, "addr", "add", f"{here}/30", "dev", "eth0"],
        ["ip", "-n", name, "link", "set", "eth0", "up"],
        ["ip", "-n", name, "link", "set", "lo", "up"],
        ["ip", "-n", name, "route", "add", server, "via", there],
    ]
    with _namespace(name, steps):
        yield [*ENTER, name]


ENTER = ("ip", "netns", "exec")


@contextlib.contextmanager
def _namespace(name: str, steps: list[list[str]]) -> Iterator[None]:
    """Make a network namespace by these commands, and remove it with its links at the end of the context."""
    try:
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"bench: no paced link ({done.stderr.strip()}): it needs root and Debian's iproute2")
        yield
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
