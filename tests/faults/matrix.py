"""State the outcome of each fault in each operation, with digests and without. Data only.

`tests/promises/test_fault_matrix.py` tests every cell; `docs/dev/RELIABILITY.md` shows them (`tests/faults/page.py`).
"""

import re
from dataclasses import dataclass, field
from typing import Any

OPERATIONS = {
    "list": "list",
    "small": "small read",
    "big": "big read",
    "seek": "seek",
    "unranged": "seek, no ranges",
    "tar": "whole series",
    "login": "login",
    "upload": "upload",
    "archive": "archive",
}

# The request of an operation that meets the fault.
MATCH = {
    "list": r"GET .*format=json",
    "small": r"GET .*/files/small\.bin",
    "big": r"GET .*/files/big\.bin",
    "seek": r"GET .*/files/big\.bin",
    "unranged": r"GET .*/files/big\.bin",
    "tar": r"GET .*format=tar",
    "login": r"(GET|POST) .*/data/JSESSION",
    "upload": r"PUT .*/files/",
    "archive": r"POST .*/services/archive",
}

# The middle of the reply, in bytes: of a list, a file, a range of one, a reply to a change.
HALF = "middle"
MIDDLE = {
    "list": 60,
    "small": 50_000,
    "big": 500_000,  # in the first range
    "seek": 30_000,
    "unranged": 5_000_000,
    "tar": 100_000,
    "login": 10,
    "upload": 10,
    "archive": 10,
}

OUTCOMES = {
    "right": "right: the fault does no harm, or the client finds out its effect by a request",
    "again": "right, after a retry",
    "otherwise": "right, by single files instead of a tar",
    "EIO": "`EIO`: the reply is not what was requested, or an error of the server",
    "ETIMEDOUT": "`ETIMEDOUT`: the server was silent for `--timeout`",
    "EHOSTUNREACH": "`EHOSTUNREACH`: the server is unreachable",
    "EACCES": "`EACCES`: the account has no permission",
    "ENOENT": "`ENOENT`: the server reports no such item",
    "ESTALE": "`ESTALE`: the file has changed on the server",
    "as sent": "the bytes as the server sent them, of the length that it stated twice: only a digest could show that "
    "they are wrong",
    "late EIO": "`EIO` before the end of the file: a big file is served while it arrives, and its digest is known only "
    "at the end; with `--strict` `EIO` before its first byte",
    "exit 1": "`xnatctl` ends with 1: conflict with existing data",
    "exit 3": "`xnatctl` ends with 3: no login",
    "exit 4": "`xnatctl` ends with 4: no reply, or none of an XNAT; running the command again completes its work",
    "exit 5": "`xnatctl` ends with 5: not found",
    "exit 6": "`xnatctl` ends with 6: not allowed",
}

# Why a fault does not arise.
REASONS = {
    "-range": "it requests no range",
    "-body": "the body of its reply holds nothing that could be missing",
    "-sent": "it sends next to no body",
    "-json": "its reply is no list",
    "-login": "there is no session yet",
    "-clock": "it uses a monotonic clock",
    "-resume": "it is not resumed, but started again, or not at all",
    "-same": "it sends no HEAD: as two rows above",
}


@dataclass(frozen=True)
class Row:
    """A fault. The cells are the outcomes, by OPERATIONS; those that begin with '-' are REASONS."""

    key: str
    title: str
    cells: dict[str, str]
    undigested: dict[str, str]  # the same at a server that computes no digests, and states lengths
    step: dict[str, Any] = field(default_factory=dict)
    stage: str = ""  # what is done besides, or instead of a step: see the test
    lasting: float = 0.0  # the timeout, in seconds, where it ends with that only


def row(key: str, title: str, cells: str, stage: str = "", *, undigested: str = "", **step: Any) -> Row:
    """Make a row of its cells, in the order of OPERATIONS, and of those `undigested` that differ: OPERATION=CELL."""
    found = dict(zip(OPERATIONS, (_spaced(cell) for cell in cells.split()), strict=True))
    others = dict(cell.split("=") for cell in undigested.split())
    lasting = step.pop("lasting", 0.0)
    if stage in ("", "unranged", "load", "agreed") and "fault" not in step:
        step["fault"] = key
    without = {each: _spaced(others.get(each, cell)) for each, cell in found.items()}
    return Row(key, title, found, without, step, stage, lasting)


def _spaced(cell: str) -> str:
    return re.sub(r"\b(exit|late|as)(?=\w)", r"\1 ", cell)


# The timeout of a cell whose fault lasts, in seconds.
SHORT = 0.4
# The same where each retry gets a reply: the last one begins with a quarter of a second left, and its reply counts.
TRIED = 1.0

# fmt: off
ROWS = [
    # -- no connection
    row("refused", "connection refused",
        "EHOSTUNREACH EHOSTUNREACH EHOSTUNREACH EHOSTUNREACH EHOSTUNREACH EHOSTUNREACH exit4 exit4 exit4",
        "stopped", lasting=SHORT),
    row("refused-once", "connection refused for a moment",
        "right right right right right right exit4 right right", "paused"),
    row("dns", "host name not found (DNS)",
        "EHOSTUNREACH EHOSTUNREACH EHOSTUNREACH EHOSTUNREACH EHOSTUNREACH EHOSTUNREACH exit4 exit4 exit4",
        "dns", lasting=SHORT),
    row("tls", "expired certificate (TLS)",
        "EHOSTUNREACH EHOSTUNREACH EHOSTUNREACH EHOSTUNREACH EHOSTUNREACH EHOSTUNREACH exit4 exit4 exit4",
        "tls", lasting=SHORT),
    row("restart", "server restarted, its sessions lost",
        "again again again again again again exit4 exit4 exit4", seconds=0.2, times=1),
    # -- connections that break
    row("reset-once", "connection reset before a reply, once",
        "again again again again again again exit4 exit4 right", fault="reset", after=-1, times=1),
    row("reset", "the same, each time",
        "EIO EIO EIO EIO EIO otherwise exit4 exit4 right", fault="reset", after=-1, lasting=TRIED),
    row("reset-half-once", "connection reset in the middle of a reply, once",
        "again again again again again otherwise exit4 -body right", fault="reset", after=HALF, times=1),
    row("reset-half", "the same, each time",
        "EIO again again again EIO/ETIMEDOUT otherwise exit4 -body right", fault="reset", after=HALF, lasting=3.0),
    row("upload-reset", "connection reset in the middle of a request body",
        "-sent -sent -sent -sent -sent -sent -sent exit4 -sent", fault="reset", received=100_000),
    row("upload-stall", "server stops reading the request body",
        "-sent -sent -sent -sent -sent -sent -sent exit4 -sent", fault="stall", received=100_000, lasting=SHORT),
    row("stall", "no reply",
        "ETIMEDOUT ETIMEDOUT ETIMEDOUT ETIMEDOUT ETIMEDOUT otherwise exit4 exit4 right",
        fault="stall", after=-1, lasting=SHORT),
    row("stall-half", "reply stalls in the middle",
        "ETIMEDOUT ETIMEDOUT ETIMEDOUT ETIMEDOUT ETIMEDOUT otherwise exit4 -body right",
        fault="stall", after=HALF, lasting=SHORT),
    row("slow", "slow reply",
        "right right right right right right right right right", seconds=0.2),
    row("drip", "reply drips, and takes longer than the timeout in total",
        "right right right right right right exit4 -body right", after=HALF, rate=0, lasting=1.0),
    row("trickle", "reply drips slower than 1 KB/s",
        "ETIMEDOUT ETIMEDOUT ETIMEDOUT ETIMEDOUT ETIMEDOUT otherwise exit4 -body right",
        fault="drip", after=HALF, rate=40, lasting=SHORT),
    row("cut-once", "connection closed in the middle of a reply with Content-Length, once",
        "again again again again again otherwise exit4 -body right", fault="cut", after=HALF, times=1),
    row("cut", "the same, each time",
        "EIO again again again EIO/ETIMEDOUT otherwise exit4 -body right", after=HALF, lasting=3.0),
    row("cut-chunked", "the same, of a chunked reply",
        "EIO EIO right again EIO otherwise exit4 -body right", after=HALF, lasting=3.0),
    row("cut-unframed", "reply without a length ends in the middle",
        "EIO EIO right again EIO otherwise right -body right", after=HALF),
    row("short-length", "shorter reply, with its Content-Length; HEAD agrees with the listing",
        "EIO EIO EIO again EIO otherwise right -body right", after=HALF),
    row("short-chunked", "shorter chunked reply, properly terminated",
        "EIO EIO right again EIO otherwise right -body right", after=HALF),
    row("unframed", "complete reply without a length, ended by the connection",
        "right right right right right right right right right"),
    row("rechunked", "the same, chunked",
        "right right right right right right right right right"),
    row("endless", "endless reply",
        "EIO EIO EIO right EIO right exit3 right right", rate=2_000_000),
    # -- other answers
    row("html", "a web page with status 200",
        "EIO EIO EIO EIO EIO otherwise exit3 exit4 exit4"),
    row("login-page", "the login page with status 200",
        "EIO EIO EIO EIO EIO otherwise exit3 exit4 exit4"),
    row("redirect", "a redirect (302) to the login page",
        "EIO EIO EIO EIO EIO otherwise exit3 exit4 exit4"),
    row("401-once", "401, once",
        "again again again again again again exit3 again again", fault="status", status=401, times=1),
    row("401", "401, each time",
        "EACCES EACCES EACCES EACCES EACCES otherwise exit3 exit3 exit3", fault="status", status=401),
    row("401-load", "401 under load, once: while another request is under way",
        "again again again again again again exit3 again again", "load",
        fault="status", status=401, in_flight=1, times=1),
    row("guest", "sessions lost on a site that is open to guests",
        "again again again again again right -login right again", "guest"),
    row("403", "403",
        "EACCES EACCES EACCES EACCES EACCES otherwise exit3 exit6 exit6", fault="status", status=403),
    row("404", "404 for a listed item",
        "ENOENT EIO EIO ESTALE EIO otherwise exit3 exit5 exit4", fault="status", status=404),
    row("409", "409",
        "EIO EIO EIO EIO EIO otherwise exit3 exit1 exit1", fault="status", status=409),
    row("429-once", "429 with Retry-After, once",
        "again again again again again otherwise exit4 again again",
        fault="status", status=429, retry_after=1, times=1),
    row("429", "429 with Retry-After, each time",
        "EIO EIO EIO EIO EIO otherwise exit4 exit4 exit4", fault="status", status=429, retry_after=1, lasting=SHORT),
    row("503-once", "503 with Retry-After, once",
        "again again again again again otherwise exit4 again again",
        fault="status", status=503, retry_after=1, times=1),
    row("503", "503, each time",
        "EIO EIO EIO EIO EIO otherwise exit4 exit4 exit4", fault="status", status=503, lasting=TRIED),
    row("500-once", "500, once",
        "again again again again again again exit4 exit4 exit1", fault="status", status=500, times=1),
    row("500", "500, each time",
        "EIO EIO EIO right EIO otherwise exit4 exit4 exit1", "unranged", fault="status", status=500),
    row("502", "502, each time",
        "EIO EIO EIO EIO EIO otherwise exit4 exit4 exit4", fault="status", status=502, lasting=TRIED),
    row("504", "504 from a proxy that timed out while the server went on",
        "EIO EIO EIO EIO EIO otherwise exit4 exit4 right",
        fault="status", status=504, carried_out=True, lasting=TRIED),
    row("wrong-json", "truncated JSON",
        "EIO -json -json -json -json -json exit3 exit6 exit1"),
    row("huge-json", "a meaningless list of 10 MB",
        "ENOENT -json -json -json -json -json exit3 exit6 exit1", length=10_000_000),
    # -- other bytes
    row("corrupt", "a flipped byte",
        "EIO EIO lateEIO lateEIO lateEIO otherwise exit3 -body right", at=HALF,
        undigested="small=assent big=assent seek=assent unranged=assent tar=assent"),
    row("changed", "other content of equal size under the same name",
        "EIO EIO lateEIO ESTALE lateEIO otherwise exit3 -body right",
        undigested="small=assent big=assent unranged=assent"),
    row("longer", "longer content; HEAD agrees with the listing",
        "EIO EIO EIO ESTALE EIO otherwise exit3 -body right", fault="resized", by=1000),
    row("shorter", "shorter content; HEAD agrees with the listing",
        "EIO EIO EIO ESTALE EIO otherwise exit3 -body right", fault="resized", by=-20),
    row("longer-agreed", "longer content; HEAD agrees with the reply",
        "-same EIO EIO -same EIO -same -same -same -same", "agreed", fault="resized", by=1000,
        undigested="small=assent big=assent unranged=assent"),
    row("shorter-agreed", "shorter content; HEAD agrees with the reply",
        "-same EIO EIO -same EIO -same -same -same -same", "agreed", fault="resized", by=-20,
        undigested="small=assent big=assent unranged=assent"),
    row("swapped-undated", "connection breaks, then other content of equal size; neither has a date",
        "-resume EIO EIO/lateEIO lateEIO EIO/lateEIO -resume -resume -resume -resume", "swapped", dates="absent",
        undigested="small=ESTALE big=ESTALE seek=right unranged=ESTALE"),
    row("swapped-dated", "the same, with one date: replaced within the second in which it was sent",
        "-resume EIO EIO/lateEIO ESTALE EIO/lateEIO -resume -resume -resume -resume", "swapped", dates="fresh",
        undigested="small=ESTALE big=ESTALE unranged=ESTALE"),
    row("gzip", "unrequested Content-Encoding",
        "EIO EIO EIO EIO EIO otherwise exit3 -body right"),
    # -- ranges
    row("range-ignored", "range answered with the whole file",
        "-range -range -range right -range -range -range -range -range", "unranged"),
    row("range-wrong", "another range than requested, as Content-Range states",
        "-range -range -range right -range -range -range -range -range", "unranged", by=-1000),
    row("range-shifted", "other bytes than requested, against Content-Range",
        "-range -range -range lateEIO -range -range -range -range -range", undigested="seek=assent"),
    row("range-unclamped", "Content-Range beyond the end of the file",
        "-range -range -range right -range -range -range -range -range", "unranged"),
    row("range-empty", "empty range behind the end (`bytes 6-5/6`)",
        "-range -range -range right -range -range -range -range -range", "unranged"),
    row("range-negative", "range that begins before the file (`bytes -94-5/6`)",
        "-range -range -range right -range -range -range -range -range", "unranged"),
    row("range-beyond", "range of a file that has become shorter, without bytes (`bytes 100-200/6`)",
        "-range -range -range ESTALE -range -range -range -range -range", "unranged", by=6),
    row("range-500", "range answered 500, with the whole file",
        "-range -range -range right -range -range -range -range -range", "unranged"),
    # -- clocks
    row("clock", "clock of the server, and dates of its files, jump ahead by a day",
        "right right right ESTALE right right right right right", by=86_400),
    row("own-clock-ahead", "clock of this machine jumps ahead by a day",
        "-clock right right right right right -clock -clock -clock", "jump", by=86_400),
    row("own-clock-back", "clock of this machine jumps back by a day",
        "-clock right right right right right -clock -clock -clock", "jump", by=-86_400),
]
# fmt: on
