"""Step 3: decouple the benign features (BTI-DBF, section 3.1), and what Eq. 2 makes of them.

The paper's mask m over the features at the cut solves

    min_m  L(S_b(S_a(x) * m), y)  -  L(S_b(S_a(x) * (1 - m)), y),     m in [0, 1]                    (Eq. 1)

and its generator then leaves the benign features alone and changes the others:

    min_theta  |S_a(x) * m - S_a(G(x)) * m|  -  |S_a(x) * (1 - m) - S_a(G(x)) * (1 - m)|             (Eq. 2)
    subject to |x - G(x)| <= tau

Corrections. (a) m = 1 everywhere nearly solves Eq. 1 (mean 0.995 on a well-trained network): a budget holds the
mean of m at most at ``BUDGET``. (b) The second term of Eq. 1 has no lower end and teaches the complement to be
confidently wrong; here the complement has to know nothing, i.e. answer uniformly, which is bounded. (c) Features
are computed once: the mask never touches S_a, so 400 steps cost what a linear head costs. (d) The second term of
Eq. 2 is clipped, so that it cannot buy any change of the benign features. (e) tau holds per image, in pixels, by
construction of G.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detrigger.models.suspect import Suspect
from detrigger.offline.inputs.split import CleanImages
from detrigger.offline.steps.invert import Effort
from detrigger.offline.triggers.base import image_shape
from detrigger.offline.triggers.generator import GeneratorBank

BUDGET = 0.5
"""Largest mean of the benign mask."""


def benign_mask(suspect: Suspect, features: Tensor, images: CleanImages, effort: Effort) -> Tensor:
    """The benign mask m, one number in [0, 1] a feature, shaped as one image's features.

    Args:
        features: (N, ...) of the training ``images`` at the cut.
        effort: its ``images_each`` images share a step.
    """
    labels, compute = images.train[1], images.compute
    raw = torch.zeros(features.shape[1:], device=features.device, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.1)
    for _ in range(effort.steps):
        chosen = compute.randint(len(features), min(effort.images_each, len(features)))
        mask, given = raw.sigmoid(), features[chosen].float()
        kept = suspect.classify(given * mask)
        left = suspect.classify(given * (1 - mask)).log_softmax(1)
        budget = 100 * (mask.mean() - BUDGET).relu() ** 2
        loss = F.cross_entropy(kept, labels[chosen]) - left.mean() + budget
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        effort.advance()
    return raw.detach().sigmoid()


def decoupled_generator(
    suspect: Suspect, mask: Tensor, features: Tensor, images: CleanImages, effort: Effort
) -> GeneratorBank:
    """Eq. 2: a generator that knows no target label. ``features`` are those of the training ``images`` at the cut."""
    x, compute = images.train[0], images.compute
    bank = GeneratorBank.start(1, image_shape(x), effort.seed).to(x.device)
    optimizer = torch.optim.Adam(bank.parameters(), lr=bank.learning_rate)
    scale = features.float().pow(2).mean().sqrt()
    for _ in range(effort.steps):
        chosen = compute.randint(len(x), effort.images_each)
        with compute.autocast():
            seen = suspect.features(compute.channels_last(bank(x[chosen], chosen)))
        change = (seen.float() - features[chosen].float()) / scale
        benign = (change * mask).pow(2).mean()
        other = (change * (1 - mask)).pow(2).mean()
        loss = benign - other.clamp(max=4.0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        effort.advance()
    return bank.pick(torch.arange(1))


@torch.no_grad()
def votes(suspect: Suspect, bank: GeneratorBank, images: CleanImages) -> Tensor:
    """(K,) share of the held-out images of other classes that the generator sends to each label.

    The paper takes the largest as the target label. Run on its own it names a wrong class more often than not
    (independent reproductions), so here it is one line of evidence and never decides.
    """
    x, labels = images.held_out
    answers = []
    for part in x.split(256):
        with images.compute.autocast():
            answers.append(
                suspect(
                    images.compute.channels_last(bank(part, torch.zeros(len(part), dtype=torch.long)))
                ).argmax(1)
            )
    given = torch.cat(answers)
    k = suspect.n_classes
    return torch.stack([(given[labels != c] == c).float().mean() for c in range(k)])
