"""Measure the service, on this machine alone. A command writes benchmarks/results/serving/COMMAND.json.

    python -m benchmarks.bench_serving compare    beside the bare graph, LitServe and plain FastAPI; idle latency
    python -m benchmarks.bench_serving overload   three times the capacity for --seconds (default 600)
    python -m benchmarks.bench_serving loads      from half to ten times the capacity, polite and rude clients
    python -m benchmarks.bench_serving hostile    ordinary requests while one client attacks
    python -m benchmarks.bench_serving swaps      20 swaps under load; memory over 50
    python -m benchmarks.bench_serving soak       half load for --seconds (default 7200) with 60 swaps
    python -m benchmarks.bench_serving quarantine what keeping flagged images costs at full load; its caps
    python -m benchmarks.bench_serving kills      SIGKILL of service and job at --count (default 50) random moments
    python -m benchmarks.bench_serving kill_steps SIGKILL at each step of publish, promotion and swap, --count times
    python -m benchmarks.bench_serving disks      everything that writes, on a full file system (needs root)
    python -m benchmarks.bench_serving fuzz       coverage-guided fuzzing for --seconds (default 800)
    python -m benchmarks.bench_serving document   schemathesis with --count (default 50) examples an operation

Without a command: `compare`. Needs `pip install '.[dev,bench]'`. With --store the CIFAR-sized graph is the promoted
version of that store, else an untrained one of the same size. Nothing else should compute meanwhile.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.serving import report, stores, suites
from benchmarks.serving.compare import compare
from benchmarks.serving.hostile import hostile
from benchmarks.serving.loads import loads
from benchmarks.serving.overload import overload
from benchmarks.serving.quarantine import quarantine
from benchmarks.serving.soak import soak
from benchmarks.serving.swaps import swaps

COMMANDS = (
    "compare", "overload", "loads", "hostile", "swaps", "soak", "quarantine", "kills", "kill_steps", "disks", "fuzz",
    "document",
)  # fmt: skip
SECONDS = {
    "compare": 8.0, "overload": 600.0, "loads": 10.0, "hostile": 15.0, "swaps": 20.0, "soak": 7200.0, "fuzz": 800.0,
}  # fmt: skip


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=COMMANDS, default="compare")
    parser.add_argument("--store", type=Path, help="version store with the CIFAR-sized graph")
    parser.add_argument("--seconds", type=float, help="of each measurement, or of the whole run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for the result")
    options = parser.parse_args()
    report.RESULTS = options.out
    seconds = options.seconds or SECONDS.get(options.command, 0.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.command == "compare":
            compare(folder, options.store, options.repeats, seconds, options.seed)
        elif options.command == "overload":
            overload(options.store or stores.make(folder / "store", "cifar", options.seed), seconds)
        elif options.command == "loads":
            loads(
                options.store or stores.make(folder / "store", "cifar", options.seed), seconds, options.seed
            )
        elif options.command == "hostile":
            hostile(
                options.store or stores.make(folder / "store", "cifar", options.seed), seconds, options.seed
            )
        elif options.command == "swaps":
            swaps(folder, options.repeats, seconds, options.seed)
        elif options.command == "soak":
            soak(folder, seconds, options.seed)
        elif options.command == "quarantine":
            quarantine(stores.make(folder / "store", "cifar", options.seed, threshold=-1.0), options.repeats)
        elif options.command == "kills":
            suites.kills(options.count)
        elif options.command == "kill_steps":
            suites.kill_steps(options.count)
        elif options.command == "disks":
            suites.disks()
        elif options.command == "fuzz":
            suites.fuzz(seconds, options.seed)
        else:
            suites.document(options.count)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
