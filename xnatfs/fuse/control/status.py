"""Collect what a mount reports about itself, from memory alone: no request is sent, and no listing is gone through."""

import logging
import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import trio

from xnatfs import __version__
from xnatfs.content import Blob
from xnatfs.fuse.control.error_log import Failure
from xnatfs.fuse.control.protocol import Message
from xnatfs.fuse.operations import Operations
from xnatfs.settings.config import Config
from xnatfs.site import Site

# Seconds between two samples of the counters, and the number of samples: rates are those of the last minute.
SAMPLE_SECONDS, SAMPLES = 5.0, 12
# Errors and transfers that are reported: what a screen holds.
REPORTED_ERRORS, REPORTED_TRANSFERS = 10, 20


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters at one time, on trio's clock."""

    at: float
    requests: int
    fetched: int
    served: int


class Status:
    """The state of one mount.

    Args:
        site: Its server.
        operations: Its calls of the kernel.
        config: Its settings.
        mountpoint: Its place.
    """

    def __init__(self, site: Site, operations: Operations, config: Config, mountpoint: Path) -> None:
        self._site = site
        self._operations = operations
        self._config = config
        self._mountpoint = mountpoint
        self._samples: deque[Sample] = deque([self._sample()], maxlen=SAMPLES)

    async def run(self) -> None:
        """Sample the counters until cancelled."""
        while True:
            await trio.sleep(SAMPLE_SECONDS)
            self._samples.append(self._sample())

    def _sample(self) -> Sample:
        xnat, content = self._site.xnat, self._site.content
        return Sample(trio.current_time(), xnat.requests, content.stats.fetched, self._operations.served_bytes)

    def report(self) -> Message:
        """Return the state now, as JSON holds it. docs/OPERATING.md describes the keys."""
        site, counters = self._site, self._operations.counters()
        login = site.xnat.login
        expires_in = login.expires_in
        return {
            "mountpoint": str(self._mountpoint),
            "server": site.xnat.url,
            "user": login.username,
            "version": __version__,
            "process": os.getpid(),
            "log_level": logging.getLevelName(logging.getLogger().getEffectiveLevel()).lower(),
            "offline": self._config.offline,
            "started_at": site.opened_at,
            "uptime_seconds": time.time() - site.opened_at,
            "login": {
                "began_at": login.began_at or None,
                "expires_in_seconds": expires_in if 0 < expires_in < float("inf") else None,
                "is_open": expires_in > 0,
                "refusal": login.refusal,
                "count": login.logins,
            },
            **self._reachability(),
            "requests": {"total": site.xnat.requests, **site.xnat.transport.requests_by_kind},
            **self._traffic(),
            "cache": self._cache(),
            "open_files": counters["files"],
            "open_directories": counters["directories"],
            "inodes": counters["inodes"],
            "transfers": self._transfers(),
            "archives_under_way": self._site.series_prefetch.counters()["tars"],
            "error_count": self._operations.errors.total,
            "errors": list(map(failure_cells, self._operations.errors.latest(REPORTED_ERRORS))),
        }

    def _reachability(self) -> Message:
        breaker = self._site.xnat.transport.breaker
        return {
            "reachable": not breaker.is_open,
            "unreachable_since": breaker.outage_began_at if breaker.is_open else None,
            "unreachable_because": breaker.reason,
            "last_answer_at": breaker.last_answer_at,
            "stale_since": breaker.last_answer_at if breaker.is_open and self._config.offline else None,
        }

    def _traffic(self) -> Message:
        now, then = self._sample(), self._samples[0]
        seconds = max(now.at - then.at, 1.0)
        return {
            "bytes": {"fetched": now.fetched, "served": now.served},
            "rates": {
                "seconds": seconds,
                "requests_per_second": (now.requests - then.requests) / seconds,
                "fetched_bytes_per_second": (now.fetched - then.fetched) / seconds,
                "served_bytes_per_second": (now.served - then.served) / seconds,
            },
        }

    def _cache(self) -> Message:
        counters, ahead = self._site.content.counters(), self._site.series_prefetch.stats
        opens = counters["hits"] + counters["misses"]
        return {
            "directory": str(self._config.cache_dir),
            "used_bytes": counters["kept_bytes"],
            "limit_bytes": counters["limit"],
            "hits": counters["hits"],
            "shared_hits": counters["shared_hits"],
            "misses": counters["misses"],
            "hit_ratio": counters["hits"] / opens if opens else None,
            "evicted": counters["evicted"],
            "listings": len(self._site.metadata),
            "read_ahead_bytes": ahead.ahead,
            "read_ahead_used_bytes": ahead.used,
            "read_ahead_waste": max(ahead.ahead - ahead.used, 0) / ahead.ahead if ahead.ahead else None,
        }

    def _transfers(self) -> list[Message]:
        """Return the files that are being fetched, those first that a program has open."""
        opened: dict[Blob, str] = {}
        for path, blob in self._operations.open_files():
            if not blob.complete and blob.failure is None:
                opened.setdefault(blob, "/".join(path))
        for blob in self._site.content.filling():
            if not blob.complete:
                resource, _, name = blob.key.partition("/")  # a program has closed it, or waits for its open(2)
                opened.setdefault(blob, f"resource {resource}: {name}")
        found = list(opened.items())[:REPORTED_TRANSFERS]
        return [
            {"path": name, "received_bytes": blob.present.total, "size_bytes": blob.size if blob.size >= 0 else None}
            for blob, name in found
        ]


def failure_cells(failure: Failure) -> Message:
    """Return an error as JSON holds it."""
    return {
        "path": "/".join(failure.path),
        "at": failure.at,
        "errno": failure.errno,
        "reason": failure.reason,
        "count": failure.count,
    }
