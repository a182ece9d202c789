"""Which triggers of the pool are drawn how often, and how they differ from what was found."""

from __future__ import annotations

from typing import ClassVar, Self

import pytest
import torch
from torch import Tensor

from detrigger.offline.compute import Compute
from detrigger.offline.inputs.profile import PARTS
from detrigger.offline.steps.pool import Entry, Pool
from detrigger.offline.triggers.base import Jitter, Kind, TriggerBank
from detrigger.offline.triggers.generator import GeneratorBank

SIDE = 32
X = torch.zeros(24, 1, SIDE, SIDE)


class Counting(TriggerBank):
    """Leaves images as they are and remembers what it was asked for."""

    family: ClassVar[str] = "counting"

    def __init__(self, n: int = 1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(n))
        self.batches = 0
        self.which: list[Tensor] = []
        self.jitters: list[Jitter] = []

    @classmethod
    def start(cls, n: int, shape: tuple[int, int, int], seed: int) -> Self:
        return cls(n)

    def cost(self) -> Tensor:
        return torch.ones(len(self.weight))

    def forward(self, x: Tensor, which: Tensor, jitter: Jitter | None = None) -> Tensor:
        self.batches += 1
        self.which.append(which)
        if jitter is not None:
            self.jitters.append(jitter)
        return x.clone()


@pytest.fixture
def pool() -> Pool:
    # Without synthetic triggers, so that a draw costs nothing.
    return Pool(Compute("cpu", 0), parts=PARTS - {"synthetic"})


def drawn(pool: Pool, batches: int = 200, x: Tensor = X) -> None:
    for _ in range(batches):
        assert pool.trigger(x).shape == x.shape


def test_the_newest_round_is_drawn_three_times_as_often_and_nothing_is_forgotten(pool: Pool) -> None:
    banks = [Counting() for _ in range(3)]
    for bank in banks:
        pool.add_round([Entry(bank)])
    drawn(pool)
    first, second, newest = (bank.batches for bank in banks)
    assert first + second + newest == 600  # three banks a batch
    assert newest / 600 == pytest.approx(3 / 5, abs=0.06)
    assert first / 600 == pytest.approx(1 / 5, abs=0.06)


def test_what_did_not_stand_out_is_drawn_a_quarter_as_often_as_what_did(pool: Pool) -> None:
    old, background, newest = Counting(), Counting(), Counting()
    pool.add_round([Entry(old)])
    pool.add_round([Entry(background, background=True), Entry(newest)])
    drawn(pool)
    assert background.batches / 600 == pytest.approx(0.25 / 4.25, abs=0.03)
    assert newest.batches / 600 == pytest.approx(3 / 4.25, abs=0.06)


def test_half_of_a_batch_has_inverted_triggers_and_every_candidate_has_its_turn(pool: Pool) -> None:
    bank = Counting(4)
    pool.add_round([Entry(bank)])
    drawn(pool, 30)
    which = torch.cat(bank.which)
    assert len(which) == 30 * 12
    assert torch.bincount(which).min() > 30 * 12 / 8
    assert len(which) / bank.batches == 4


@pytest.mark.parametrize(("works_anywhere", "reach"), [(False, 1), (True, 15)])
def test_copies_are_moved_a_sixteenth_of_the_image_unless_they_work_anywhere(
    pool: Pool, works_anywhere: bool, reach: int
) -> None:
    bank = Counting()
    pool.add_round([Entry(bank, works_anywhere)])
    drawn(pool, x=torch.zeros(24, 1, 40, 30))  # by its width
    moved = torch.cat([jitter.offsets for jitter in bank.jitters])
    assert (int(moved.min()), int(moved.max())) == (-reach, reach)


def test_small_images_have_their_triggers_moved_as_well(pool: Pool) -> None:
    bank = Counting()
    pool.add_round([Entry(bank)])
    for _ in range(20):
        pool.trigger(X[..., :12, :12])
    moved = torch.cat([jitter.offsets for jitter in bank.jitters])
    assert (int(moved.min()), int(moved.max())) == (-1, 1)


def test_no_copy_is_exactly_as_found_where_that_part_is_left_out() -> None:
    bank, always = Counting(), Counting()
    for parts, found in ((PARTS - {"synthetic"}, always), (PARTS - {"synthetic", "copies as found"}, bank)):
        pool = Pool(Compute("cpu", 0), parts=parts)
        pool.add_round([Entry(found, strongest=2.0)])
        drawn(pool, 50)
    strengths = [torch.cat([jitter.strength for jitter in each.jitters]) for each in (always, bank)]
    assert float(strengths[0].max()) > 1.8
    assert float(strengths[1].max()) <= 1.1


class Striped(Counting):
    """Remembers the batch as well, and has a random kind that paints images white."""

    overlaid: ClassVar[bool] = True
    resembling: ClassVar[tuple[Kind, ...]] = (lambda x, g: torch.ones_like(x),)


@pytest.mark.parametrize(("left_out", "white"), [("", 6), ("random on top", 0)])
def test_half_of_the_copies_of_some_families_get_a_random_trigger_on_top(left_out: str, white: int) -> None:
    pool = Pool(Compute("cpu", 0), parts=frozenset(p for p in PARTS if p not in ("synthetic", left_out)))
    pool.add_round([Entry(Striped())])
    painted = pool.trigger(X).amin((1, 2, 3)) == 1
    assert painted[:12].view(3, 4).sum(1).tolist() == [white // 3] * 3  # three banks a batch
    assert not painted[12:].any()


def test_the_generator_is_left_out_where_the_profile_says_so() -> None:
    shape = (1, SIDE, SIDE)
    for parts, entries in ((PARTS, 2), (PARTS - {"generator"}, 1)):
        pool = Pool(Compute("cpu", 0), parts=parts)
        pool.add_round([Entry(GeneratorBank.start(1, shape, 0)), Entry(Counting())])
        assert len(pool.entries) == entries


@pytest.mark.parametrize(
    ("left_out", "inverted", "random"),
    [("inverted", 0, 24), ("synthetic", 12, 0), ("generator", 12, 12)],
)
def test_a_part_that_is_left_out_leaves_its_share_of_images_to_nothing_else(
    left_out: str, inverted: int, random: int
) -> None:
    bank = Counting()
    pool = Pool(Compute("cpu", 0), parts=frozenset(part for part in PARTS if part != left_out))
    pool.add_round([Entry(bank)])
    x = torch.rand(24, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    changed = (pool.trigger(x) - x).abs().amax((1, 2, 3)) > 1e-3
    assert sum(map(len, bank.which)) == inverted
    assert int(changed[:inverted].sum()) == 0
    assert int(changed[inverted:].sum()) >= random - 2  # some random triggers cannot be seen
