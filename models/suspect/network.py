"""The suspect as the job works with it."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from detrigger.models.suspect.spec import OnnxSpec


class Suspect(nn.Module):
    """The classifier, split at the feature cut: ``logits = S_b(S_a(x))`` (BTI-DBF, section 3.1).

    ``forward``/``features`` take float images (N, C, H, W) in [0, 1]; the suspect's own mean and std are applied
    inside. Weights carry no gradients and normalisation layers stay in evaluation mode whatever ``train()`` says:
    the official code lets 400 mask steps overwrite the batch-norm statistics of the model that it defends. ``group`` is
    the batch size that its parts are made for, None for any.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: fx.GraphModule,
        head: fx.GraphModule,
        spec: OnnxSpec,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        cut: str,
        n_classes: int,
        group: int | None = None,
    ) -> None:
        super().__init__()
        self.body, self.head, self.spec, self.cut = body, head, spec, cut
        self.n_classes, self.group = n_classes, group
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Suspect:  # noqa: ARG002 - a suspect never trains here
        return super().train(False)

    def features(self, x: Tensor) -> Tensor:
        """S_a: images (N, C, H, W) in [0, 1] to the features at the cut."""
        x = x.flip(1) if self.spec.bgr else x
        x = (x - self.mean) / self.std
        if self.spec.layout == "NHWC":
            x = x.permute(0, 2, 3, 1)
        return self._in_groups(self.body, x)

    def classify(self, features: Tensor) -> Tensor:
        """S_b: features at the cut to logits (N, K) in float32."""
        out = self._head(features)
        return out.clamp_min(1e-12).log() if self.spec.softmax else out

    def answers(self, x: Tensor) -> Tensor:
        """What the graph itself says (N, K): logits, or probabilities where ``spec.softmax`` is true."""
        return self._head(self.features(x))

    def _head(self, features: Tensor) -> Tensor:
        return self._in_groups(self.head, features.float()).float()

    def _in_groups(self, part: fx.GraphModule, x: Tensor) -> Tensor:
        """What ``part`` says to x, in groups of the one size that it takes where it takes no other."""
        if self.group is None:
            whole: Tensor = part(x)
            return whole
        missing = -len(x) % self.group
        filled = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x
        return torch.cat([part(group) for group in filled.split(self.group)])[: len(x)]

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))
