"""One run of a job: what all of its steps share."""

from __future__ import annotations

import time
from dataclasses import dataclass

from detrigger.models.suspect import Suspect
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.load import JobInputs, Options, load
from detrigger.offline.inputs.profile import PROFILES, Profile, at_size
from detrigger.offline.inputs.split import Split, split_data
from detrigger.offline.progress import Progress
from detrigger.offline.steps.clean_reference import CleanReference


@dataclass(frozen=True, kw_only=True)
class Run:
    """The suspect, the clean images by share with the suspect's reference answers, and how to work.

    ``started`` is the clock (``time.monotonic``) when the job began, in seconds.
    """

    options: Options
    inputs: JobInputs
    images: Split
    reference: CleanReference
    profile: Profile
    compute: Compute
    progress: Progress
    started: float

    @property
    def suspect(self) -> Suspect:
        """The imported classifier."""
        return self.inputs.suspect

    @property
    def seed(self) -> int:
        """Of everything random."""
        return self.options.seed

    def seconds(self) -> float:
        """How long the job has taken so far."""
        return time.monotonic() - self.started


def begin(options: Options, compute: Compute, progress: Progress, profile: Profile | None = None) -> Run:
    """Load, check and split what the user gave. BadInput for anything wrong with it.

    ``profile`` stands in for the named one.
    """
    started = time.monotonic()
    inputs = load(options, compute, progress)
    images = split_data(inputs.data, options.seed, compute)
    return Run(
        options=options,
        inputs=inputs,
        images=images,
        reference=CleanReference(inputs.suspect, *images.train, compute),
        profile=at_size(profile or PROFILES[options.profile], inputs.preprocess.size),
        compute=compute,
        progress=progress,
        started=started,
    )
