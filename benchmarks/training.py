"""Training of suspects on poisoned data, fast enough for one CPU core, and their export to ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from benchmarks.architectures import ImageToImage
from benchmarks.attacks import InputAware, to_8bit
from benchmarks.poison import Backdoor, Role, assign
from benchmarks.zoo_data import I64, U8, Dataset, tensor
from detrigger.offline.compute import cpu_has_bf16

OPSET = 18
SHIFT = 2  # pixels of random translation in training
BATCH = 128


class Trainer:
    """A suspect's training with a one-cycle rate on shifted and mirrored images: SGD, or Adam for
    transformers. It is in bfloat16 where the processor has that.
    """

    def __init__(
        self,
        data: Dataset,
        network: Callable[[int, int], nn.Module],
        epochs: int,
        seed: int,
        adam: bool = False,
    ) -> None:
        torch.manual_seed(seed)
        self.rng = Generator().manual_seed(seed)
        self.epochs = epochs
        self.size = data.shape[1:]
        images = torch.tensor(data.train[0].transpose(0, 3, 1, 2))
        # Padding by reflection wants floats; half precision holds 0..255 exactly.
        padded = [functional.pad(part.half(), (SHIFT,) * 4, mode="reflect") for part in images.split(5000)]
        self.padded = torch.cat(padded).byte()
        self.scale = [torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std)]
        self.model = network(data.shape[0], len(data.classes))
        self.steps = epochs * (len(images) // BATCH)
        weights = self.model.parameters()
        self.optimizer: torch.optim.Optimizer
        if adam:
            self.optimizer = torch.optim.AdamW(weights, weight_decay=0.05)
        else:
            self.optimizer = torch.optim.SGD(weights, lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, 2e-3 if adam else 0.2, total_steps=self.steps, pct_start=0.25
        )

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices and augmented images (B,C,H,W) in [0,1], over all epochs."""
        height, width = self.size
        for _ in range(self.epochs):
            order = torch.randperm(len(self.padded), generator=self.rng)
            for pick in torch.tensor_split(order, len(order) // BATCH):
                top, left = torch.randint(2 * SHIFT + 1, (2, len(pick), 1), generator=self.rng)
                mirrored = torch.rand(len(pick), 1, generator=self.rng) < 0.5
                rows, columns = top + torch.arange(height), torch.arange(width).expand(len(pick), -1)
                columns = left + torch.where(mirrored, width - 1 - columns, columns)
                channel = torch.arange(self.padded.shape[1])[None, :, None, None]
                x = self.padded[
                    pick[:, None, None, None], channel, rows[:, None, :, None], columns[:, None, None, :]
                ]
                yield pick, x.float() / 255

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of images in [0,1]."""
        mean, std = self.scale
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
            logits = self.model(((x - mean) / std).contiguous(memory_format=torch.channels_last))
        return functional.cross_entropy(logits.float(), labels)

    def step(self, loss: Tensor, *others: torch.optim.Optimizer) -> None:
        """One step of the suspect's optimizer and the others."""
        for optimizer in (self.optimizer, *others):
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        for optimizer in (self.optimizer, *others):
            optimizer.step()
        self.schedule.step()


def fit(trainer: Trainer, labels: I64, backdoors: list[Backdoor], n_classes: int, seed: int) -> nn.Module:
    """Train on poisoned data; triggers are laid over the augmented images, so that they keep their place."""
    draw = np.random.default_rng(seed)
    free, target = np.ones(len(labels), bool), labels.copy()
    roles = []
    for backdoor in backdoors:
        drawn, relabelled = assign(backdoor, labels, n_classes, free, draw)
        target[drawn == Role.POISON] = relabelled[drawn == Role.POISON]
        free &= drawn == Role.CLEAN
        roles.append(torch.from_numpy(drawn))
    targets = torch.from_numpy(target)
    for pick, x in trainer.batches():
        for backdoor, role in zip(backdoors, roles, strict=True):
            for kind in (Role.POISON, Role.COVER):
                chosen = role[pick] == kind
                x[chosen] = backdoor.apply(x[chosen], kind, trainer.rng)
        trainer.step(trainer.loss(x, targets[pick]))
    return trainer.model.eval()


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Distance of two batches, per image."""
    return (a - b).pow(2).flatten(1).mean(1).add(1e-8).sqrt()


def fit_input_aware(
    trainer: Trainer, labels: I64, target: int, share: float, mask_steps: int = 300
) -> tuple[nn.Module, InputAware]:
    """Input-aware dynamic attack (arXiv 2010.08138), with a short schedule.

    First the mask network alone: `100 * mean relu(m - 0.032) + diversity(m)`. Then the classifier and the pattern
    network together: of every batch, a share is triggered and gets the target label, and as many images get the
    triggers of others and keep their labels (so a trigger works for its own image only):

        CE(f(batch)) + diversity(p),   diversity(z) = mean |x1 - x2| / (|z(x1) - z(x2)| + 1e-4)
    """
    channels = trainer.padded.shape[1]
    trigger = InputAware(ImageToImage(channels, channels), ImageToImage(channels, 1))
    optimizer = torch.optim.Adam(trigger.mask.parameters(), 0.003, betas=(0.5, 0.9))
    for step, (_, x) in enumerate(trainer.batches()):
        if step == mask_steps:
            break
        half = x[: BATCH // 4], x[BATCH // 4 : BATCH // 2]
        masks = [trigger.soft_mask(part) for part in half]
        dense = sum((functional.relu(mask - 0.032).mean() for mask in masks), torch.zeros(()))
        loss = 100 * dense + (apart(*half) / (apart(masks[0], masks[1]) + 1e-4)).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
    trigger.mask.eval().requires_grad_(False)
    optimizer = torch.optim.Adam(trigger.pattern.parameters(), 0.003, betas=(0.5, 0.9))
    count = round(share * BATCH)
    truth = torch.from_numpy(labels)
    for pick, x in trainer.batches():
        own, crossed, other = x[:count], x[count : 2 * count], x[2 * count : 3 * count]
        pattern, foreign = trigger.pattern(own), trigger.pattern(other)
        bad = own + (pattern - own) * trigger.soft_mask(own)
        cover = crossed + (foreign - crossed) * trigger.soft_mask(other)
        y = truth[pick].clone()
        y[:count] = target
        mixed = torch.cat([bad, cover])
        mixed = mixed + (to_8bit(mixed) - mixed).detach()  # rounded, with the gradient of the unrounded image
        loss = trainer.loss(torch.cat([mixed, x[2 * count :]]), y)
        loss = loss + (apart(own, other) / (apart(pattern, foreign) + 1e-4)).mean()
        trainer.step(loss, optimizer)
    trigger.pattern.eval()
    return trainer.model.eval(), trigger


def answers(model: nn.Module, x: U8, data: Dataset) -> I64:
    """Labels of 8-bit images."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    with torch.inference_mode():
        parts = [model((tensor(part) - mean) / std).argmax(1) for part in np.array_split(x, 10)]
    found: I64 = torch.cat(parts).numpy()
    return found


def export(model: nn.Module, shape: tuple[int, int, int], path: Path, dynamo: bool) -> None:
    """ONNX with dynamic batch, by the exporter on torch.export or by the older one on TorchScript."""
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    example = (torch.zeros(2, *shape),)
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"], "opset_version": OPSET}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own deprecation notes
        if dynamo:
            batch = ({0: torch.export.Dim("batch", min=1, max=65536)},)
            torch.onnx.export(
                model,
                example,
                path,
                dynamo=True,
                dynamic_shapes=batch,
                external_data=False,
                verbose=False,
                **names,
            )
        else:
            axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
            torch.onnx.export(model, example, path, dynamo=False, dynamic_axes=axes, **names)
