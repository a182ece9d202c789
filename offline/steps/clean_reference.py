"""What the suspect says of the clean training images: the reference that purifier and repaired copy learn to keep."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from detrigger.models.suspect import Suspect
from detrigger.offline.compute import Compute
from detrigger.offline.steps.calibrate import SECOND_MODE
from detrigger.offline.types import Answer

CACHE_BYTES = 1 << 30


class CleanReference:
    """The suspect's features and answers for the clean training images and their mirror images, computed once.

    Features are kept in bfloat16; where they would not fit into ``CACHE_BYTES`` they are computed as needed.

    Clean images that carry the trigger have the target's label and get it from the suspect, too: who learns from them
    learns to keep the trigger. So images of suspected labels are excluded, and those are readmitted whose answers stay
    the same through a defence that has not met them.
    """

    def __init__(self, suspect: Suspect, images: Tensor, labels: Tensor, compute: Compute) -> None:
        self._images = images
        self.labels = torch.cat([labels, labels])
        self.usable = torch.arange(len(self.labels), device=images.device)
        self.excluded = self.usable[:0]
        self._suspect, self._compute = suspect, compute
        self._at_once = min(256, compute.most_at_once(images.shape))
        looks = (self._look(part) for part in self.usable.split(self._at_once))
        features, logits = zip(*looks, strict=True)
        self.log_probabilities = torch.cat(logits).log_softmax(1)
        self.scale = torch.stack([f.float().pow(2).mean() for f in features]).mean()
        small = features[0][0].numel() * 2 * len(self.labels) <= CACHE_BYTES
        self._features = torch.cat(features) if small else None

    def images(self, chosen: Tensor) -> Tensor:
        """The images ``chosen`` (N,), of which the second half of all are mirrored; (N, C, H, W) in [0, 1]."""
        x, mirrored = self._images[chosen % len(self._images)], chosen >= len(self._images)
        x[mirrored] = x[mirrored].flip(3)
        return x

    def features(self, chosen: Tensor) -> Tensor:
        """Features at the cut of the images ``chosen`` (N,), in float32."""
        if self._features is not None:
            return self._features[chosen].float()
        parts = [self._look(part)[0].float() for part in chosen.split(self._at_once)]
        return torch.cat(parts)

    def draw(self, n: int) -> Tensor:
        """Which images a step sees, (n,)."""
        return self.usable[self._compute.randint(len(self.usable), n)]

    def exclude_labels(self, labels: Collection[int]) -> None:
        """Train on no images of these labels for now; unless there are no others."""
        out = torch.isin(self.labels, torch.tensor(list(labels), dtype=torch.long, device=self.labels.device))
        if not out.all():
            self.usable, self.excluded = (~out).nonzero().squeeze(1), out.nonzero().squeeze(1)

    @torch.no_grad()
    def readmit(self, answer: Answer) -> None:
        """Train again on those excluded images whose label keeps most of its confidence in ``answer``."""
        if not len(self.excluded):
            return
        kept = []
        for part in self.excluded.split(self._at_once):
            before = self.log_probabilities[part]
            after = answer(self._compute.channels_last(self.images(part))).log_softmax(1)
            k = before.argmax(1, keepdim=True)
            lost = (before.gather(1, k) - after.gather(1, k)).squeeze(1)
            kept.append(lost / (1 + lost.clamp_min(0)) <= SECOND_MODE)
        back = torch.cat(kept)
        self.usable, self.excluded = torch.cat([self.usable, self.excluded[back]]), self.excluded[~back]

    @torch.no_grad()
    def _look(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        with self._compute.autocast():
            features = self._suspect.features(self._compute.channels_last(self.images(chosen)))
        return features.bfloat16(), self._suspect.classify(features)
