"""Cases about entries: `stat` of thousands, and the memory for a million."""

from pathlib import Path

from scripts.benchmarks import archives, peers, rig
from scripts.benchmarks.cases.bench import Bench
from scripts.benchmarks.report import Row
from scripts.benchmarks.rig import MeasurementFailed

FIND = "find {} -printf '%s\\n'"
LS = "ls -l {}"


def storm(bench: Bench) -> list[Row]:
    """Run `find` and `ls -l` on a directory of 10,000 entries that was listed before."""
    entries = 2000 if bench.quick else 10_000
    data = bench.many(2000, 10_000)
    local = archives.session(data) / "scans" / "1" / "DICOM"
    times, inside = 2 * bench.times + 1, Path("scans", "1", "DICOM")
    with bench.server(data, tls=True) as server:
        with bench.mount(server, "--ttl", "3600") as mount:
            folder = mount.session("MANY") / inside
            find = _in_turn([FIND.format(folder), FIND.format(local)], times)
            right = _told(folder) == _told(local)
            ls, bare, notes = _beside_bare(bench, folder, entries, times)
        with bench.mount(server, "--ttl", "3600", "--no-xattr") as mount:
            plain = _in_turn([LS.format(mount.session("MANY") / inside), LS.format(local)], times)
    first = Row("storm", f"`find -printf %s` of {entries} entries, warm, TLS", find[0], "a local directory", find[1],
                "at most 3").at_most(3).require(right, "other sizes")  # fmt: skip
    second = Row("storm", "`ls -l` of them", ls, "a bare pyfuse3 that answers the same", bare, "at most 2", notes=notes)
    third = Row("storm", "`ls -l` with `--no-xattr`", plain[0], "a local directory", plain[1], "at most 3").at_most(3)
    return [first, second.at_most(2) if bare else second, third]


def _in_turn(commands: list[str], times: int) -> list[list[float]]:
    """Return the durations of each command in seconds, run in turn, without those of an untimed first turn."""
    took: list[list[float]] = [[] for _ in commands]
    for turn in range(times + 1):
        for number, command in enumerate(commands):
            seconds = rig.shell(command)
            took[number] += [seconds] if turn else []
    return took


def _told(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def _beside_bare(bench: Bench, folder: Path, count: int, times: int) -> tuple[list[float], list[float], list[str]]:
    """Time `ls -l` of xnatfs and of a bare file system with as many entries, or note why that is unavailable."""
    try:
        with peers.bare(bench.directory, "--entries", count) as mountpoint:
            ours, bare = _in_turn([LS.format(folder), LS.format(mountpoint)], times)
            seen = len(list(mountpoint.iterdir()))
            return ours, bare, [] if seen == count else [f"the bare one shows {seen} entries"]
    except MeasurementFailed as why:
        return _in_turn([LS.format(folder)], times)[0], [], [f"bare pyfuse3: {why}"]


def memory(bench: Bench) -> list[Row]:
    """Measure the memory of a mount and its processes while `find` lists a million files, session by session."""
    sessions, steps = (5, (1, 2, 5)) if bench.quick else (100, (10, 30, 100))
    shape, each = f"{sessions}x1x20x500", 20 * 500
    held, counts, done, right = [], [], 0, True
    with bench.server(tls=True, options=["--shape", shape]) as server:
        with bench.mount(server, "--ttl", "3600", "--timeout", "600") as mount:
            top = mount.path / "projects" / "SHAPED"
            rig.shell(f"ls {top}")
            idle = mount.resident()
            for step in steps:
                for number in range(done, step):
                    told = rig.output(f"find {top}/S{number:05} -name '*.dcm' | wc -l")[1]
                    right &= int(told) == each
                done = step
                held.append(mount.resident())
                counts.append(step * each)
    told_steps = ", ".join(f"{count:,} files {mb:.0f} MB" for count, mb in zip(counts, held, strict=True))
    row = Row("memory", f"{counts[-1]:,} files listed: resident, TLS", held[-1:], "", [], "under 600 MB", "MB")
    row.require(held[-1] < 600).require(right, "other files").notes.append(
        f"listed nothing {idle:.0f} MB, {told_steps}"
    )
    row.curve = [(0, idle), *zip(counts, held, strict=True)]
    # The growth from the second step to the last over that from the first to the second: 1 if linear; allocators vary.
    growth = ((held[2] - held[1]) / (counts[2] - counts[1])) / ((held[1] - held[0]) / (counts[1] - counts[0]))
    line = Row(
        "memory", "a file more costs later, of what it cost before", [growth], "", [], "linear: at most 1.25", ""
    )
    return [row, line.require(growth <= 1.25)]
