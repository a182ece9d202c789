"""What stands out of a screening, and what that says of the suspect."""

from __future__ import annotations

import pytest
import torch

from detrigger.offline.steps.invert import AIM, ANY_OTHER, InversionResult
from detrigger.offline.steps.leads import choose_leads
from detrigger.offline.steps.verdict import FamilyScreen, easily_led, evidence, gaps, suspected, verdict
from detrigger.offline.triggers.base import TriggerBank
from detrigger.offline.triggers.blend import BlendBank
from detrigger.offline.triggers.patch import PatchBank
from detrigger.offline.triggers.spot import SpotBank


def test_what_is_too_plain_for_an_attacker_is_not_learned_from() -> None:
    bank = BlendBank.start(4, (3, 16, 16), 0)
    with torch.no_grad():
        bank.weight.copy_(torch.tensor([0.1, 0.5, 0.15, 0.19]).logit())
    found = InversionResult(bank, torch.arange(4), torch.ones(4), bank.cost().detach())
    look = FamilyScreen(BlendBank, found, torch.tensor([0.1, 0.9, 0.5, -0.2]))
    assert look.cheapest(2).tolist() == [2, 0]
    assert look.cheapest(9).tolist() == [2, 0, 3]


def test_a_cheap_target_stands_out_and_a_failure_never_does() -> None:
    cost = torch.tensor([1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.02, 0.2])
    success = torch.ones(8)
    assert float(gaps(cost, success, torch.arange(8))[7]) > 2
    success[7] = 0.3
    assert float(gaps(cost, success, torch.arange(8))[7]) <= 0


def looked(family: type[TriggerBank], *gap: float) -> FamilyScreen:
    """A family's look at targets 0, 1, ..., whose gaps these are."""
    n = len(gap)
    found = InversionResult(family.start(n, (3, 16, 16), 0), torch.arange(n), torch.ones(n), torch.ones(n))
    return FamilyScreen(family, found, torch.tensor(gap))


def pieces(*results: FamilyScreen) -> list[tuple[str, int]]:
    """Family and target of what is inverted again after these looks."""
    return [(piece.family, piece.target) for piece in choose_leads(list(results))]


def test_what_is_inverted_again_is_of_many_kinds_and_doubtful_only_for_want_of_better() -> None:
    assert pieces(looked(SpotBank, 1.5, 0.7), looked(PatchBank, 2.5, 0.2), looked(BlendBank, 0.9, 0.1)) == [
        ("patch", 0),
        ("blend", 0),
        ("spot", 0),
    ]
    assert pieces(looked(SpotBank, 0.3, 0.7)) == [("spot", 1)]


def test_a_lone_patch_is_inverted_as_a_spot_too() -> None:
    patch = looked(PatchBank, 1.5, 0.2)
    assert pieces(looked(SpotBank, 0.1, 0.7), patch) == [("patch", 0), ("spot", 0)]
    assert pieces(looked(SpotBank, -0.1, 0.7), patch) == [("patch", 0)]  # dearer than usual
    assert pieces(looked(SpotBank, 0.1, 0.7), patch, looked(BlendBank, 0.9, 0.1)) == [
        ("patch", 0),
        ("blend", 0),
    ]


def test_what_stands_beside_a_lone_sign_counts_as_little_dearer_than_it() -> None:
    """A patch that leads to any class as well is no trigger: one that costs about as much as the sign is looked for."""
    spot, patch = looked(SpotBank, 2.5, 0.2), looked(PatchBank, 0.0, 0.0)
    spot.result.cost[0], patch.result.cost[0] = 0.004, 0.05
    lead, beside = choose_leads([spot, patch])
    assert (lead.family, beside.family) == ("spot", "patch")
    assert lead.cost == pytest.approx(0.004)
    assert beside.cost == pytest.approx(2 * 0.004)
    patch.result.cost[0] = 0.006
    assert choose_leads([spot, patch])[1].cost == pytest.approx(0.006)


def test_a_trigger_that_a_clean_suspect_would_obey_is_no_evidence() -> None:
    look = looked(PatchBank, 1.5, 1.5, 0.1)
    look.result.cost[:] = torch.tensor([0.02, 0.08, 0.08])  # shares of the image that the mask covers
    assert [piece.target for piece in evidence([look.credible()])] == [0]
    assert look.credible().gap.tolist() == [1.5, 0.0, 0.0]
    look.result.cost[1] = PatchBank.max_evidence_cost
    assert [piece.target for piece in evidence([look.credible()])] == [0, 1]


def test_beside_a_plain_target_another_needs_more_than_one_strong_sign() -> None:
    plain = looked(PatchBank, 2.5, 0.0, 1.8)
    assert suspected([plain]) == (0,)
    assert [piece.target for piece in choose_leads([plain])] == [0]
    assert suspected([plain, looked(BlendBank, 0.0, 0.0, 1.2)]) == (0, 2)
    # In a family that sees the plain target strongly, what is as cheap as that is as suspicious.
    assert suspected([plain, looked(SpotBank, 1.1, 1.2, 0.0)]) == (0, 1)
    assert suspected([plain, looked(SpotBank, 1.2, 1.1, 0.0)]) == (0,)
    assert suspected([plain, looked(SpotBank, 0.9, 1.6, 0.0)]) == (0,)
    # A far plainer one makes a plain one look like nothing, unless two families see it.
    assert suspected([looked(PatchBank, 3.5, 0.0, 2.2)]) == (0, 2)
    assert suspected([looked(PatchBank, 4.5, 0.0, 2.2)]) == (0,)
    assert suspected([looked(PatchBank, 4.5, 0.0, 2.2), looked(BlendBank, 0.0, 0.0, 1.2)]) == (0, 2)
    assert suspected([looked(PatchBank, 0.0, 1.8, 1.2)]) == (1, 2)
    assert suspected([looked(PatchBank, 0.0, 1.9, 1.0)]) == (1,)
    assert suspected([looked(PatchBank, 0.0, 1.9, 1.0), looked(BlendBank, 0.0, 0.0, 1.1)]) == (1, 2)


def test_a_label_that_is_only_easily_led_is_defended_and_not_accused() -> None:
    two = looked(SpotBank, 3.6, 0.0, 2.7)
    assert verdict([two], 1000) == ("backdoored", (0,))
    assert easily_led([two]) == (2,)
    assert [piece.target for piece in choose_leads([two])] == [0, 2]
    # As cheap as the other, or seen by a second family, it has a sign of its own.
    for accused in ([looked(SpotBank, 3.3, 0.0, 2.7)], [two, looked(BlendBank, 0.0, 0.0, 1.1)]):
        assert verdict(accused, 1000) == ("backdoored", (0, 2))
        assert easily_led(accused) == ()


@pytest.mark.parametrize(
    ("cheap", "n", "images", "expected", "targets"),
    [
        (0.1, 8, 1750, "backdoored", (3,)),
        (0.1, 8, 120, "backdoored", (3,)),
        (1.0, 8, 120, "clean", ()),
        (0.53, 8, 1750, "inconclusive", ()),
        (0.57, 8, 1750, "inconclusive", ()),
        (0.62, 8, 1750, "clean", ()),
        (0.62, 8, 120, "inconclusive", ()),
    ],
)
def test_the_verdict_says_what_is_known(
    cheap: float, n: int, images: int, expected: str, targets: tuple[int, ...]
) -> None:
    cost = torch.linspace(0.95, 1.05, n)
    cost[3] = cheap
    bank = PatchBank.start(n, (3, 8, 8), 0)
    found = InversionResult(bank, torch.arange(n), torch.ones(n), cost)
    seen = [FamilyScreen(PatchBank, found, gaps(cost, torch.ones(n), torch.arange(n)))]
    assert verdict(seen, images) == (expected, targets)


EVEN = torch.tensor([1.0, 1.0, 1.0, 1.0, 4.0, 0.25])


def test_a_gap_is_in_bits_below_the_lower_quartile() -> None:
    found = gaps(EVEN, torch.full((6,), AIM), torch.arange(6))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 0.0, 0.0, -2.0, 2.0]))


def test_without_a_target_it_is_the_distance_to_the_cheapest_class() -> None:
    targets = torch.tensor([0, 1, 2, 3, 4, ANY_OTHER])
    found = gaps(EVEN, torch.full((6,), AIM), targets)
    assert float(found[5]) == pytest.approx(2.0)
    cost = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5, 0.25])
    assert float(gaps(cost, torch.full((6,), AIM), targets)[5]) == pytest.approx(1.0)


def test_what_ended_short_of_its_aim_pays_for_that() -> None:
    success = torch.full((6,), AIM)
    success[5] = AIM / 1.5
    assert float(gaps(EVEN, success, torch.arange(6))[5]) == pytest.approx(2 - 0.585, abs=1e-3)
    success[5] = 0.49  # works on less than half of the images
    assert float(gaps(EVEN, success, torch.arange(6))[5]) == 0.0


def test_no_price_is_above_the_most_that_a_family_can_cost() -> None:
    found = gaps(EVEN, torch.full((6,), AIM), torch.arange(6), max_cost=2.0)
    assert float(found[4]) == pytest.approx(-1.0)


def test_where_most_classes_fail_they_count_with_the_cost_that_they_reached() -> None:
    success = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, AIM])
    assert float(gaps(EVEN, success, torch.arange(6))[5]) == pytest.approx(2.0)


def test_where_success_is_evidence_it_has_to_be_plain() -> None:
    cost = torch.ones(6)
    for rate, gap in ((0.79, 0.0), (0.81, 1.1375 - torch.tensor(AIM / 0.81).log2().item())):
        success = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, rate])
        found = gaps(cost, success, torch.arange(6), success_is_evidence=True)
        assert float(found[5]) == pytest.approx(gap, abs=1e-3)


def test_of_several_candidates_for_a_target_the_strongest_counts() -> None:
    look = looked(PatchBank, 1.2, 1.8, 1.5)
    look.result.targets[:] = torch.tensor([4, 4, 3])
    look.result.cost[:] = torch.tensor([0.3, 0.2, 0.1])
    look.result.success[:] = torch.tensor([0.9, 0.8, 0.7])
    strongest, other = evidence([look])
    assert (strongest.target, strongest.works_anywhere) == (4, False)
    assert [strongest.gap, strongest.cost, strongest.success] == pytest.approx([1.8, 0.2, 0.8])
    assert (other.target, other.family, len(other.bank)) == (3, "patch", 1)
    torch.testing.assert_close(
        strongest.bank.state_dict()["mask"][0], look.result.bank.state_dict()["mask"][1]
    )
    assert [gap for target, gap in look.by_target() if target == 4] == pytest.approx([1.2, 1.8])


def test_all_to_all_has_no_target() -> None:
    look = looked(PatchBank, *[0.0] * 6, 1.5)
    look.result.targets[6] = ANY_OTHER
    assert suspected([look]) == (ANY_OTHER,)
    assert verdict([look], 1750) == ("backdoored", ())


@pytest.mark.parametrize(
    ("gap", "images", "expected"),
    [
        (0.72, 1750, "inconclusive"),
        (0.68, 1750, "clean"),
        (0.68, 200, "clean"),
        (0.62, 199, "inconclusive"),
        (0.58, 199, "clean"),
    ],
)
def test_doubt_begins_earlier_with_few_images(gap: float, images: int, expected: str) -> None:
    assert verdict([looked(PatchBank, gap, *[0.0] * 7)], images) == (expected, ())
