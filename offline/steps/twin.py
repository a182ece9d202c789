"""Innocent twins: the suspect's own network, which never saw a trigger, and what one costs there.

Every tensor of weights is shuffled, so that nothing of what they held is left and their scale fits the statistics of
the normalisation layers, which stay. Then they are taught what the suspect says of the clean images. These are moved,
mirrored and mixed, and their answers as well (mixup, Zhang et al., ICLR 2018). So a twin is the null of its suspect:
the same network for the same task, on the same kind of images. The suspect never sees what was moved or mixed, which
some backdoors answer to. Labels alone teach less (docs/experiments.md, Few classes).

Limitation: a deep network learns little from few images. A twin that is right on far fewer images than the suspect is
led more easily, and says nothing.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from detrigger.models.suspect import Suspect
from detrigger.offline.graph.weights import weight_names, weights
from detrigger.offline.progress import Advance
from detrigger.offline.steps.accuracy import right_on
from detrigger.offline.steps.augment import mirrors, moved
from detrigger.offline.steps.run import Run
from detrigger.offline.steps.tuning import Tuner, add_cross_entropy

TWINS, BATCH = 2, 128
RATE, CLIP = 0.03, 2.0
MIXED = 0.5
"""Share of the images of a batch that another one is mixed into."""
UNLIKE = 0.15
"""Share of held-out images that the suspect is right on and a twin may be wrong on, net."""
NO_WEIGHTS = (
    "with so few classes a suspect is compared with innocent networks like it, and this one has no floating-point"
    " weights to train them from: give the float model that it was made from"
)
LEARN_LITTLE = (
    "with so few classes a suspect is compared with innocent networks like it, and those that the clean images train"
    " are right on {:.0%} where it is on {:.0%}: give more clean images"
)


@dataclass(frozen=True)
class Twins:
    """``networks`` like the suspect; ``problem`` says why there are none."""

    networks: list[Suspect]
    problem: str = ""


@dataclass(frozen=True)
class Lesson:
    """Images (N, C, H, W), the suspect's probabilities (N, K) for them, and whether they may be mirrored."""

    images: Tensor
    answers: Tensor
    mirrored: bool


def innocent_twins(run: Run) -> Twins:
    """``TWINS`` of them; none where the suspect has no weights, the budget no time, or the images too little to teach.

    They learn from all images but those that judge them.
    """
    names, steps = weight_names(run.inputs.tunable), run.profile.twin_steps
    if not names:
        return Twins([], NO_WEIGHTS)
    what = "innocent networks to compare with"
    if not run.budget.allows(what, run.budget.pace.seconds(TWINS * steps * BATCH)):
        return Twins([])  # the budget says so
    images = torch.cat([run.images.train[0], torch.from_numpy(run.images.unseen[0]).to(run.compute.device)])
    at_once = run.compute.most_at_once(images.shape)
    with torch.no_grad():
        answers = torch.cat([run.suspect(part).softmax(1) for part in images.split(at_once)])
    x, y = run.images.held_out
    right, twins, least = float(right_on(run.suspect, x, y).mean()), [], 1.0
    lesson = Lesson(images, answers, mirrors(run, right))
    with run.progress.stage("innocent twins", TWINS * steps) as advance:
        for _ in range(TWINS):
            twin = copy.deepcopy(run.suspect)
            run.stages.watch(twin.body)
            _teach(run, twin, list(weights(twin, names).values()), lesson, advance)
            twins.append(twin)
            least = min(least, float(right_on(twin, x, y).mean()))
    return Twins(twins) if least >= right - UNLIKE else Twins([], LEARN_LITTLE.format(least, right))


def _teach(run: Run, twin: Suspect, tensors: list[Tensor], lesson: Lesson, advance: Advance) -> None:
    """Shuffle ``tensors`` and train them in place."""
    compute = run.compute
    for tensor in tensors:
        if tensor.ndim >= 2:
            order = torch.randperm(tensor.numel(), generator=compute.generator).to(tensor.device)
            tensor.copy_(tensor.flatten()[order].view_as(tensor))
    tuner = Tuner(tensors, RATE, run.profile.twin_steps)
    tuner.gradients(True)
    for _ in range(run.profile.twin_steps):
        chosen = compute.randint(len(lesson.images), BATCH)
        x, y = moved(run, lesson.images[chosen], lesson.mirrored), lesson.answers[chosen]
        share = torch.rand(BATCH, generator=compute.generator).to(x.device)
        share = torch.where(torch.rand(BATCH, generator=compute.generator).to(x.device) < MIXED, share, 1.0)
        x = torch.lerp(x.roll(1, 0), x, share[:, None, None, None])
        y = torch.lerp(y.roll(1, 0), y, share[:, None])
        tuner.clear()
        add_cross_entropy(twin, x, y, compute)
        torch.nn.utils.clip_grad_norm_(tensors, CLIP)
        tuner.step()
        advance(1)
    tuner.gradients(False)
