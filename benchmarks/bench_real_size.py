"""What a job costs on a suspect of real size: seconds, passes and memory of each stage, and what it is worth.

    python -m benchmarks.bench_real_size --model DIR --data DIR [--clean DIR --store STORE] [--profile standard]

DIR of --model has `model.onnx`, `preprocess.json` and `poison_test.npz`; --data and --clean are folders of class
folders, to protect with and to test on. A row of `results/real_size.json` first has what a pass costs, measured on the
clean images: images a CPU second through the suspect, forward alone and with the gradient to the image, in the batches
that a job works in, and the process's memory then. With --store the whole job runs. Its stages as in `report.json`, and
the shares of `detrigger evaluate`, are added. Rows that are there are not measured again.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import rows
from detrigger.models.store import VersionStore
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.load import Options, load
from detrigger.offline.inputs.split import as_float
from detrigger.offline.jobs.evaluate import evaluate
from detrigger.offline.jobs.protect import ProtectOptions, protect
from detrigger.offline.progress import TerminalProgress

RESULTS = Path(__file__).parent / "results" / "real_size.json"
TURNS = 2


def main() -> int:
    """Measure what is not measured yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "data", "clean", "store"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--profile", default="standard")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.model is None or arguments.data is None:
        print("bench_real_size: no model or no data given; nothing measured")
        return 0
    results = rows.Rows(RESULTS, ("model", "profile", "seed", "what"))
    key = {"model": arguments.model.name, "profile": arguments.profile, "seed": arguments.seed}
    given = {
        "suspect": arguments.model / "model.onnx",
        "preprocess": arguments.model / "preprocess.json",
        "data": arguments.data,
        "profile": arguments.profile,
        "seed": arguments.seed,
    }
    if not results.has(key | {"what": "passes"}):
        results.add(key | {"what": "passes"} | passes(Options(**given)))
    if arguments.store is not None and not results.has(key | {"what": "protect"}):
        options = ProtectOptions(**given, store=arguments.store)
        results.add(key | {"what": "protect"} | whole(options, arguments.model, arguments.clean))
    return 0


def passes(options: Options) -> dict[str, Any]:
    """What a pass costs."""
    compute = Compute(options.device, options.seed)
    inputs = load(options, compute, TerminalProgress())
    pixels = inputs.data.x[:: max(1, len(inputs.data) // compute.most_at_once(inputs.preprocess.size))]
    x = torch.from_numpy(as_float(pixels[: compute.most_at_once(inputs.preprocess.size)])).to(compute.device)
    rates = {}
    for name, wanted in (("forward", False), ("with_gradient", True)):
        spent = 0.0
        for turn in range(TURNS + 1):
            image = x.clone().requires_grad_(wanted)
            began = time.process_time()
            with torch.set_grad_enabled(wanted), compute.autocast():
                logits = inputs.suspect(compute.channels_last(image))
            if wanted:
                logits.float().logsumexp(1).sum().backward()
            spent += (time.process_time() - began) * (turn > 0)  # the first turn sets up
        rates[f"{name}_images_per_cpu_s"] = round(TURNS * len(x) / spent, 1)
    return rates | {
        "batch": len(x),
        "n_images": len(inputs.data),
        "threads": torch.get_num_threads(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "device": rows.device(),
    }


def whole(options: ProtectOptions, model: Path, clean: Path | None) -> dict[str, Any]:
    """The whole job, and its worth where there are test images."""
    done = protect(options, TerminalProgress())
    store = VersionStore(options.store)
    row: dict[str, Any] = {
        "verdict": done.verdict,
        "target_labels": list(done.target_labels),
        "gate_passed": done.gate_passed,
        "seconds": round(done.seconds, 1),
        "stages": rows.stages_of(store, done.version),
        "device": rows.device(),
    }
    if clean is not None:
        found = evaluate(store, clean, model / "poison_test.npz", TerminalProgress(), version=done.version)
        shares = {"BA": found.protected.BA, "ASR": found.protected.ASR, "PA": found.protected.PA}
        row |= {
            "BA_bare": found.bare.BA,
            "ASR_bare": found.bare.ASR,
            "TPR": found.TPR,
            "FPR": found.FPR,
            **shares,
        }
    return row


if __name__ == "__main__":
    raise SystemExit(main())
