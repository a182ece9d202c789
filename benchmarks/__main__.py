"""All benchmarks of the defence and the service, with the suspects and seeds of the committed results.

    python -m benchmarks

The environment says where things are: DETRIGGER_ZOO, suspects laid out as `bench_zoo.py` says; DETRIGGER_OUTSIDE, more
of them, with the images of the first; DETRIGGER_FEW, what `make_few.py` trains; DETRIGGER_STORES, a folder that keeps
the versions made, for the benchmarks that measure those; DETRIGGER_OFFICIAL, a copy of the official BTI-DBF code. A
benchmark that lacks one says so and ends. What `benchmarks/results` has is not measured again, so that a run that was
cut off goes on where it was; for new results delete a file.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MANY = "--seeds 0,1,2"
COMMANDS = (
    f"bench_zoo {MANY}",
    "bench_zoo --models cifar10-vgg_sig,fashion-wanet,signs-watermark --profile fast",
    "bench_zoo --models cifar10-vgg_sig,fashion-wanet,signs-watermark --profile thorough",
    f"bench_repair {MANY}",
    "bench_ablation --models cifar10-vgg_two,fashion-wanet"
    f" --variants purifier,repair,generator,inverted,synthetic,rounds {MANY}",
    f"bench_ablation --models cifar10-vgg_iad --variants repair,generator,synthetic {MANY}",
    f"bench_penalty {MANY}",
    "bench_budget --models cifar10-vgg_sig,fashion-wanet --images 500,250",
    "bench_budget --models cifar10-badnets --images 500",
    "bench_baselines --models cifar10-vgg_iad,cifar10-vgg_sig,fashion-wanet,signs-watermark",
    "bench_official --models cifar10-badnets",
    "bench_classes",
    "bench_classes --classes 10 --sides 64",
    "bench_classes --classes 10 --sides 224 --profile fast",
    "bench_few",
    "bench_quick --models cifar10-badnets,cifar10-blended,cifar10-clean,cifar10-wanet,cifar10-pixel,cifar10-rot"
    ",cifar10-ibau_l0_inv,cifar10-ibau_l2_inv,cifar10-ibau_trojan_sq",
    "bench_setups --models cifar10-badnets,cifar10-blended,cifar10-clean,cifar10-ibau_l2_inv",
    "bench_quantised --profile fast --protect dynamic --models cifar10-badnets,cifar10-blended,cifar10-clean"
    ",cifar10-wanet,cifar10-ibau_l0_inv,cifar10-ibau_l2_inv,cifar10-ibau_trojan_sq",
    "bench_cost --models"
    " cifar10-badnets,cifar10-clean,cifar10-vgg_sig,fashion-vit_blended,fashion-wanet,signs-badnets",
)
SERVING = "bench_serving compare"


def main() -> int:
    """Run all; the exit status of the first that fails."""
    served = (Path(__file__).parent / "results/serving/compare.json").exists()
    for command in COMMANDS + (() if served else (SERVING,)):
        print(f"== {command}", flush=True)
        script, *arguments = command.split()
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{script}", *arguments], check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
