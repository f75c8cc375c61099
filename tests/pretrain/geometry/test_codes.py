"""Codes and their counts against small cases and simulation, and published claims about them that fail."""

import math

import numpy as np
import pytest
import torch

from isotorus.errors import UserError
from pretrain.geometry import codes

TURN = 2 * math.pi


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_published_code_by_hand():
    # Sums that binary fractions hold exactly: 0.125, 2.015625, -0.0625 (its floor is below it).
    x = torch.tensor([[0.0625, 0.0625], [2.0, 0.015625], [-0.125, 0.0625]])
    assert codes.published_winding_code(x).tolist() == [[6, 1], [6, 7], [8, 6]]
    assert codes.published_winding_code(x, truncate=True).tolist() == [[6, 1], [6, 7], [9, 6]]


def test_published_text_and_published_code_differ_for_every_negative_sum():
    sums = normal(1000, 1)
    text, code = (codes.published_winding_code(sums, truncate=cut) for cut in (False, True))
    negative = sums[:, 0] < 0
    assert torch.equal(text[~negative], code[~negative])
    assert (text[negative] != code[negative]).all()
    # As the published code computes it, in Python.
    by_hand = [[int(s * 1000) % 10 + 1, int(s * 10000) % 10 + 1] for (s,) in sums.tolist()]
    assert code.tolist() == by_hand
    assert code.min() == 1 and code.max() == 10


def test_published_code_is_blind_to_order_and_fills_up():
    """The claim that it never collides fails: 100 addresses, all used and shared after a few hundred."""
    x = normal(400, 16)
    found = codes.published_winding_code(x)
    assert found.min() == 1 and found.max() == 10
    dyadic = (x * 1024).round() / 1024  # sums of these do not depend on the order by rounding
    mixed = dyadic[:, torch.randperm(16, generator=torch.Generator().manual_seed(1))]
    assert torch.equal(codes.published_winding_code(dyadic), codes.published_winding_code(mixed))
    occupied = codes.occupancy(found, 100)
    assert occupied.used > 93 and occupied.expected == pytest.approx(100 * (1 - 0.99**400))
    assert len(torch.unique(found, dim=0)) == occupied.used
    shared = codes.collisions(found, 100)
    assert shared.pairs == pytest.approx(0.01, rel=0.1) and shared.any == 1.0
    # Two decimals far behind the point: noise of a hundredth moves nearly all of them.
    assert codes.stability(codes.published_winding_code, x, 0.01, seed=0) < 0.05


def test_published_code_does_not_separate_classes_where_bins_do():
    labels = torch.arange(600) % 4
    angles = labels[:, None] * TURN / 4 + 0.7 + 0.2 * normal(600, 2).clamp(-3, 3)
    features = torch.cat([angles.cos(), angles.sin()], 1)
    published = codes.collisions(codes.published_winding_code(features), 100, labels)
    assert published.within == pytest.approx(published.between, rel=0.25)
    bins = codes.collisions(codes.angular_bins(angles, 4), 16, labels)
    assert bins.within > 0.9 and bins.between < 0.01


def test_angular_bins_know_the_seam():
    angles = torch.tensor([0.0, TURN / 8 - 1e-6, TURN / 8, TURN - 1e-6, TURN, -1e-6, -TURN / 2, -1e-12])
    assert codes.angular_bins(angles, 8).tolist() == [0, 0, 1, 7, 0, 7, 4, 7]
    assert codes.angular_bins(angles, 1).unique().tolist() == [0]
    with pytest.raises(UserError, match="0 bins"):
        codes.angular_bins(angles, 0)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 3), (7, 4, 6)])
def test_fsq_reaches_every_level_and_no_other(levels):
    z = torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None].expand(-1, len(levels))
    found = codes.fsq(z, levels)
    for digits, count in zip(found.T, levels, strict=True):
        assert digits.unique().tolist() == list(range(count))
        assert (digits.diff() >= 0).all()
    # Zero is the middle level of an odd count.
    middle = codes.fsq(torch.zeros(len(levels)), levels)
    assert all(int(d) == count // 2 for d, count in zip(middle, levels, strict=True) if count % 2)


def test_fsq_refuses_levels_that_are_none():
    with pytest.raises(UserError, match="2 or more"):
        codes.fsq(normal(3, 2), (5, 1))
    with pytest.raises(ValueError, match="as many"):
        codes.fsq(normal(3, 2), (5, 5, 5))


def test_addresses_number_all_codes_and_refuse_others():
    bases = (3, 4, 2)
    every = torch.cartesian_prod(*(torch.arange(b) for b in bases))
    assert codes.address(every, bases).tolist() == list(range(24))
    for outside in ([3, 0, 0], [0, -1, 0]):
        with pytest.raises(ValueError, match=r"outside the bins, 3 × 4 × 2"):
            codes.address(torch.tensor([outside]), bases)
    with pytest.raises(ValueError, match="no addresses"):
        codes.address(every, (2**40, 2**40, 2))


def test_birthday_and_occupancy_of_uniform_draws():
    assert codes.birthday(23, 365) == pytest.approx(0.507297, abs=1e-6)
    assert codes.birthday(1, 5) == 0 and codes.birthday(6, 5) == 1
    assert codes.birthday(10, 2**80) == pytest.approx(45 / 2**80)
    assert codes.birthday(2_000_000, 10**13) == pytest.approx(1 - math.exp(-0.2), rel=1e-3)
    random = np.random.default_rng(0)
    drawn = [torch.from_numpy(random.integers(50, size=(80, 1))) for _ in range(200)]
    used = np.mean([codes.occupancy(x, 50).used for x in drawn])
    assert used == pytest.approx(codes.occupancy(drawn[0], 50).expected, abs=0.5)
    assert np.mean([codes.collisions(x, 50).pairs for x in drawn]) == pytest.approx(1 / 50, rel=0.03)


def test_occupancy_and_collisions_by_hand():
    x = torch.tensor([[1, 2], [1, 2], [3, 0], [1, 0]])
    assert codes.occupancy(x, 16)[0] == 3
    assert codes.occupancy(x, 16).entropy == pytest.approx(1.5) and codes.occupancy(x, 16).fullest == 0.5
    labels = torch.tensor([0, 1, 1, -1])
    found = codes.collisions(x, 16, labels)
    assert found.pairs == pytest.approx(1 / 6) and found.between == pytest.approx(1 / 2) and found.within == 0
    assert codes.occupancy(x, 16**400).expected == 4 and codes.collisions(x, 16**400).any == 0
    everything = codes.collisions(torch.zeros(5, 2, dtype=torch.long), 16)
    assert everything.pairs == 1 and everything.between is None
    with pytest.raises(ValueError, match="no pair"):
        codes.collisions(x[:1], 16)
    with pytest.raises(ValueError, match="n ≥ 1"):
        codes.occupancy(x[:0], 16)


def test_stability_of_bins_has_the_size_of_the_noise():
    angles = TURN * torch.rand(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kept = codes.stability(lambda x: codes.angular_bins(x, 4), angles, 0.05, seed=0)
    # E|noise| over the bin's width leaves it: std of the angles 2π/√12, mean of |normal| √(2/π).
    expected = 1 - 0.05 * (TURN / math.sqrt(12)) * math.sqrt(2 / math.pi) / (TURN / 4)
    assert kept == pytest.approx(expected, abs=0.01)
    assert codes.stability(lambda x: codes.angular_bins(x, 4), angles, 0.0, seed=0) == 1
    assert kept == codes.stability(lambda x: codes.angular_bins(x, 4), angles, 0.05, seed=0)
