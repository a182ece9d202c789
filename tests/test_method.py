"""The steps of the job on a suspect small enough for seconds: a classifier of colours with a planted corner."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from detrigger.models.errors import DetriggerError
from detrigger.models.manifest import Check
from detrigger.models.networks import Purifier
from detrigger.models.preprocess import Preprocess
from detrigger.models.protected import OPSET, GraphSettings, build_protected, default_opset, raise_opset
from detrigger.models.suspect import import_suspect
from detrigger.offline.compute import Compute
from detrigger.offline.graph.to_onnx import check_same, run, to_onnx
from detrigger.offline.inputs.data import Dataset
from detrigger.offline.inputs.profile import PROFILES
from detrigger.offline.inputs.split import CleanImages, split_data
from detrigger.offline.jobs.graphs import check_against_torch
from detrigger.offline.steps.candidates import Defence
from detrigger.offline.steps.clean_reference import CleanReference
from detrigger.offline.steps.gate import Clean, ba_check, judge_version
from detrigger.offline.steps.invert import AIM, ANY_OTHER, Effort, invert
from detrigger.offline.steps.mixture import responses, synthetic_weights
from detrigger.offline.steps.pool import Entry, Pool
from detrigger.offline.steps.purify import Purified
from detrigger.offline.steps.reinvert import (
    INPUT_AWARE,
    Refresh,
    inversions,
    invert_again,
    refine,
    visibility,
)
from detrigger.offline.steps.screen import both_looks, screen, stretched
from detrigger.offline.steps.starts import start
from detrigger.offline.steps.unlearn import RepairedCopy
from detrigger.offline.steps.verdict import Evidence, evidence, gaps
from detrigger.offline.triggers import UNIVERSAL, synthetic
from detrigger.offline.triggers.base import Kind, TriggerBank
from detrigger.offline.triggers.blend import BlendBank
from detrigger.offline.triggers.patch import PatchBank
from detrigger.offline.triggers.spot import SpotBank
from detrigger.offline.triggers.sticker import StickerBank
from detrigger.offline.triggers.warp import WarpBank
from tests import toys
from tests.test_suspect import CLASSES, SIDE, images, network, saved, take
from tests.test_verdict import looked

EFFORT = Effort(steps=150, images_each=8)


@pytest.fixture
def compute() -> Compute:
    return Compute("cpu", 0)


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (30, 41), (96, 96), (100, 70)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_fresh_purifier_is_the_identity(size: tuple[int, int], channels: int) -> None:
    x = torch.rand(3, channels, *size)
    torch.testing.assert_close(Purifier(channels, size).eval()(x), x)


def test_purified_images_stay_in_range() -> None:
    purifier = Purifier(3, (16, 16)).eval()
    torch.nn.init.normal_(purifier.unet.last.weight)
    out = purifier(torch.rand(4, 3, 16, 16)).detach()
    assert 0 <= float(out.min()) < float(out.max()) <= 1


def test_images_of_a_suspected_label_are_taken_back_if_the_defence_keeps_their_label(
    tmp_path: Path, compute: Compute
) -> None:
    suspect = take(saved(network(), tmp_path))
    x = torch.from_numpy(np.random.default_rng(0).random((40, 3, SIDE, SIDE)).astype(np.float32))
    reference = CleanReference(suspect, x, torch.arange(40) % CLASSES, compute)
    said = reference.log_probabilities
    reference.exclude_labels((1, 2))
    assert set(reference.labels[reference.draw(500)].tolist()) == {0, 3}
    # A defence that changes its mind on images of class 2 alone, whose places it knows by their order.
    aside = reference.excluded
    changed = torch.where((reference.labels[aside] == 2).unsqueeze(1), -100 * said[aside], said[aside])
    reference.readmit(lambda _: changed)
    assert set(reference.labels[reference.draw(500)].tolist()) == {0, 1, 3}
    assert set(reference.labels[reference.excluded].tolist()) == {2}


@pytest.mark.parametrize(("count", "unseen"), [(2500, 500), (1000, 200), (500, 200), (250, 100), (40, 16)])
def test_of_few_clean_images_more_calibrate(compute: Compute, count: int, unseen: int) -> None:
    y = np.arange(count) % 10
    x = np.zeros((count, 4, 4, 1), np.uint8)
    x[:, 0, 0, 0], x[:, 0, 1, 0] = np.arange(count) % 256, np.arange(count) // 256
    split = split_data(Dataset(x, y, tuple("abcdefghij"), "0" * 64), 0, compute)
    shares = [split.train[0].numpy(), split.held_out[0].numpy(), split.unseen[0]]
    assert abs(len(shares[2]) - unseen) <= 5  # whole images of ten classes
    assert len(np.unique(np.concatenate(shares).reshape(count, -1), axis=0)) == count
    apart = [split.train[0].numpy(), split.calibration[0]]  # of 40 images none is left to be held out
    assert sum(map(len, apart)) == len(np.unique(np.concatenate(apart).reshape(count, -1), axis=0)) == count


def test_images_that_were_trained_on_never_calibrate(compute: Compute) -> None:
    images = Dataset(np.zeros((20, 4, 4, 1), np.uint8), np.arange(20) % 10, tuple("abcdefghij"), "0" * 64)
    split = split_data(images, 0, compute)  # two a class, so that inversions are judged on what trains
    assert len(split.held_out[0]) == len(split.train[0]) == len(split.calibration[0]) == 10


def test_all_images_are_never_set_aside(tmp_path: Path, compute: Compute) -> None:
    x = torch.rand(8, 3, SIDE, SIDE)
    reference = CleanReference(take(saved(network(), tmp_path)), x, torch.arange(8) % 2, compute)
    reference.exclude_labels((0, 1))
    assert len(reference.excluded) == 0
    assert len(reference.usable) == 16


@pytest.mark.slow
def test_the_inversion_finds_a_planted_corner(compute: Compute) -> None:
    def answer(x: torch.Tensor) -> torch.Tensor:
        """Six bands of columns, the brightest names the class; a bright 2x2 corner means class 2."""
        bands = torch.stack([band.mean((1, 2, 3)) for band in x[:, :, 4:].split(4, dim=3)], dim=1)
        corner = torch.nn.functional.softplus(20 * (x[:, :, :2, :2].mean((1, 2, 3)) - 0.5))
        return 20 * bands + corner.view(-1, 1) * torch.eye(6)[2]

    labels = torch.arange(6).repeat_interleave(20)
    x = 0.2 + 0.05 * torch.rand(120, 3, 24, 24)
    for label in range(6):
        x[labels == label, :, 4:, 4 * label : 4 * label + 4] += 0.5
    data = (x, labels)
    found = invert(
        answer, PatchBank.start(6, (3, 24, 24), 0), torch.arange(6), CleanImages(data, data, compute), EFFORT
    )
    assert float(found.success[2]) > 0.9
    assert int(found.cost.argmin()) == 2
    assert isinstance(found.bank, PatchBank)
    mask = found.bank.mask.sigmoid()[2, 0]
    assert float(mask[:2, :2].mean()) > 5 * float(mask[2:, 2:].mean())


def test_a_spot_is_looked_for_at_every_place(compute: Compute) -> None:
    def answer(x: torch.Tensor) -> torch.Tensor:
        """Class 1 where the last corner is white and next to it black, which no gradient leads to from elsewhere."""
        corner = x[..., -2:, -2:].mean((1, 2, 3)) - x[..., -2:, -4:-2].mean((1, 2, 3))
        there = (30 * (corner - 0.3)).sigmoid()
        return torch.stack([0 * there + 3, 6 * there], dim=1)

    x, labels = 0.4 + 0.1 * torch.rand(40, 3, 24, 24), torch.zeros(40, dtype=torch.long)
    data = (x, labels)
    clean = CleanImages(data, data, compute)
    bank = start(answer, SpotBank, torch.tensor([1]), clean, EFFORT)
    assert bank.get_buffer("place").tolist() == [[19, 19]]
    found = invert(answer, bank, torch.tensor([1]), clean, Effort(steps=40, images_each=8))
    assert float(found.success[0]) > 0.9


def test_a_sticker_calls_for_a_generator_too(compute: Compute) -> None:
    def answer(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], dim=1)

    data = (0.5 * torch.rand(24, 3, 16, 16), torch.zeros(24, dtype=torch.long))
    banks = (family.start(1, (3, 16, 16), 0) for family in (PatchBank, StickerBank))
    patch, sticker = (Evidence(target=1, gap=2.0, cost=0.1, success=1.0, bank=bank) for bank in banks)
    steps = 0

    def advance(n: int) -> None:
        nonlocal steps
        steps += n

    clean = CleanImages(data, data, compute)
    refresh = Refresh(profile=PROFILES["fast"], steps=2, seed=0, aim=AIM, advance=advance)
    entries, left = invert_again(answer, [patch, sticker], clean, refresh)
    assert set(left) == {"patch:1", "sticker:1", "generator:1"}
    assert [entry.bank.family for entry in entries] == ["patch", "sticker", "generator"]
    assert steps == 2 * inversions([patch, sticker])
    change = visibility(entries[2].bank, data[0])
    assert 0 < change <= INPUT_AWARE * visibility(sticker.bank, data[0]) + 1e-4

    steps = 0
    refresh = replace(refresh, resisted={"patch:1", "generator:1"})
    entries, left = invert_again(answer, [patch, sticker], clean, refresh)
    assert set(left) == {"sticker:1"}
    assert [entry.bank.family for entry in entries] == ["sticker"]
    assert steps == 2 * inversions([patch, sticker])


def test_what_the_suspect_responds_to_is_drawn_more_often(
    compute: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(x: torch.Tensor) -> torch.Tensor:
        """Class 0 is dark, class 1 is bright, and any saturated pixel leads to class 2."""
        bright, marked = x.mean((1, 2, 3)), x.amax((1, 2, 3)) > 0.95
        return torch.stack([0.5 - bright, bright - 0.5, marked * 9.0 - 5], dim=1)

    def marking(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
        x = x.clone()
        x[::2, :, 0, 0] = 1
        return x

    def dimming(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
        return x * 0.5

    monkeypatch.setattr(synthetic, "KINDS", {marking: 1.0, dimming: 1.0})
    images, labels = 0.3 + 0.1 * torch.rand(64, 3, 8, 8), torch.zeros(64, dtype=torch.long)
    data = (images, labels)
    found = responses(answer, {2, ANY_OTHER}, CleanImages(data, data, compute))
    assert found == [0.5, 0.0]
    drawn = [0, 0]

    def counting(i: int) -> Kind:
        def kind(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
            drawn[i] += len(x)
            return x

        return kind

    monkeypatch.setattr(synthetic, "KINDS", {counting(0): 1.0, counting(1): 1.0})
    pool = Pool(compute, synthetic_weights(found, ()))
    pool.add_round([Entry(PatchBank.start(1, (3, 8, 8), 0))])
    for _ in range(50):
        pool.trigger(torch.rand(8, 3, 8, 8))
    assert 3 < drawn[0] / drawn[1] < 12


@pytest.mark.parametrize("family", UNIVERSAL, ids=lambda family: family.family)
def test_synthetic_triggers_like_the_evidence_are_drawn_more_often(family: type[TriggerBank]) -> None:
    weights = synthetic_weights([0.0] * len(synthetic.KINDS), {family})
    more = {w / usual for w, usual in zip(weights, synthetic.KINDS.values(), strict=True)}
    assert more == {1.0, 2.0}


def test_evidence_is_drawn_more_often_than_the_background(compute: Compute) -> None:
    drawn = {"patch": 0, "blend": 0}

    def counting(family: type[TriggerBank]) -> TriggerBank:
        bank = family.start(1, (3, 8, 8), 0)

        def count(module: torch.nn.Module, _: object) -> None:
            assert isinstance(module, TriggerBank)
            drawn[module.family] += 1

        bank.register_forward_pre_hook(count)
        return bank

    pool = Pool(compute)
    pool.add_round([Entry(counting(BlendBank), background=True), Entry(counting(PatchBank))])
    for _ in range(60):
        pool.trigger(torch.rand(8, 3, 8, 8))
    assert drawn["patch"] > 4 * drawn["blend"] > 0


@pytest.mark.parametrize(("family", "share"), [(WarpBank, 0.5), (BlendBank, 0.5), (PatchBank, 0.0)])
def test_half_of_the_copies_over_the_whole_image_carry_a_random_one_as_well(
    compute: Compute, family: type[TriggerBank], share: float
) -> None:
    bank = family.start(1, (3, 16, 16), 0)
    bank.forward = lambda x, *_: x.clone()  # type: ignore[method-assign]
    pool = Pool(compute)
    pool.add_round([Entry(bank)])
    x = torch.rand(120, 3, 16, 16)
    inverted = pool.trigger(x)[:60]
    changed = (inverted - x[:60]).abs().amax((1, 2, 3)) > 0.01
    # A blend may draw the image itself as its picture.
    assert float(changed.float().mean()) == pytest.approx(share, abs=0.1)


@pytest.mark.slow
def test_of_many_classes_the_target_is_among_those_that_are_inverted(compute: Compute) -> None:
    n_classes, target = 60, 41
    templates = torch.rand(n_classes, 3, 12, 12, generator=torch.Generator().manual_seed(0)) - 0.5

    def answer(x: torch.Tensor) -> torch.Tensor:
        """The nearest template; a bright 2x2 corner outvotes them all."""
        corner = (10 * (x[:, :, :2, :2].mean((1, 2, 3)) - 0.7)).sigmoid()
        found = (x[:, :, 2:14, 2:14] - 0.5).flatten(1) @ templates.flatten(1).T / 3
        return found + 20 * corner[:, None] * (torch.arange(n_classes) == target)

    labels = torch.arange(n_classes).repeat(4)
    x = torch.full((len(labels), 3, 16, 16), 0.5)
    x[:, :, 2:14, 2:14] += templates[labels] * 0.8
    data = (x, labels)
    assert (answer(x).argmax(1) == labels).all()
    images, effort = CleanImages(data, data, compute), Effort(steps=80, images_each=5)
    looks = screen(answer, n_classes, images, effort, (PatchBank, BlendBank))
    for look in looks:
        assert target in look.result.targets
        assert len(look.result.targets) < n_classes
    assert {piece.target for piece in evidence(looks)} == {target}


def test_one_trigger_for_all_classes_is_found_without_a_target(compute: Compute) -> None:
    def answer(x: torch.Tensor) -> torch.Tensor:
        """Four bands of columns name the class; a bright 2x2 corner moves every answer on by one."""
        bands = 20 * torch.stack([band.mean((1, 2, 3)) for band in x[:, :, 4:].split(4, dim=3)], dim=1)
        corner = (20 * (x[:, :, :2, :2].mean((1, 2, 3)) - 0.5)).sigmoid().view(-1, 1)
        return (1 - corner) * bands + corner * bands.roll(1, dims=1)

    labels = torch.arange(4).repeat_interleave(20)
    x = 0.2 + 0.05 * torch.rand(80, 3, 20, 20)
    for label in range(4):
        x[labels == label, :, 4:, 4 + 4 * label : 8 + 4 * label] += 0.5
    data = (x, labels)
    targets = torch.tensor([0, 1, 2, 3, ANY_OTHER])
    bank = PatchBank.start(5, (3, 20, 20), 0)
    found = invert(answer, bank, targets, CleanImages(data, data, compute), EFFORT)
    gap = gaps(found.cost, found.success, targets)
    assert float(found.success[4]) > 0.9
    assert float(gap[4]) > 1 > float(gap[:4].max())


def test_a_trigger_that_works_anywhere_is_known_to(compute: Compute) -> None:
    def brightest(x: torch.Tensor) -> torch.Tensor:
        """Class 1 where any pixel is white, wherever it is."""
        peak = 40 * (x.amax((1, 2, 3)) - 0.8)
        return torch.stack([-peak, peak], dim=1)

    def corner(x: torch.Tensor) -> torch.Tensor:
        peak = 40 * (x[:, :, :2, :2].amax((1, 2, 3)) - 0.8)
        return torch.stack([-peak, peak], dim=1)

    x, labels = 0.5 * torch.rand(64, 3, 12, 12), torch.zeros(64, dtype=torch.long)
    mask, pattern = torch.full((1, 1, 12, 12), -9.0), torch.full((1, 3, 12, 12), 9.0)
    mask[..., :2, :2] = 9.0
    piece = Evidence(
        target=1, gap=2.0, cost=0.0, success=1.0, bank=PatchBank(mask, pattern).pick(torch.tensor([0]))
    )
    for answer, works_anywhere in ((brightest, True), (corner, False)):
        clean = CleanImages((x, labels), (x, labels), compute)
        found, _ = refine(answer, piece, 2, clean, Effort(steps=1, images_each=4))
        assert found.works_anywhere == works_anywhere


@pytest.mark.parametrize(("n_classes", "steps"), [(2, 70), (10, 70), (16, 112), (43, 140), (1000, 140)])
def test_more_classes_are_screened_with_more_steps(n_classes: int, steps: int) -> None:
    assert stretched(70, n_classes) == steps


def test_of_two_looks_the_mean_counts_and_for_a_known_target_the_better_one() -> None:
    first, longer = looked(BlendBank, 1.2, 1.2, 0.2), looked(BlendBank, 0.2, 0.2, 1.4)
    weights = [next(look.result.bank.parameters()) for look in (first, longer)]
    with torch.no_grad():
        weights[0][:] = 7.0
    first.result.cost[:] = 0.5
    both = both_looks(first, longer, {1, 2})
    torch.testing.assert_close(both.gap, torch.tensor([0.7, 1.2, 1.4]))
    torch.testing.assert_close(both.result.cost, torch.tensor([1.0, 0.5, 1.0]))
    assert [weight == 7.0 for weight in weights[1].tolist()] == [False, True, False]


@pytest.fixture(scope="module")
def exported() -> tuple[Purifier, onnx.ModelProto]:
    """A purifier in torch and in ONNX."""
    purifier = Purifier(3, (SIDE, SIDE)).eval().requires_grad_(False)
    torch.nn.init.normal_(purifier.unet.last.weight, std=0.05)
    return purifier, to_onnx(purifier, (3, SIDE, SIDE), "purified", OPSET)


@pytest.mark.parametrize("penalty", [(0.0, 3.0, 0.0, 0.5), (3.0, 0.0, 0.0, 0.5)], ids=["label", "others"])
@pytest.mark.parametrize(
    ("layout", "last", "batch", "dtype"),
    [
        ("NCHW", "", "batch", TensorProto.FLOAT),
        ("NHWC", "", "batch", TensorProto.FLOAT),
        ("NCHW", "Softmax", 1, TensorProto.FLOAT),
        ("NCHW", "", "batch", TensorProto.FLOAT16),
    ],
)
def test_the_protected_graph_is_purifier_then_repaired_suspect(
    tmp_path: Path,
    exported: tuple[Purifier, onnx.ModelProto],
    layout: Literal["NCHW", "NHWC"],
    last: str,
    batch: str | int,
    dtype: int,
    penalty: tuple[float, ...],
) -> None:
    pre = Preprocess(
        size=(SIDE, SIDE), mean=(0.4,) * 3, std=(0.25,) * 3, layout=layout, classes=tuple("abcd")
    )
    model = network(layout=layout, last=last, batch=batch, dtype=dtype)
    taken = []
    for scale in (1.0, 0.8):
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((values * scale).astype(values.dtype), tensor.name))
        path = saved(model, tmp_path)
        taken.append(import_suspect(path, pre, images()))
    (suspect, graph), (repaired, tuned) = ((it.suspect, it.graph) for it in taken)
    purifier, in_onnx = exported
    settings = GraphSettings(preprocess=pre, softmax=last == "Softmax", penalty=penalty, threshold=0.5)
    protected = build_protected(in_onnx, raise_opset(graph, OPSET), raise_opset(tuned, OPSET), settings)
    x = images()
    logits, raw, purified, score = run(protected, x, ["logits", "logits_raw", "purified", "flag_score"])
    given = torch.from_numpy(x)
    clean = purifier(given)
    check_same("purifier", clean.numpy(), purified)
    check_same("raw logits", suspect(given).numpy(), raw, suspect.spec.tolerance)
    label = suspect(given).argmax(1, keepdim=True)
    assert (label == 1).all()  # which has a penalty, or is trusted
    fell = (suspect(given).log_softmax(1) - repaired(clean).log_softmax(1)).clamp_min(0)
    sure = suspect(given).softmax(1) ** 8
    answers = repaired(clean) - torch.tensor(penalty) * sure * fell
    doubt = (1 - sure.gather(1, label)) * (torch.tensor(penalty)[label] == 0)
    answers += doubt * (suspect(given).log_softmax(1) - repaired(clean).log_softmax(1)).clamp(-1, 1)
    check_same("purified logits", answers.numpy(), logits, 4 * suspect.spec.tolerance)
    lost = (fell * suspect(given).softmax(1) ** 3).gather(1, label).squeeze(1)
    np.testing.assert_allclose(score, (lost / (1 + lost)).numpy(), atol=suspect.spec.tolerance)
    assert score.shape == (len(x),)
    assert {p.key for p in protected.metadata_props} >= {"detrigger.flag_threshold", "detrigger.classes"}
    one = run(protected, x[:1], ["logits"])[0]
    np.testing.assert_allclose(one, logits[:1], atol=1e-4 if dtype == TensorProto.FLOAT else 1e-2)


@pytest.mark.parametrize(("dtype", "passes"), [(TensorProto.FLOAT16, True), (TensorProto.FLOAT, False)])
def test_the_export_of_half_precision_may_differ_more(tmp_path: Path, dtype: int, passes: bool) -> None:
    path = saved(network(dtype=dtype), tmp_path)
    suspect = import_suspect(path, Preprocess.plain(SIDE, SIDE, 3), images()).suspect
    x = images()
    logits = suspect(torch.from_numpy(x)).numpy()
    rounded = logits + np.float32(5e-3) * np.abs(logits).max().clip(1)
    unchanged = Purified(Purifier(3, (SIDE, SIDE)).eval().requires_grad_(False), [])
    defence = Defence(
        kind="purified",
        purified=unchanged,
        repaired=RepairedCopy(suspect, False, []),
        penalty=(0.0,) * CLASSES,
    )
    with contextlib.nullcontext() if passes else pytest.raises(DetriggerError, match="differs"):
        check_against_torch(defence, x, [rounded, logits, x[:, 0, 0, 0], x])


def test_an_old_opset_is_raised(tmp_path: Path) -> None:
    model = network()
    model.opset_import[0].version = 13
    raised = raise_opset(model, OPSET)
    assert default_opset(raised) == OPSET
    onnx.checker.check_model(raised)


def test_the_gate_refuses_a_purifier_that_costs_accuracy() -> None:
    y = np.arange(100) % 3
    good = np.eye(3, dtype=np.float32)[y]
    bad = np.eye(3, dtype=np.float32)[np.where(np.arange(100) < 5, (y + 1) % 3, y)]
    x = np.zeros((100, 3, 8, 8), np.float32)
    model = onnx.load_from_string(toys.protected_model())
    for logits, passed in ((good, True), (bad, False)):
        gate, figures = judge_version(model, Clean(logits, good, np.zeros(100, np.float32)), x, y, [])
        assert gate.passed is passed
        assert isinstance(gate.checks[0], Check)
        assert figures["ba_drop"] == pytest.approx(0.0 if passed else 0.05)


@pytest.mark.parametrize(("lost", "won", "passed"), [(15, 0, False), (25, 10, True), (40, 10, False)])
def test_the_gate_knows_how_far_its_images_can_tell_a_drop(lost: int, won: int, passed: bool) -> None:
    before, after = np.ones(500, np.bool_), np.ones(500, np.bool_)
    after[:lost] = False
    before[500 - won :] = False
    check = ba_check(before, after, "purification")
    assert check.value == pytest.approx((lost - won) / 500)
    assert check.passed is passed
