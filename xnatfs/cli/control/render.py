"""Show the state of mounts: as text for people, as JSON, and as metrics in the text format of Prometheus."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from xnatfs.cli import streams
from xnatfs.cli.output import counted, display_width, fold, human_size, print_data
from xnatfs.common.sanitize import line

# Columns of the names before the values.
NAME_COLUMNS = 11

# What XNAT does to a catalogue: entries whose files are gone are removed, others added, digests and counts computed.
REFRESH_OPTIONS = "delete,append,checksum,populateStats"

State = Mapping[str, Any]

# The metrics: name, type, help, and the keys of the value in a state.
METRICS = (
    ("up", "gauge", "1 if the process of the mount answers.", ("up",)),
    ("reachable", "gauge", "1 if the server is reachable.", ("reachable",)),
    ("uptime_seconds", "gauge", "Age of the mount.", ("uptime_seconds",)),
    ("logins_total", "counter", "Logins.", ("login", "count")),
    ("fetched_bytes_total", "counter", "Bytes of files received from the server.", ("bytes", "fetched")),
    ("served_bytes_total", "counter", "Bytes served to the kernel.", ("bytes", "served")),
    ("cache_used_bytes", "gauge", "Size of the cache, over all mounts that share it.", ("cache", "used_bytes")),
    ("cache_limit_bytes", "gauge", "Maximum size of the cache.", ("cache", "limit_bytes")),
    ("cache_hits_total", "counter", "Opened files that were cached.", ("cache", "hits")),
    ("cache_shared_hits_total", "counter", "Files copied from the shared directory.", ("cache", "shared_hits")),
    ("cache_misses_total", "counter", "Opened files that were fetched.", ("cache", "misses")),
    ("cache_evicted_total", "counter", "Files evicted from the cache.", ("cache", "evicted")),
    ("read_ahead_bytes_total", "counter", "Bytes fetched ahead.", ("cache", "read_ahead_bytes")),
    ("read_ahead_used_bytes_total", "counter", "Bytes fetched ahead, and opened.", ("cache", "read_ahead_used_bytes")),
    ("open_files", "gauge", "Open files.", ("open_files",)),
    ("transfers", "gauge", "Files that are being fetched singly.", ("transfers",)),
    ("errors_total", "counter", "Calls of programs that ended with an error.", ("error_count",)),
)


def show_states(states: Sequence[State], output: str) -> None:
    """Print the states of mounts."""
    if output == "json":
        print_data(json.dumps(states, indent=2))
    elif output == "prometheus":
        print_data("\n".join(metrics(states)))
    else:
        columns = streams.terminal_columns() if sys.stdout.isatty() else 0
        blocks = ["\n".join(text_lines(state, columns)) for state in states]
        print_data("\n\n".join(blocks) or "Nothing is mounted")


# -- text --------------------------------------------------------------------------------------------------------


def text_lines(state: State, columns: int) -> Iterator[str]:
    """Yield a state as lines of at most `columns` columns; 0 for lines of any length."""
    yield from _folded(state["mountpoint"], columns)
    for name, value in _facts(state):
        first, *more = _folded(value, columns - NAME_COLUMNS - 2 if columns else 0)
        yield f"  {name:<{NAME_COLUMNS - 1}} {first}"
        yield from (" " * (NAME_COLUMNS + 2) + each for each in more)


def _folded(text: str, columns: int) -> list[str]:
    """Break a text at blanks, and words that are too long anywhere."""
    if not columns:
        return [text]
    pieces = (piece for part in fold(text, columns) for piece in _cut(part, columns))
    return list(pieces)


def _cut(text: str, columns: int) -> Iterator[str]:
    """Yield a text in pieces that fit."""
    while display_width(text) > columns:
        length = min(len(text), columns)
        while length > 1 and display_width(text[:length]) > columns:
            length -= 1
        yield text[:length]
        text = text[length:]
    yield text


def _facts(state: State) -> Iterator[tuple[str, str]]:
    yield "server", line(state["server"])
    if not state["up"]:
        yield "state", line(state["error"])
        return
    yield "state", _reachability(state)
    yield "user", _login(state)
    yield "mounted", f"{duration(state['uptime_seconds'])} ago, process {state['process']}, log {state['log_level']}"
    yield "requests", _requests(state["requests"], state["rates"])
    yield "bytes", _bytes(state["bytes"], state["rates"])
    yield from _cache(state["cache"])
    yield "open", f"{counted(state['open_files'], 'file')}, {counted(state['inodes'], 'name')} known to the kernel"
    for name, rows in (("fetching", map(_transfer, state["transfers"])), ("error", map(_error, state["errors"]))):
        for row in rows:
            yield name, row


def _reachability(state: State) -> str:
    if state["reachable"]:
        return "reachable"
    since = f"unreachable since {clock(state['unreachable_since'])}: {line(state['unreachable_because'])}"
    return since if state["stale_since"] is None else f"{since}; listings are of {clock(state['stale_since'])}"


def _login(state: State) -> str:
    login, user = state["login"], line(state["user"] or "unknown")
    if login["refusal"]:
        return f"{user}, refused: {line(login['refusal'])}"
    if not login["is_open"]:
        return f"{user}, no session: the next request logs in"
    parts = [user]
    if login["began_at"]:
        parts.append(f"logged in {duration(time.time() - login['began_at'])} ago")
    if login["expires_in_seconds"] is not None:
        parts.append(f"expires after {duration(login['expires_in_seconds'])} without use")
    return ", ".join(parts)


def _requests(requests: State, rates: State) -> str:
    kinds = [
        f"{count} {kind}" for kind, count in sorted(requests.items(), key=lambda each: -each[1]) if kind != "total"
    ]
    total = f"{requests['total']}, {rates['requests_per_second']:.1f}/s"
    return f"{total} ({', '.join(kinds)})" if kinds else total


def _bytes(amounts: State, rates: State) -> str:
    parts = []
    for key, verb in (("fetched", "fetched"), ("served", "served")):
        parts.append(f"{human_size(amounts[key])} {verb}, {human_size(rates[f'{key}_bytes_per_second'])}/s")
    return "; ".join(parts)


def _cache(cache: State) -> Iterator[tuple[str, str]]:
    used, limit = cache["used_bytes"], cache["limit_bytes"]
    hits = "" if cache["hit_ratio"] is None else f", hits {cache['hit_ratio']:.0%}"
    shared_hits = cache.get("shared_hits")  # a mount of an earlier version does not report it
    shared = f", {counted(shared_hits, 'file')} from the shared directory" if shared_hits else ""
    yield "cache", f"{human_size(used)} of {human_size(limit)}{hits}{shared}, {counted(cache['listings'], 'listing')}"
    if cache["read_ahead_bytes"]:
        unused = f"{cache['read_ahead_waste']:.0%} of it not used"
        yield "read-ahead", f"{human_size(cache['read_ahead_bytes'])}, {unused}"


def cache_facts(cache: State) -> Iterator[tuple[str, str]]:
    """Yield what `xnatfs cache info` shows."""
    yield "directory", line(cache["directory"])
    yield from _cache(cache)
    yield "files", f"{cache['files']}, {cache['pinned_files']} of them pinned ({human_size(cache['pinned_bytes'])})"
    yield "evicted", f"{counted(cache['evicted'], 'file')} since it was mounted"


def warmed(result: State) -> str:
    """Format the result of `xnatfs warm`."""
    pinned = f", {result['pinned_files']} pinned" if result["pinned_files"] else ""
    fetched = result["cached_files"] - result["cached_before"]
    whole = f"{counted(result['files'], 'file')}, {human_size(result['bytes'])}"
    if result["is_complete"]:
        return f"complete: {whole} ({max(fetched, 0)} fetched{pinned})"
    failed = f", {result['failed_files']} failed" if result["failed_files"] else ""
    evicted = result["files"] - result["cached_files"] - result["failed_files"]
    small = f", {evicted} found no room in the cache" if evicted > 0 else ""
    return f"incomplete: {result['cached_files']} of {whole} cached{pinned}{failed}{small}"


def verified(result: State) -> Iterator[str]:
    """Yield what `xnatfs verify` has found, and what a data manager can do about it."""
    for resource in result["resources"]:
        yield from (f"{line(resource['path'])}: {line(problem)}" for problem in resource["problems"])
    broken = [resource["uri"] for resource in result["resources"] if resource["needs_refresh"]]
    if broken:
        yield "A manager of the data can refresh these catalogues:"
    for uri in broken:
        query = urlencode({"resource": uri, "options": REFRESH_OPTIONS}, safe="/,")
        yield f"  xnatctl api POST '/data/services/refresh/catalog?{query}'"
    digests = f", {result['without_digest']} without a digest" if result["without_digest"] else ""
    yield f"{counted(result['files'], 'file')} compared, {result['cached_files']} of them in the cache{digests}"


def _transfer(transfer: State) -> str:
    total = transfer["size_bytes"]
    received = transfer["received_bytes"]
    part = f"{received / total:.0%} of {human_size(total)}" if total else human_size(received)
    return f"{line(transfer['path'])} {part}"


def _error(error: State) -> str:
    times = f", {error['count']} times" if error["count"] > 1 else ""
    return f"{clock(error['at'])}{times} {error['errno']} {line(error['path'])}: {line(error['reason'])}"


def clock(at: float | None) -> str:
    """Return a time of today as 13:05:09, and of another day with its date."""
    if at is None:
        return "never"
    moment = time.localtime(at)
    is_today = moment[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S", moment)


def duration(seconds: float) -> str:
    """Return a time as its largest unit and the next: 3 min 5 s, 2 h 0 min, 4 d 3 h."""
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    whole = int(max(seconds, 0))
    for (large, name), (small, below) in zip(units, units[1:], strict=False):
        if whole >= large:
            return f"{whole // large} {name} {whole % large // small} {below}"
    return f"{whole} s"


# -- metrics -----------------------------------------------------------------------------------------------------


def metrics(states: Sequence[State]) -> Iterator[str]:
    """Yield the lines of the text format of Prometheus, version 0.0.4."""
    for name, kind, text, keys in METRICS:
        yield f"# HELP xnatfs_{name} {text}"
        yield f"# TYPE xnatfs_{name} {kind}"
        for state in states:
            if (value := _value(state, keys)) is not None:
                yield f"xnatfs_{name}{{{_labels(state)}}} {value}"
    yield "# HELP xnatfs_requests_total Requests sent to the server, by kind."
    yield "# TYPE xnatfs_requests_total counter"
    for state in states:
        for kind, count in state.get("requests", {}).items():
            if kind != "total":
                yield f'xnatfs_requests_total{{{_labels(state)},kind="{kind}"}} {count}'


def _value(state: State, keys: Sequence[str]) -> float | int | None:
    found: Any = state
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    if isinstance(found, list):
        return len(found)
    return int(found) if isinstance(found, bool) else found


def _labels(state: State) -> str:
    named = (("mountpoint", state["mountpoint"]), ("server", state["server"]))
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in named)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
