"""Count the cache's hits, misses, fetched bytes and damaged files."""

from dataclasses import dataclass, field

# Names of damaged files that are stored: enough to diagnose a fault, not enough to fill the memory.
MAX_DAMAGED_NAMES = 1000


@dataclass(slots=True)
class CacheStats:
    """Counters since the cache was opened."""

    hits: int = 0  # opens that started no request: the file was cached and trusted, or being fetched
    misses: int = 0  # opens that started a request
    fetched: int = 0  # bytes that were received
    damaged: list[str] = field(default_factory=list)  # keys of files that failed verification, oldest first

    def record_damage(self, key: str) -> None:
        """Add a file to the damaged ones."""
        self.record_repair(key)
        self.damaged = [*self.damaged[1 - MAX_DAMAGED_NAMES :], key]

    def record_repair(self, key: str) -> None:
        """Remove a file, which is sound now, from the damaged ones."""
        if key in self.damaged:
            self.damaged.remove(key)
