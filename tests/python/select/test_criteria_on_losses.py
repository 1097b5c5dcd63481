"""Criteria that need nothing but losses of layer sets: ties, one dominant layer, K = 0, K = L, one layer, spacing."""

from itertools import combinations

import numpy as np
import pytest

from hybridattn import _C
from hybridattn.select import ScoreOptions, race_layers, sequential_addition, swap_refinement
from hybridattn.select.criteria import criterion_type
from hybridattn.select.criteria.spacing import spaced

NAMES = ["ga_s2", "gr_s2", "avg_s2", "smart", "uniform", "random", "first", "last"]
JUDGING = ["ga_s2", "gr_s2", "avg_s2"]


class Losses:
    """Losses by formula, with noise per sequence that is the same for all sets."""

    batch_sizes = (16,)

    def __init__(self, num_layers, formula):
        self.num_layers, self.formula = num_layers, formula

    def losses(self, sets, progress=None, batches=None):
        noise = 0.05 * np.random.default_rng(0).standard_normal(16)
        if progress is not None:
            progress("measured")
        return [(self.formula(set(kept)) + noise).tolist() for kept in sets]


def pair(kept):
    return 4.0 - 0.02 * len(kept) - 0.5 * (2 in kept) - 0.03 * (0 in kept) - 2.5 * ({2, 3} <= kept)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("layers", "keep"), [(1, 0), (1, 1), (5, 0), (5, 5), (5, 2)])
def test_any_number_of_layers_may_be_kept(name, layers, keep):
    found = race_layers(Losses(layers, lambda kept: 1.0 + len(kept)), ScoreOptions(name), keep=keep)
    assert len(found.rows) == layers
    assert len(set(found.top(k=keep))) == keep
    if name in JUDGING:
        everything = {0: {"out"}, layers: {"in"}}
        assert {row["verdict"] for row in found.rows} <= everything.get(keep, {"open", "in", "out"})


@pytest.mark.parametrize("name", JUDGING)
def test_equal_layers_are_told_apart_by_nobody(name):
    found = race_layers(Losses(6, lambda kept: 1.0), ScoreOptions(name), keep=2)
    assert [row["layer"] for row in found.rows] == list(range(6)), "the lower layer first on a tie"
    assert len({row["score"] for row in found.rows}) == 1
    assert {row["verdict"] for row in found.rows} == {"open"}


@pytest.mark.parametrize("name", JUDGING)
def test_one_dominant_layer_is_surely_in_and_leaves_the_others_open(name):
    found = race_layers(Losses(6, lambda kept: 1.0 - (4 in kept)), ScoreOptions(name), keep=2)
    assert found.rows[0]["layer"] == 4
    verdicts = {row["layer"]: row["verdict"] for row in found.rows}
    assert verdicts.pop(4) == "in"
    if name != "avg_s2":  # tied ranks put the same of the tied layers first in every resample
        assert set(verdicts.values()) == {"open"}


def test_ranks_by_addition_and_removal_are_averaged():
    found = race_layers(Losses(8, pair), ScoreOptions("avg_s2"), keep=2)
    rows = {row["layer"]: row["score"] for row in found.rows}
    # Addition: 2 first, 0 second, the other six share 3 to 8. Removal: 2 and 3, then 0, then five that share 4 to 8.
    assert rows[2] == 1
    assert rows[0] == (2 + 3) / 2
    assert rows[3] == (5.5 + 2) / 2
    assert rows[7] == (5.5 + 6) / 2
    assert found.top(k=2) == [0, 2]


def test_a_criterion_that_needs_models_says_so():
    for name in ("ga_s1", "act_mse", "lm_ppl", "ar", "halo", "learned_gates"):
        with pytest.raises(ValueError, match=rf"criterion '{name}' looks into the models; give a CandidateEvaluator"):
            race_layers(Losses(4, pair), ScoreOptions(name), keep=2, data=object())


def test_plans_are_the_plans():
    losses = Losses(8, pair)
    for offset in range(_C.select.uniform_offsets(8, 2)):
        found = race_layers(losses, ScoreOptions("uniform", options={"offset": offset}), keep=2)
        assert found.top(k=2) == [offset, offset + 4]
        assert found.top(k=4) == list(_C.select.uniform_plan(8, 4, offset)), "a plan of any K"
    assert race_layers(losses, ScoreOptions("last"), keep=3).top(k=3) == [5, 6, 7]
    assert race_layers(losses, ScoreOptions("explicit", options={"listed": [6, 1]})).top(k=2) == [1, 6]


def allowed(layers, count):
    """SMART's sets by enumeration: ends in the outer blocks, steps that differ by at most one."""
    block = layers // count
    for kept in combinations(range(layers), count):
        steps = np.diff(kept)
        if kept[0] < block and kept[-1] >= layers - block and (count < 3 or steps.max() - steps.min() <= 1):
            yield kept


@pytest.mark.parametrize(("layers", "count"), [(8, 2), (8, 3), (12, 4), (13, 5), (9, 9), (10, 1), (10, 0)])
def test_spacing_finds_the_best_allowed_set(layers, count):
    rng = np.random.default_rng(layers * 100 + count)
    for _ in range(20):
        scores = rng.standard_normal(layers)
        order = np.argsort(scores)
        chosen = spaced([{"layer": int(layer), "score": float(scores[layer])} for layer in order], count)
        if count < 2:
            assert chosen == [int(layer) for layer in order[:count]]
            continue
        assert tuple(chosen) in set(allowed(layers, count))
        ends = [kept for kept in allowed(layers, count) if (kept[0], kept[-1]) == (chosen[0], chosen[-1])]
        assert sum(scores[chosen]) == pytest.approx(min(sum(scores[list(kept)]) for kept in ends))
        block = layers // count
        assert scores[chosen[0]] == min(scores[:block])
        assert scores[chosen[-1]] == min(scores[layers - block :])


def test_spacing_is_the_rule_of_smart():
    equal = [{"layer": layer, "score": 1.0} for layer in range(8)]
    assert spaced(equal, 2) == [0, 4], "the lower layer on a tie"
    # The best two layers are neighbours; only one of them may stay.
    found = race_layers(
        Losses(8, lambda kept: 3.0 - 2 * (2 in kept) - 1.5 * (3 in kept) - (6 in kept)), ScoreOptions("smart")
    )
    assert found.top(k=2) == [2, 6]
    assert criterion_type("smart").trains_candidates


FORMULAS = [pair, lambda kept: 1.0, lambda kept: 3.0 - (4 in kept) - 0.5 * (1 in kept)]


def mean_loss(losses, kept):
    return float(np.mean(losses.losses([kept])[0]))


@pytest.mark.parametrize("formula", FORMULAS)
def test_sequential_addition_is_greedy(formula):
    """The search is C++'s; the expectation is worked out here."""
    losses, lines = Losses(8, formula), []
    for keep in (0, 1, 2, 4):
        chosen, found = [], sequential_addition(losses, keep, lines.append)
        for step in range(keep):
            outside = [layer for layer in range(8) if layer not in chosen]
            best = min(outside, key=lambda layer: (mean_loss(losses, [*chosen, layer]), layer))
            chosen.append(best)
            assert found.history[step]["what"] == f"add layer {best}"
            assert found.history[step]["loss"] == pytest.approx(mean_loss(losses, chosen))
        assert found.layers == sorted(chosen)
    assert lines[-1] == "pick 4/4  measured"


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("start", [[], [0], [0, 2], [2, 3], [5, 6, 7]])
def test_cpp_exchanges_are_those_of_python(formula, start):
    losses = Losses(8, formula)
    layers, history = _C.select.swap_refinement(losses, start)
    python = swap_refinement(losses, start)
    assert layers == python.layers
    assert history[-1]["loss"] == pytest.approx(mean_loss(losses, layers))


def test_a_candidate_that_diverged_is_never_picked():
    losses = Losses(4, lambda kept: float("nan") if 3 in kept else 4.0 - (1 in kept))
    assert sequential_addition(losses, 3).layers == [0, 1, 2]
    with pytest.raises(ValueError, match="the losses of all candidates are not finite"):
        sequential_addition(Losses(2, lambda kept: float("nan")), 1)


def test_errors_of_python_losses_come_through_the_searches():
    class Broken(Losses):
        def losses(self, sets, progress=None):
            raise RuntimeError("no such model")

    with pytest.raises(RuntimeError, match="no such model"):
        _C.select.sequential_addition(Broken(3, pair), 1)
