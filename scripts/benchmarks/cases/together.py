"""Cases about concurrency: `stat` while a big file streams, and four programs that read four big files."""

import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.benchmarks import archives, rig
from scripts.benchmarks.cases.bench import Bench, big_file
from scripts.benchmarks.report import Row
from scripts.benchmarks.site import Server

FOUR = range(1, 5)
Took = list[tuple[float, float]]


def responsive(bench: Bench) -> list[Row]:
    """Run `stat` on entries in the daemon's cache but not in the kernel's, while a file streams."""
    big, many = bench.one_big(), bench.many(4000, 10_000)
    idle, streaming, notes = [], [], []
    right = True
    with bench.server(big, many, tls=True) as server:
        for _ in range(bench.times):
            with bench.mount(server, "--ttl", "3600") as mount:
                folder = mount.session("MANY") / "scans" / "1" / "DICOM"
                path = big_file(mount.session("BIG"))
                rig.shell(f"ls {folder} {path.parent}")
                archives.in_memory(big_file(archives.session(big)))
                idle.append(percentiles(probed(bench, folder, many, "sleep 1")[0]))
                took, _ = probed(bench, folder, many, f"cat {path} > /dev/null")
                streaming.append(percentiles(took))
                right &= rig.same(path, big_file(archives.session(big)))
                notes = [f"{len(took)} times, half under {streaming[-1][0]:.2f} ms, none over {most(took):.1f} ms"]
    row = Row("responsive", f"p99 of `stat` while {bench.big >> 20} MiB stream, TLS", [p99 for _, p99 in streaming],
              "the same, idle", [p99 for _, p99 in idle], "under 10 ms", "ms", notes=notes)  # fmt: skip
    row.require(row.median < 10).require(right, "wrong bytes")
    # An answer from the kernel's cache takes 2 us, and would not measure xnatfs.
    row.require(statistics.median(p50 for p50, _ in idle) > 0.02, "the kernel answered, not we")
    return [row]


def probed(bench: Bench, folder: Path, many: Path, meanwhile: str) -> tuple[Took, str]:
    """Return the start and the duration of each `stat` during a command, and the output of the command."""
    names = bench.directory / "names"
    local = archives.session(many) / "scans" / "1" / "DICOM"
    names.write_text("\n".join(sorted(path.name for path in local.iterdir())))
    rig.drop_pages(2)
    words = [sys.executable, "-m", "scripts.benchmarks.probe", str(folder), str(names)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probe:
        assert probe.stdout is not None
        probe.stdout.readline()  # the calls begin
        began = time.monotonic()
        said = rig.output(meanwhile)[1]
        ended = time.monotonic()
        told, _ = probe.communicate("that is enough")
    return [(start, took) for start, took in json.loads(told) if began <= start <= ended], said


def percentiles(took: Took) -> tuple[float, float]:
    """Return the 50th and the 99th percentile, in ms."""
    cuts = statistics.quantiles([1000 * seconds for _, seconds in took], n=100)
    return cuts[49], cuts[98]


def most(took: Took) -> float:
    return 1000 * max(seconds for _, seconds in took)


def fair(bench: Bench) -> list[Row]:
    """Read four big files with four programs at once, cold."""
    data = archives.big(bench.directory, bench.big // 4, 4)
    ours, theirs, right = [], [], True
    with bench.server(data, tls=True) as server:
        for _ in range(bench.times):
            rig.drop_pages()
            archives.in_memory(archives.session(data))
            theirs.append(_slowest([_curl(server, scan) for scan in FOUR]))
            with bench.mount(server) as mount:
                paths = {scan: big_file(mount.session("BIG"), scan) for scan in FOUR}
                rig.shell("ls " + " ".join(str(path) for path in paths.values()))
                ours.append(_slowest([f"cat {path} > /dev/null" for path in paths.values()]))
                right &= all(rig.same(path, big_file(archives.session(data), scan)) for scan, path in paths.items())
    row = Row("fair", f"four programs read four files of {bench.big // 4 >> 20} MiB, TLS: the slowest's rate, of all",
              ours, "four `curl`", theirs, "at least 0.6", "")  # fmt: skip
    return [row.require(row.median >= 0.6).require(right, "wrong bytes")]


def _curl(server: Server, scan: int) -> str:
    url = server.plain(str(big_file(Path("BIG") / archives.SESSION, scan)))
    return f"{server.curl} -o /dev/null {url}"


def _slowest(commands: list[str]) -> float:
    """Run all commands at once; return the lowest of their rates over the mean rate."""
    with ThreadPoolExecutor(len(commands)) as pool:
        rates = [1 / seconds for seconds in pool.map(rig.shell, commands)]
    return min(rates) / statistics.mean(rates)
