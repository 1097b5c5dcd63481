"""Selectors on synthetic losses in which two layers help only together."""

import math

import numpy as np
import pytest

from hybridattn.select import (
    ScoreOptions,
    backward_elimination,
    race_layers,
    race_sets,
    select_layers,
    sequential_addition,
    swap_refinement,
)


class Losses:
    """Held-out losses of any set of layers from a function of the set: noise of its own, and difficulty per sequence."""

    batch_sizes = (8,) * 8

    def __init__(self, num_layers, loss, noise=0.02):
        self.num_layers, self.loss, self.noise = num_layers, loss, noise
        self.read = set()

    def losses(self, sets, progress=None, batches=None):
        difficulty = np.random.default_rng(0).standard_normal(64)
        rows = []
        for kept in map(frozenset, sets):
            own = np.random.default_rng([1, *sorted(kept)]).standard_normal(64)
            row = self.loss(kept) + 0.05 * difficulty + self.noise * own
            read = 64 if batches is None else 8 * len(batches)
            self.read |= {(kept, sequence) for sequence in range(read)}
            rows.append(row[:read].tolist())
        return rows


def pair(kept):
    """2 and 3 together carry 2.5 nats, 2 alone 0.5, 0 a little, every layer a trace."""
    return 4.0 - 0.02 * len(kept) - 0.5 * (2 in kept) - 0.03 * (0 in kept) - 2.5 * ({2, 3} <= kept)


def Pair():
    return Losses(8, pair, noise=0)


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


def two_pairs(kept):
    """Two pairs that help only together: (1, 6), which carries more, and (2, 3)."""
    return 5.0 - 2.0 * ({1, 6} <= kept) - 1.5 * ({2, 3} <= kept) - 0.01 * len(kept)


def test_elimination_keeps_pairs_together_and_gives_nested_sets():
    order = backward_elimination(Losses(8, two_pairs), tolerance=0.01)
    assert sorted(order.layers) == list(range(8))
    assert order.top(2) == [1, 6]
    assert order.top(4) == [1, 2, 3, 6]
    assert order.sizes[0] == 8
    assert order.sizes[-1] == 0
    assert all(math.isfinite(event["loss"]) for event in order.history)
    partly = backward_elimination(Losses(8, two_pairs), keep=4)
    assert (partly.top(4), partly.sizes[-1]) == ([1, 2, 3, 6], 4)


def test_pairs_that_single_exchanges_cannot_reach_are_exchanged_together():
    start = [2, 3]
    assert swap_refinement(Losses(8, two_pairs), start).layers == [2, 3]
    found = swap_refinement(Losses(8, two_pairs), start, together=2)
    assert found.layers == [1, 6]
    assert found.history[-1]["what"] == "exchange layers 2 and 3 for layers 1 and 6"
    within_reach = swap_refinement(Losses(8, two_pairs), start, together=2, reach=2, ranking=[2, 3, 1, 6, 0, 4, 5, 7])
    assert within_reach.layers == [1, 6]
    out_of_reach = swap_refinement(Losses(8, two_pairs), start, together=2, reach=2, ranking=[2, 3, 0, 4, 5, 7, 1, 6])
    assert out_of_reach.layers == [2, 3]


@pytest.mark.parametrize(
    ("loss", "keep", "best"), [(pair, 2, [2, 3]), (two_pairs, 2, [1, 6]), (two_pairs, 4, [1, 2, 3, 6])]
)
def test_the_default_finds_what_works_together(loss, keep, best):
    evaluator = Losses(8, loss)
    chosen = select_layers(evaluator, keep)
    assert chosen.layers == best
    assert sorted(chosen.ranking[:keep]) == best
    assert sorted(chosen.ranking) == list(range(8))


def test_one_dominant_layer_is_found_with_few_sequences():
    evaluator = Losses(12, lambda kept: 3.0 - 2.5 * (7 in kept) - 0.001 * len(kept), noise=0.002)
    assert select_layers(evaluator, 1).layers == [7]
    assert len(evaluator.read) < 12 * 64, "less than one pass over all sequences for each layer"


def test_layers_that_are_all_equal_are_not_told_apart():
    evaluator = Losses(6, lambda kept: 2.0 - 0.3 * len(kept), noise=0)
    first, second = select_layers(evaluator, 3), select_layers(evaluator, 3)
    assert first == second, "ties are broken alike each time"
    assert len(first.layers) == 3
    assert all("exchange" not in event["what"] for event in first.history)


@pytest.mark.parametrize(("layers", "keep"), [(5, 0), (5, 5), (1, 0), (1, 1)])
def test_none_or_all_and_a_single_layer(layers, keep):
    chosen = select_layers(Losses(layers, lambda kept: 2.0 - 0.3 * len(kept)), keep)
    assert chosen.layers == list(range(keep))
    assert sorted(chosen.ranking) == list(range(layers))


def test_a_set_whose_loss_is_not_finite_is_out_with_the_reason():
    def broken(kept):
        return math.nan if 4 not in kept and len(kept) < 8 else pair(kept)

    row = race_sets(Losses(8, broken), [[2, 3], [0, 4], [2, 4]], 1)[-1]
    assert (row.kept, row.verdict, row.reason) == (frozenset({2, 3}), "out", "the held-out loss is not finite")
    assert 4 in select_layers(Losses(8, broken), 3).layers


def test_the_share_of_wrong_choices_is_as_stated():
    """Adversarial noise: skewed, heavy-tailed, two nats per sequence. A verdict may be wrong once in twenty races."""
    wrong = decided = 0
    for seed in range(400):
        rows = np.exp(np.random.default_rng(seed).standard_normal((4, 64))) + np.array([[0.0], [1.0], [1.0], [1.5]])

        class Noisy(Losses):
            def losses(self, sets, progress=None, batches=None, rows=rows):
                return [rows[min(kept), : 8 * len(batches)].tolist() for kept in sets]

        raced = race_sets(Noisy(4, None), [[0], [1], [2], [3]], 1)
        decided += raced[0].verdict == "in"
        wrong += any((row.verdict == "in") != (0 in row.kept) for row in raced if row.verdict != "open")
    assert wrong <= 20
    assert decided > 40, "not by never deciding"


def test_a_proposal_that_is_better_takes_the_place():
    """Elimination takes 5 first where it must not: with it the others are worth nothing."""

    def trap(kept):
        return 3.0 - 0.2 * len(kept & {0, 1, 2}) - (2.5 if kept == {3, 5} else 0.0)

    assert select_layers(Losses(8, trap), 2, proposals={"gates": [5, 3]}).layers == [3, 5]
    with pytest.raises(ValueError, match="keep is 9"):
        select_layers(Losses(8, trap), 9)
    with pytest.raises(ValueError, match=r"share is 0, expected a value in \(0, 1\]"):
        backward_elimination(Losses(8, trap), share=0)
