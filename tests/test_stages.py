"""What each stage of a job cost."""

from __future__ import annotations

import copy

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
