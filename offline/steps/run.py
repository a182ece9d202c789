"""One run of a job: what all of its steps share."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

import torch

from detrigger.models.errors import BadInput
from detrigger.models.suspect import Suspect, check_gradient
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.load import JobInputs, Options, load
from detrigger.offline.inputs.profile import PROFILES, Profile, at_size
from detrigger.offline.inputs.split import Split, as_float, split_data
from detrigger.offline.progress import Progress
from detrigger.offline.stages import Stages
from detrigger.offline.steps.accuracy import Accuracy, own_accuracy, stratified
from detrigger.offline.steps.budget import Budget, Clock
from detrigger.offline.steps.clean_reference import CleanReference
from detrigger.offline.steps.invert import Effort, Inversion
from detrigger.offline.triggers.base import image_shape
from detrigger.offline.triggers.patch import PatchBank

NOT_MEASURED = "no accuracy could be measured: the images came without classes"
MOST_TIMED = 10
"""Candidates of an inversion that tells how long one takes, where there is a budget."""
GRADIENT_IMAGES = 32
"""Images on which the gradient is compared with finite differences in ONNX Runtime."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The suspect, the clean images by share, and how to work.

    ``accuracy`` is None where the images have no classes.
    ``started`` is the clock (``time.monotonic``) when the job began, in seconds; ``stages`` counts since then.
    """

    options: Options
    accuracy: Accuracy | None
    inputs: JobInputs
    images: Split
    profile: Profile
    compute: Compute
    progress: Progress
    started: float
    stages: Stages
    budget: Budget

    @property
    def suspect(self) -> Suspect:
        """The imported classifier."""
        return self.inputs.suspect

    @cached_property
    def reference(self) -> CleanReference:
        """The suspect's answers to the clean images; computed when they are first asked for."""
        return CleanReference(self.suspect, *self.images.train, self.compute)

    @property
    def seed(self) -> int:
        """Of everything random."""
        return self.options.seed

    def seconds(self) -> float:
        """How long the job has taken so far."""
        return time.monotonic() - self.started


def begin(
    options: Options,
    compute: Compute,
    progress: Progress,
    profile: Profile | None = None,
    clock: Clock = time.monotonic,
) -> Run:
    """Load, check and split what the user gave. BadInput for anything wrong with it, SetupRefused among these.

    ``profile`` stands in for the named one. The budget goes by ``clock``.
    """
    started, budget = time.monotonic(), Budget(options.budget, clock)
    progress = stages = Stages(progress)
    inputs = load(options, compute, progress)
    stages.watch(inputs.suspect.body)
    accuracy = _right_on(inputs, options, compute, progress)
    images = split_data(inputs.data, options.seed, compute)
    run = Run(
        options=options,
        accuracy=accuracy,
        inputs=inputs,
        images=images,
        profile=at_size(profile or PROFILES[options.profile], inputs.preprocess.size),
        compute=compute,
        progress=progress,
        started=started,
        stages=stages,
        budget=budget,
    )
    if budget.limited:
        budget.pace.guess(_seconds_an_image(run))
    return run


def _seconds_an_image(run: Run) -> float:
    """What an image takes in an inversion, by some steps of one that nobody needs."""
    images, device = run.images, run.images.train[0].device
    effort = Effort(steps=0, images_each=run.profile.images_per_class)
    targets = torch.arange(min(run.suspect.n_classes, MOST_TIMED), device=device)
    with run.compute.aside():
        bank = PatchBank.start(len(targets), image_shape(images.train[0]), 0).to(device)
    inversion = Inversion(run.suspect, bank, targets, images, effort)
    return run.budget.timed(inversion.step, run.compute) / (len(targets) * effort.images_each)


class SetupRefused(BadInput):
    """No verdict can be given on this set-up; the message is why, with the mend."""

    def __init__(self, inputs: JobInputs, accuracy: Accuracy | None, reason: str) -> None:
        super().__init__(f"{reason} (--trust-setup goes on all the same)", code="wrong_setup")
        self.inputs, self.accuracy, self.reason = inputs, accuracy, reason


def _right_on(inputs: JobInputs, options: Options, compute: Compute, progress: Progress) -> Accuracy | None:
    """The suspect's own accuracy, said aloud; SetupRefused where no search on this set-up could be believed.

    None where the labels are the suspect's own answers, on which it would always be right.
    """
    with progress.stage("accuracy", 1) as advance:
        accuracy = own_accuracy(inputs.suspect, inputs.data, compute) if inputs.data.labelled else None
        x = as_float(inputs.data.x[stratified(inputs.data.y, GRADIENT_IMAGES)])
        gradient = check_gradient(inputs.suspect, inputs.graph, x)
        advance()
    progress.note(accuracy.in_words() if accuracy else NOT_MEASURED)
    if accuracy and accuracy.warning:
        progress.note(f"warning: {accuracy.warning}")
    reason = accuracy.problem if accuracy else ""
    if not reason and not gradient.ok:
        reason = (
            f"the search follows the suspect's gradient, which agrees with its answers on {gradient.agreement:.0%} of"
            " the images only, so it cannot find a trigger: give the float model that this one was made from"
        )
    if reason and not options.trust_setup:
        raise SetupRefused(inputs, accuracy, reason)
    if reason:
        progress.note(f"warning: {reason}; gone on all the same, as --trust-setup says")
    return accuracy
