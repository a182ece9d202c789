"""The benchmark's attacks do what their formulas say."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from benchmarks.architectures import ImageToImage
from benchmarks.attacks import (
    Blend,
    Blur,
    Encoded,
    Filter,
    Frequency,
    InputAware,
    OneOf,
    Patch,
    PieceBlend,
    RandomPatch,
    Residual,
    Sharpen,
    Sinusoid,
    Squeeze,
    Together,
    Trigger,
    Warp,
    load_trigger,
    store_trigger,
    to_8bit,
)
from benchmarks.poison import Backdoor, Role, assign, target_labels

SIDE = 16
brisk = settings(deadline=None, max_examples=30)  # the first call of an operator is slow on any machine


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def images(channels: int = 3, count: int = 4, seed: int = 0) -> Tensor:
    """8-bit images in [0,1], black and white pixels among them."""
    x = torch.rand(count, channels, SIDE, SIDE, generator=rng(seed)) * 1.4 - 0.2
    return to_8bit(x.clamp(0, 1))


def everything(channels: int) -> dict[str, Trigger]:
    """A trigger of each kind for images of so many channels."""
    pattern = torch.rand(channels, 3, 3, generator=rng(1))
    picture = torch.rand(channels, SIDE, SIDE, generator=rng(2))
    warp = Warp.draw((SIDE, SIDE), rng(3))
    return {
        "patch": Patch(pattern, bottom=1, right=2),
        "faint patch": Patch(pattern, opacity=0.4),
        "random patch": RandomPatch(pattern),
        "blend": Blend(picture),
        "pieces": PieceBlend(picture),
        "warp": warp,
        "noisy warp": Warp(warp.grid, noise=1.0),
        "sinusoid": Sinusoid(),
        "frequency": Frequency(),
        "filter": Filter(),
        "blur": Blur(),
        "sharpen": Sharpen(),
        "encoded": Encoded.draw(channels, rng(4)),
        "squeeze": Squeeze(),
        "residual": Residual(Squeeze(4)),
        "one of": OneOf((Blend(picture), Patch(pattern))),
        "together": Together((Blend(picture), Patch(pattern))),
        "input-aware": InputAware(ImageToImage(channels, channels).eval(), ImageToImage(channels, 1).eval()),
    }


@pytest.mark.parametrize("kind", everything(3))
@brisk
@given(channels=st.sampled_from([1, 3]), count=st.integers(1, 5), seed=st.integers(0, 99))
def test_triggered_images_are_images(kind: str, channels: int, count: int, seed: int) -> None:
    x = images(channels, count, seed)
    before = x.clone()
    with torch.inference_mode():
        out = everything(channels)[kind](x, rng(seed))
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(x, before), "the caller's images were changed in place"
    assert not torch.equal(to_8bit(out), x), "nothing is left of the trigger in 8 bits"


@brisk
@given(seed=st.integers(0, 99), kind=st.sampled_from(sorted(everything(3))))
def test_the_seed_alone_decides(seed: int, kind: str) -> None:
    trigger = everything(3)[kind]
    with torch.inference_mode():
        assert torch.equal(trigger(images(), rng(seed)), trigger(images(), rng(seed)))


@brisk
@given(x=st.lists(st.floats(-1, 2), min_size=1, max_size=20))
def test_8bit_images_are_steps_of_one_255th(x: list[float]) -> None:
    out = to_8bit(torch.tensor(x))
    assert torch.equal(to_8bit(out), out)
    torch.testing.assert_close((out * 255).round() / 255, out)
    assert (out - torch.tensor(x).clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6


@brisk
@given(bottom=st.integers(0, SIDE - 3), right=st.integers(0, SIDE - 3))
def test_a_patch_changes_only_its_place(bottom: int, right: int) -> None:
    x, pattern = images(), torch.rand(3, 3, 3, generator=rng(5))
    out = Patch(pattern, bottom, right)(x, rng())
    rows = slice(SIDE - bottom - 3, SIDE - bottom)
    columns = slice(SIDE - right - 3, SIDE - right)
    assert torch.equal(out[:, :, rows, columns], pattern.expand(len(x), -1, -1, -1))
    out[:, :, rows, columns] = x[:, :, rows, columns]
    assert torch.equal(out, x)


def test_a_frequency_trigger_adds_to_two_coefficients_of_the_transform() -> None:
    x = torch.full((1, 1, SIDE, SIDE), 0.5)
    change = (Frequency(0.2)(x, rng()) - x)[0, 0]
    k, n = torch.arange(SIDE).view(-1, 1), torch.arange(SIDE)
    cosines = math.sqrt(2 / SIDE) * torch.cos(math.pi * (n + 0.5) * k / SIDE)
    coefficients = cosines @ change @ cosines.T
    expected = torch.zeros(SIDE, SIDE)
    for place in (SIDE // 2 - 1, SIDE - 1):
        expected[place, place] = 0.2
    torch.testing.assert_close(coefficients, expected, atol=1e-5, rtol=0)


@brisk
@given(seed=st.integers(0, 99))
def test_a_filter_knows_no_place_and_keeps_the_order_of_tones(seed: int) -> None:
    x = images(seed=seed)
    flipped = Filter()(x.flip(3), rng()).flip(3)
    assert torch.equal(flipped, Filter()(x, rng()))
    tones = torch.linspace(0, 1, SIDE * SIDE).view(1, 1, SIDE, SIDE).expand(1, 3, -1, -1)
    assert (Filter()(tones, rng()).flatten(2).diff() > 0).all()


def test_a_blur_keeps_flat_images_and_spreads_a_point() -> None:
    flat = torch.full((1, 3, SIDE, SIDE), 0.3)
    torch.testing.assert_close(Blur()(flat, rng()), flat)
    point = torch.zeros(1, 1, SIDE, SIDE)
    point[..., 5, 7] = 0.9
    out = Blur()(point, rng())
    torch.testing.assert_close(out[..., 4:7, 6:9], torch.full((1, 1, 3, 3), 0.1))
    assert int((out > 0).sum()) == 9


def test_sharpening_undoes_nothing_of_flat_images_and_raises_edges() -> None:
    flat = torch.full((1, 3, SIDE, SIDE), 0.3)
    torch.testing.assert_close(Sharpen()(flat, rng()), flat)
    edge = flat.clone()
    edge[..., SIDE // 2 :] = 0.6
    out = Sharpen()(edge, rng())
    assert float(out[..., SIDE // 2 - 1].max()) < 0.3
    assert float(out[..., SIDE // 2].min()) > 0.6


def test_encoded_textures_are_faint_and_follow_from_the_image() -> None:
    trigger = Encoded.draw(3, rng())
    x = torch.rand(2, 3, SIDE, SIDE, generator=rng(1)) * 0.6 + 0.2
    change = trigger(x, rng()) - x
    assert float(change.abs().max()) <= trigger.amount + 1e-6
    assert float(change.abs().mean()) > 0.5 * trigger.amount
    assert float((change[0] - change[1]).abs().mean()) > 0.5 * trigger.amount


def test_a_random_patch_is_whole_and_wanders() -> None:
    x = torch.zeros(64, 3, SIDE, SIDE)
    out = RandomPatch(torch.ones(3, 4, 4))(x, rng())
    assert torch.equal(out.sum((1, 2, 3)), torch.full((64,), 3 * 16.0))
    assert len({tuple(image[0].nonzero()[0].tolist()) for image in out}) > 20


@brisk
@given(opacity=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_blended_images_lie_between_image_and_picture(opacity: float, seed: int) -> None:
    x, picture = images(seed=seed), torch.rand(3, SIDE, SIDE, generator=rng(seed))
    out = Blend(picture, opacity)(x, rng())
    torch.testing.assert_close(out - x, opacity * (picture - x))


def test_adaptive_blend_shows_half_of_the_pieces() -> None:
    picture = torch.ones(3, SIDE, SIDE)
    out = PieceBlend(picture, opacity=0.15, pieces=4)(torch.zeros(32, 3, SIDE, SIDE), rng())
    pieces = out.unfold(2, 4, 4).unfold(3, 4, 4)[:, 0].flatten(1, 2).flatten(2)
    torch.testing.assert_close(out.unique(), torch.tensor([0.0, 0.15]))
    assert torch.equal(pieces.amin(-1), pieces.amax(-1)), "a piece is shown in part"
    assert torch.equal((pieces[..., 0] > 0).sum(1), torch.full((32,), 8))
    assert len(out.unique(dim=0)) > 20


@brisk
@given(seed=st.integers(0, 99))
def test_the_warp_is_the_same_for_every_image_and_survives_storage(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    warp, x = Warp.draw((SIDE, SIDE), rng(seed)), images(seed=seed)
    together = warp(x, rng(1))
    for image, alone in zip(x, together, strict=True):
        torch.testing.assert_close(warp(image[None], rng(2))[0], alone)
    path = tmp_path_factory.mktemp("warp") / "trigger.npz"
    store_trigger(warp, path)
    assert torch.equal(load_trigger(path)(x, rng(3)), together)


@brisk
@given(seed=st.integers(0, 99), strength=st.floats(0, 1))
def test_the_warp_moves_pixels_by_its_strength_and_never_outside(seed: int, strength: float) -> None:
    still, warp = (Warp.draw((SIDE, SIDE), rng(seed), strength=s) for s in (0.0, strength))
    x = images()
    torch.testing.assert_close(still(x, rng()), x, atol=1e-4, rtol=0)
    assert warp.grid.abs().max() <= 1
    # The control points move by `strength` pixel halves on average; bicubic interpolation overshoots little.
    assert (warp.grid - still.grid).abs().mean() <= 1.5 * strength / SIDE


def test_noise_mode_warps_every_image_differently() -> None:
    warp = Warp.draw((SIDE, SIDE), rng())
    x = images(count=1).expand(2, -1, -1, -1)
    noisy = Warp(warp.grid, noise=1.0)(x, rng())
    assert not torch.equal(noisy[0], noisy[1])


@brisk
@given(amplitude=st.floats(0.01, 0.4), frequency=st.integers(1, 8))
def test_the_sinusoid_is_its_formula(amplitude: float, frequency: int) -> None:
    x = images()
    out = Sinusoid(amplitude, frequency)(x, rng())
    for column in range(SIDE):
        wave = amplitude * math.sin(2 * math.pi * column * frequency / SIDE)
        torch.testing.assert_close(out[..., column], (x[..., column] + wave).clamp(0, 1))


@brisk
@given(levels=st.integers(2, 32))
def test_squeezed_images_have_so_many_grey_levels(levels: int) -> None:
    ramp = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
    out = Squeeze(levels)(ramp, rng())
    assert len(out.unique()) == levels
    assert (out - ramp).abs().max() <= 0.5 / (levels - 1) + 1e-6
    assert torch.equal(Squeeze(levels)(out, rng()), out)


def test_cover_images_of_bpp_carry_the_change_of_another_image() -> None:
    x, trigger = images() * 0.5 + 0.25, Squeeze(8)
    change = trigger(x, rng()) - x
    torch.testing.assert_close(Residual(trigger)(x, rng()) - x, change.roll(1, 0))


def test_adaptive_patch_gives_every_image_one_of_its_triggers() -> None:
    x, patterns = torch.zeros(64, 3, SIDE, SIDE), [torch.full((3, 2, 2), value) for value in (0.5, 1.0)]
    out = OneOf(tuple(Patch(pattern) for pattern in patterns))(x, rng())
    assert set(out.amax((1, 2, 3)).tolist()) == {0.5, 1.0}


def test_the_input_aware_trigger_is_another_for_every_image() -> None:
    trigger = everything(3)["input-aware"]
    x = images()
    with torch.inference_mode():
        change = trigger(x, rng()) - x
    assert not torch.allclose(change[0], change[1], atol=1e-3)


@pytest.mark.parametrize("kind", ["patch", "random patch", "blend", "warp", "sinusoid", "squeeze"])
def test_a_stored_trigger_is_the_same_trigger(kind: str, tmp_path: Path) -> None:
    trigger = everything(3)[kind]
    store_trigger(trigger, tmp_path / "trigger.npz")  # type: ignore[arg-type]
    again = load_trigger(tmp_path / "trigger.npz")
    assert type(again) is type(trigger)
    assert torch.equal(again(images(), rng(7)), trigger(images(), rng(7)))


def test_an_unknown_kind_of_trigger_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "trigger.npz", kind="Hello")
    with pytest.raises(ValueError, match="Hello"):
        load_trigger(tmp_path / "trigger.npz")


@brisk
@given(labels=st.lists(st.integers(0, 9), min_size=1))
def test_all_to_all_wants_the_next_label(labels: list[int]) -> None:
    y = np.array(labels, np.int64)
    wanted = target_labels(y, None, 10)
    assert ((wanted - y) % 10 == 1).all()
    assert wanted.max() < 10
    assert (target_labels(y, 3, 10) == 3).all()


@brisk
@given(
    target=st.sampled_from([None, 0, 4]),
    poison=st.floats(0, 0.5),
    cover=st.floats(0, 0.3),
    seed=st.integers(0, 99),
)
def test_the_rates_are_kept_and_only_poisoned_images_change_label(
    target: int | None, poison: float, cover: float, seed: int
) -> None:
    y = np.repeat(np.arange(5), 40)
    free = np.ones(len(y), bool)
    backdoor = Backdoor(Sinusoid(), target, poison, cover)
    roles, labels = assign(backdoor, y, 5, free, np.random.default_rng(seed))
    assert (roles == Role.POISON).sum() == round(poison * len(y))
    assert (roles == Role.COVER).sum() == round(cover * len(y))
    poisoned = roles == Role.POISON
    assert (labels[~poisoned] == y[~poisoned]).all()
    assert (labels[poisoned] == target_labels(y, target, 5)[poisoned]).all()
    assert (y[poisoned] != labels[poisoned]).all(), "images of the target's class teach nothing"


@brisk
@given(rate=st.floats(0, 0.2), seed=st.integers(0, 99))
def test_a_clean_label_attack_never_changes_a_label(rate: float, seed: int) -> None:
    y = np.repeat(np.arange(5), 40)
    backdoor = Backdoor(Sinusoid(), 2, rate, clean_label=True)
    roles, labels = assign(backdoor, y, 5, np.ones(len(y), bool), np.random.default_rng(seed))
    assert (labels == y).all()
    assert (y[roles == Role.POISON] == 2).all()
    assert (roles == Role.POISON).sum() == round(rate * len(y))


@pytest.mark.parametrize(("poison", "cover"), [(0.3, 0.0), (0.1, 0.95)])
def test_more_than_there_is_cannot_be_poisoned(poison: float, cover: float) -> None:
    y = np.repeat(np.arange(5), 40)
    backdoor = Backdoor(Sinusoid(), 2, poison, cover, clean_label=True)
    with pytest.raises(ValueError, match="only"):
        assign(backdoor, y, 5, np.ones(len(y), bool), np.random.default_rng(0))


def test_two_backdoors_share_no_image() -> None:
    y, draw = np.repeat(np.arange(5), 40), np.random.default_rng(0)
    first, _ = assign(Backdoor(Sinusoid(), 0, 0.4, 0.1), y, 5, np.ones(len(y), bool), draw)
    second, _ = assign(Backdoor(Squeeze(), 1, 0.3, 0.1), y, 5, first == Role.CLEAN, draw)
    assert not ((first != Role.CLEAN) & (second != Role.CLEAN)).any()


def test_each_role_gets_its_trigger_in_8_bits() -> None:
    x = images()
    backdoor = Backdoor(
        Blend(torch.ones(3, SIDE, SIDE), 1.0),
        0,
        0.1,
        0.1,
        train_trigger=Blend(torch.ones(3, SIDE, SIDE), 0.31),
        cover_trigger=Sinusoid(),
    )
    assert torch.equal(backdoor.apply(x, Role.CLEAN, rng()), x)
    assert torch.equal(backdoor.apply(x, Role.POISON, rng()), to_8bit(x + 0.31 * (1 - x)))
    assert torch.equal(backdoor.apply(x, Role.COVER, rng()), to_8bit(Sinusoid()(x, rng())))
    plain: Callable[[Role], Tensor] = lambda role: Backdoor(Squeeze(), 0, 0.1).apply(x, role, rng())  # noqa: E731
    assert torch.equal(plain(Role.COVER), plain(Role.POISON))
