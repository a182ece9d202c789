"""Trigger families and synthetic triggers: what every one of them must keep."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detrigger.models.protected import OPSET
from detrigger.offline.graph.to_onnx import run, to_onnx
from detrigger.offline.triggers import UNIVERSAL, synthetic
from detrigger.offline.triggers.base import Jitter, Kind, TriggerBank, Triggered, shift
from detrigger.offline.triggers.generator import BOUND, GeneratorBank
from detrigger.offline.triggers.kernel import KernelBank

SHAPES = st.tuples(st.sampled_from([1, 3]), st.integers(8, 33), st.integers(8, 33))


def batch(n: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99), family=st.sampled_from(UNIVERSAL))
def test_banks_keep_shape_and_range(
    shape: tuple[int, int, int], seed: int, family: type[TriggerBank]
) -> None:
    bank, x = family.start(3, shape, seed), batch(5, shape, seed)
    which = torch.tensor([0, 1, 2, 1, 0])
    for jitter in (None, Jitter.draw(5, 2, torch.Generator().manual_seed(seed))):
        out = bank(x, which, jitter)
        assert out.shape == x.shape
        assert float(out.detach().min()) >= -1e-5
        assert float(out.detach().max()) <= 1 + 1e-5
    assert bank.cost().shape == (3,)
    assert bool((bank.cost() > 0).all())


@pytest.mark.parametrize("family", UNIVERSAL)
def test_no_strength_is_no_trigger(family: type[TriggerBank]) -> None:
    bank, x = family.start(2, (3, 16, 16), 1), batch(2, (3, 16, 16))
    none = Jitter(torch.zeros(2), torch.zeros(2, 2, dtype=torch.long))
    torch.testing.assert_close(bank(x, torch.arange(2), none), x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", UNIVERSAL)
def test_a_picked_candidate_is_the_same_trigger_without_gradients(family: type[TriggerBank]) -> None:
    bank, x = family.start(4, (3, 16, 16), 1), batch(2, (3, 16, 16))
    picked = bank.pick(torch.tensor([2]))
    assert len(picked) == 1
    assert not any(p.requires_grad for p in picked.parameters())
    torch.testing.assert_close(
        picked(x, torch.zeros(2, dtype=torch.long)), bank(x, torch.tensor([2, 2])).detach()
    )


@pytest.mark.parametrize("family", UNIVERSAL)
def test_every_parameter_gets_a_gradient(family: type[TriggerBank]) -> None:
    bank, x = family.start(2, (3, 16, 16), 1), batch(2, (3, 16, 16))
    (bank(x, torch.arange(2)).square().sum() + bank.cost().sum()).backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in bank.parameters())


def test_a_kernel_leaves_even_areas_alone_and_can_be_a_blur() -> None:
    bank = KernelBank.start(2, (3, 16, 16), 1)
    even = torch.full((2, 3, 16, 16), 0.3)
    torch.testing.assert_close(bank(even, torch.arange(2)).detach(), even)
    with torch.no_grad():
        bank.change.zero_()
        bank.change[1, 1:4, 1:4] = 1 / 9
        bank.change[1, 2, 2] -= 1
    x = batch(1, (3, 16, 16))
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1)
    out = bank(x, torch.tensor([1])).detach()
    torch.testing.assert_close(out[..., 1:-1, 1:-1], blurred)
    torch.testing.assert_close(bank.cost().detach(), torch.tensor([0.0, 8 / 9]))


def test_the_generator_is_bounded_for_every_image() -> None:
    bank, x = GeneratorBank.start(1, (3, 20, 28), 0), batch(6, (3, 20, 28))
    with torch.no_grad():
        bank.network.unet.last.weight.mul_(1000)
        change = bank(x, torch.zeros(6, dtype=torch.long)) - x
    assert float(change.pow(2).mean((1, 2, 3)).sqrt().max()) <= BOUND + 1e-5


@settings(max_examples=15, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99), kind=st.sampled_from(list(synthetic.KINDS)))
def test_synthetic_triggers_change_images_within_range(
    shape: tuple[int, int, int], seed: int, kind: Kind
) -> None:
    x = batch(8, shape, seed)
    out = kind(x, torch.Generator().manual_seed(seed))
    assert out.shape == x.shape
    assert float(out.min()) >= -1e-5
    assert float(out.max()) <= 1 + 1e-5
    assert float((out - x).abs().mean()) > 1e-4


@given(n=st.integers(0, 20))
@settings(max_examples=10, deadline=None)
def test_synthetic_triggers_for_any_number_of_images(n: int) -> None:
    assert synthetic.draw(batch(n, (3, 16, 16)), torch.Generator().manual_seed(0)).shape == (n, 3, 16, 16)


@pytest.mark.parametrize("heavy", [None, 2])
def test_kinds_of_synthetic_triggers_are_drawn_as_weighted(
    heavy: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = torch.zeros(8)

    def numbered(i: int) -> Kind:
        def kind(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
            drawn[i] += len(x)
            return x

        return kind

    monkeypatch.setattr(synthetic, "KINDS", {numbered(i): 1.0 + (i == 0) for i in range(8)})
    weights = torch.tensor(list(synthetic.KINDS.values()))
    if heavy is not None:
        weights[heavy] = 9
    g = torch.Generator().manual_seed(0)
    for _ in range(100):
        synthetic.draw(batch(8, (3, 8, 8)), g, None if heavy is None else weights)
    torch.testing.assert_close(drawn / 800, weights / weights.sum(), atol=0.05, rtol=0)


def test_the_same_seed_draws_the_same_triggers() -> None:
    x = batch(12, (3, 16, 16))
    first, second = (synthetic.draw(x, torch.Generator().manual_seed(5)) for _ in range(2))
    torch.testing.assert_close(first, second)


def test_shift_moves_each_field_by_its_own_offset() -> None:
    fields = torch.zeros(2, 1, 5, 5)
    fields[:, 0, 2, 2] = 1
    moved = shift(fields, torch.tensor([[1, 0], [0, -2]]))
    assert moved[0, 0, 3, 2] == 1
    assert moved[1, 0, 2, 0] == 1
    assert moved.sum() == 2


def test_half_of_the_copies_stay_as_found() -> None:
    jitter = Jitter.draw(400, 2, torch.Generator().manual_seed(0))
    as_found = (jitter.strength == 1) & (jitter.offsets == 0).all(1)
    assert 0.4 < float(as_found.float().mean()) < 0.65


@pytest.mark.parametrize(
    ("strongest", "moved", "stay"), [(1.0, (0.6, 1.1), (1.0, 1.0)), (2.5, (0.6, 1.1), (1.0, 2.5))]
)
def test_moved_copies_are_mostly_weaker_and_those_in_place_as_strong_or_stronger(
    strongest: float, moved: tuple[float, float], stay: tuple[float, float]
) -> None:
    jitter = Jitter.draw(4000, 4, torch.Generator().manual_seed(0), strongest)
    still = (jitter.offsets == 0).all(1)
    assert int(jitter.offsets.min()) == -4
    assert int(jitter.offsets.max()) == 4
    for copies, (least, most) in ((jitter.strength[~still], moved), (jitter.strength[still], stay)):
        inside = copies[(copies >= least) & (copies <= most)]
        assert len(inside) > 0.95 * len(copies)  # one in 81 of the moved ones stays where it is
        assert float(inside.min()) == pytest.approx(least, abs=0.01)
        assert float(inside.max()) == pytest.approx(most, abs=0.03)
        middle = (least * most) ** 0.5 if least == 1 else (least + most) / 2
        assert float(inside.median()) == pytest.approx(middle, abs=0.05)


def test_without_copies_as_found_all_are_moved() -> None:
    jitter = Jitter.draw(4000, 4, torch.Generator().manual_seed(0), None)
    assert float((jitter.offsets == 0).all(1).float().mean()) == pytest.approx(1 / 81, abs=0.01)
    assert float(jitter.strength.max()) <= 1.1


@pytest.mark.parametrize(
    "family",
    [UNIVERSAL[0], *(pytest.param(it, marks=pytest.mark.slow) for it in (*UNIVERSAL[1:], GeneratorBank))],
)
def test_an_exported_trigger_takes_any_number_of_images(family: type[TriggerBank]) -> None:
    shape = (3, 16, 16)
    bank = family.start(1, shape, 0)
    model = to_onnx(Triggered(bank), shape, "triggered", OPSET)
    for count in (1, 3):
        x = batch(count, shape)
        (out,) = run(model, x.numpy(), ["triggered"])
        expected = bank(x, torch.zeros(count, dtype=torch.long)).detach()
        torch.testing.assert_close(torch.from_numpy(out), expected, atol=1e-4, rtol=0)
