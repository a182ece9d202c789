"""What each stage of a job cost."""

from __future__ import annotations

import copy
import platform
import subprocess
import sys

import pytest
import torch
from torch import fx, nn

from detrigger.offline.progress import SilentProgress
from detrigger.offline.stages import Stages


def test_images_are_counted_by_stage_and_by_whether_a_gradient_was_asked_for() -> None:
    stages, network = Stages(SilentProgress()), fx.symbolic_trace(nn.Linear(3, 2)).requires_grad_(False)
    with stages.stage("load", 1):
        network(torch.zeros(9, 3))
    stages.watch(network)
    tuned = copy.deepcopy(network)
    stages.watch(tuned)
    with stages.stage("screen", 2) as advance:
        network(torch.zeros(4, 3))
        network(torch.zeros(2, 3, requires_grad=True))
        advance(1)
    with stages.stage("unlearn", 1):
        tuned.requires_grad_(True)(torch.zeros(5, 3))
    with stages.stage("screen", 1), torch.no_grad():
        network(torch.zeros(1, 3, requires_grad=True))
    counted = {name: (row["forward"], row["backward"]) for name, row in stages.rows.items()}
    assert counted == {"load": (0, 0), "screen": (7, 2), "unlearn": (5, 5)}
    assert all(row["seconds"] >= 0 and row["peak_mib"] > 50 for row in stages.rows.values())


FREED = """
from pathlib import Path
import pytest
import torch
from detrigger.offline.compute import Compute
from detrigger.offline.progress import SilentProgress
from detrigger.offline.stages import Stages

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

Compute("cpu", 0)
with Stages(SilentProgress()).stage("screen", 1):
    before = resident()
    blocks = [torch.ones(1 << 18) for _ in range(400)]  # 1 MiB each
    held = blocks[::20]
    del blocks
    within = resident()
print(within - before, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_memory_that_a_stage_leaves_free_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    within, after = map(int, done.stdout.split())
    assert within > 300  # kept while it may be needed again
    assert after < 100  # though some blocks between are still held
