"""A link of known rate, shared by all connections: the kernel's traffic control on a pair of virtual interfaces."""

import contextlib
import ipaddress
import os
import subprocess
from collections.abc import Iterator


@contextlib.contextmanager
def paced_link(rate: str = "1gbit") -> Iterator[tuple[list[str], str]]:
    """Create a link to a network namespace, paced in the direction of the clients, until the context ends.

    Yields the words that start a command inside the namespace, and the address inside. The address is of the block for
    benchmarking networks (RFC 2544), which no host has, and depends on the process ID, so that two rigs do not collide.
    """
    name = near = f"bench{os.getpid()}"
    far = ["ip", "-n", name]
    block = int(ipaddress.ip_address("198.18.0.0")) + 4 * (os.getpid() % 2**15)
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
        ["tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "256k", "latency",
         "50ms"],
    ]  # fmt: skip
    try:
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"bench: no paced link ({done.stderr.strip()}): it needs root and Debian's iproute2")
        yield ["ip", "netns", "exec", name], str(there)
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
