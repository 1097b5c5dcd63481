"""Selectors on synthetic losses in which two layers help only together."""

import numpy as np
import pytest

from hybridattn.select import ScoreOptions, race_layers, sequential_addition, swap_refinement


class Pair:
    """Eight layers; 2 and 3 together carry 3 nats, 2 alone carries 0.5, the others a little each."""

    num_layers = 8

    def losses(self, sets, progress=None):
        rows = []
        for kept in map(set, sets):
            value = 4.0 - 0.02 * len(kept) - 0.5 * (2 in kept) - 0.03 * (0 in kept) - 2.5 * ({2, 3} <= kept)
            rows.append((value + 0.05 * np.random.default_rng(0).standard_normal(32)).tolist())
        return rows


def test_addition_misses_the_pair_and_removal_finds_it():
    assert race_layers(Pair(), ScoreOptions("addition"), keep=2).top(k=2) == [0, 2]
    assert race_layers(Pair(), ScoreOptions("removal"), keep=2).top(k=2) == [2, 3]


def test_sequential_addition_finds_the_pair():
    result = sequential_addition(Pair(), 2)
    assert result.layers == [2, 3]
    assert [event["what"] for event in result.history] == ["add layer 2", "add layer 3"]


def test_swaps_repair_a_wrong_start_and_leave_a_right_one():
    assert swap_refinement(Pair(), [0, 2]).layers == [2, 3]
    assert len(swap_refinement(Pair(), [2, 3]).history) == 1
    assert swap_refinement(Pair(), []).layers == []
    assert swap_refinement(Pair(), range(8)).layers == list(range(8))


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match="keep is 9"):
        sequential_addition(Pair(), 9)
    with pytest.raises(ValueError, match="give `stage` and `data`"):
        race_layers(Pair(), ScoreOptions(max_steps=4), keep=2)
    scores = race_layers(Pair(), keep=2)
    with pytest.raises(ValueError, match="exactly one of k and fraction"):
        scores.top()
