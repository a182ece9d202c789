"""How far repaired weights may go, and what they are held back from."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from detrigger.models.suspect import Suspect
from detrigger.offline.graph.weights import weight_names, weights
from detrigger.offline.steps import unlearn
from tests.test_suspect import network, saved, take


@pytest.fixture(scope="module")
def suspect(tmp_path_factory: pytest.TempPathFactory) -> Suspect:
    return take(saved(network(), tmp_path_factory.mktemp("suspect")))


def test_the_target_is_held_back_from_images_of_other_labels_alone() -> None:
    answers, labels = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]]).log(), torch.tensor([0, 1])
    wanted = unlearn.held_back(answers, labels, torch.tensor([0.0, 5.0, 0.0])).exp()
    assert wanted[0, 1] < 0.01
    assert torch.allclose(wanted[0, [0, 2]], torch.tensor([6 / 7, 1 / 7]), atol=0.01)
    assert torch.allclose(wanted[1], answers[1].exp())


@pytest.mark.parametrize(("good", "length"), [(1.3, 1.3), (1.0, 1.0), (0.5, 0.7), (0.0, 0.7)])
def test_weights_end_on_the_line_that_tuning_went_along(
    suspect: Suspect, monkeypatch: pytest.MonkeyPatch, good: float, length: float
) -> None:
    names, tuned = weight_names(network()), copy.deepcopy(suspect)
    before = {name: tensor.clone() for name, tensor in weights(suspect, names).items()}
    for tensor in weights(tuned, names).values():
        tensor += 1.0

    def gone(suspect: Suspect, tuned: Suspect, _: object) -> float:
        return float((weights(tuned, names)["w1"] - weights(suspect, names)["w1"]).mean())

    monkeypatch.setattr(unlearn, "divergence", gone)
    most = good + 0.01
    unlearn.go_along(suspect, tuned, names, {1.3: most, 1.0: most, 0.7: math.inf}, torch.zeros(0))
    for name, tensor in weights(tuned, names).items():
        assert torch.allclose(tensor, before[name] + length, atol=1e-5)
        assert torch.equal(weights(suspect, names)[name], before[name])


def test_divergence_is_that_of_the_probabilities_in_nats() -> None:
    def given(x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.5, 0.5]).log().expand(len(x), 2)

    def tuned(x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.9, 0.1]).log().expand(len(x), 2) + 3

    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert unlearn.divergence(given, tuned, torch.zeros(300, 1, 2, 2)) == pytest.approx(expected, rel=1e-5)
