"""What the cache counts, for whoever shows it."""

from dataclasses import dataclass, field

# Names of damaged files remembered: enough to see what is wrong, not enough to fill the memory.
DAMAGED = 1000


@dataclass(slots=True)
class Stats:
    """Counters since the cache was opened."""

    hits: int = 0  # opens that started no request: kept and trusted, or joining a download
    misses: int = 0  # opens that did
    renewed: int = 0  # of the misses: the server said "not modified"
    fetched: int = 0  # bytes that came
    damaged: list[str] = field(default_factory=list)  # keys of files that did not come as announced, oldest first

    def damage(self, key: str) -> None:
        """This one is not as it should be."""
        self.sound(key)
        self.damaged = [*self.damaged[1 - DAMAGED :], key]

    def sound(self, key: str) -> None:
        """This one is whole."""
        if key in self.damaged:
            self.damaged.remove(key)
