"""The suspect as the job works with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detrigger.models.suspect.spec import OnnxSpec


class Suspect(nn.Module):
    """The classifier, split at the feature cut: ``logits = S_b(S_a(x))`` (BTI-DBF, section 3.1).

    ``forward``/``features`` take float images (N, C, H, W) in [0, 1]; the suspect's own mean and std are applied
    inside. Weights carry no gradients and normalisation layers stay in evaluation mode whatever ``train()`` says:
    the official code lets 400 mask steps overwrite the batch-norm statistics of the model that it defends.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module,
        spec: OnnxSpec,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        cut: str,
        n_classes: int,
    ) -> None:
        super().__init__()
        self.body, self.head, self.spec, self.cut = body, head, spec, cut
        self.n_classes = n_classes
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Suspect:  # noqa: ARG002 - a suspect never trains here
        return super().train(False)

    def features(self, x: Tensor) -> Tensor:
        """S_a: images (N, C, H, W) in [0, 1] to the features at the cut."""
        x = (x - self.mean) / self.std
        if self.spec.layout == "NHWC":
            x = x.permute(0, 2, 3, 1)
        features: Tensor = self.body(x)
        return features

    def classify(self, features: Tensor) -> Tensor:
        """S_b: features at the cut to logits (N, K) in float32."""
        out: Tensor = self.head(features.float()).float()
        return out.clamp_min(1e-12).log() if self.spec.softmax else out

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))
