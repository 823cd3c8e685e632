"""Peak memory of all processes of the data service, for one number of short rows and for twice as many.

    python -m tests.bench.data_memory [--rows 2000000]
    python -m tests.bench.data_memory --rows 10000000 --once      (by hand: some ten minutes)

Each run in a process of its own with an object store of 200 MB. PSS: memory that each process has of its own and its
share of what it shares, the object store and mapped files included; read every half second. Bar: within 10 %.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil

from tests.bench.generated import plans, short_rows

MAX_LENGTH = 1024
_STORE_BYTES = 200 << 20
_EVERY_S = 0.5


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--once", action="store_true", help="not with twice as many rows")
    parser.add_argument("--measure", help="used by the script itself: the folder of a run")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.rows, Path(options.measure))))  # noqa: T201
        return
    print(f"{'rows':>12}{'peak PSS, MB':>14}{'M tokens/s':>12}")  # noqa: T201
    peaks = []
    for num_rows in [options.rows] if options.once else [options.rows, 2 * options.rows]:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "tests.bench.data_memory", "--rows", str(num_rows), "--measure", folder]
            out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        found = json.loads(out.splitlines()[-1])
        peaks.append(found["peak_mb"])
        print(f"{num_rows:>12,}{found['peak_mb']:>14.0f}{found['tokens_per_s'] / 1e6:>12.2f}")  # noqa: T201
    print(f"{'ratio':>12}{peaks[-1] / peaks[0]:>14.3f}")  # noqa: T201


def measure(num_rows: int, work: Path) -> dict[str, float]:
    """Peak and speed of an epoch."""
    import ray

    from tests.bench.counting import count, start_ray

    source = short_rows(work / "rows.jsonl", num_rows)
    start_ray(os.cpu_count() or 1, object_store_memory=_STORE_BYTES)
    windows, plan = plans(source, work / "data", 16, max_length=MAX_LENGTH)
    watch = PeakPss()
    watch.start()
    found = count(windows, plan, work / "run")
    watch.stop()
    ray.shutdown()
    return {"peak_mb": watch.peak_bytes / 1e6, "tokens_per_s": found["tokens"] / found["seconds"]}


class PeakPss(threading.Thread):
    """The highest sum of PSS over this process and all below it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._stopped = threading.Event()

    def run(self) -> None:
        """Read until stopped."""
        while not self._stopped.wait(_EVERY_S):
            me = psutil.Process()
            self.peak_bytes = max(self.peak_bytes, sum(_pss(p.pid) for p in [me, *me.children(recursive=True)]))

    def stop(self) -> None:
        """Read no more."""
        self._stopped.set()
        self.join()


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
