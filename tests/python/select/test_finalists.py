"""Sets that are trained before one is chosen: on synthetic losses that training reorders, and on small models."""

import math

import numpy as np
import pytest
import torch

import evaluator_cases
from evaluator_cases import events, kill
from hybridattn.distill import Stage
from hybridattn.select import AutoOptions, select_layers, train_finalists
from hybridattn.select.finalists import nearest_rivals

STAGE = Stage(tokens=40, seq_len=1, batch_size=1, lr=1e-3)
"""Of 40 steps: 10 per round."""
BEST, SECOND, THIRD = [2, 3], [2, 5], [2, 6]


class Trainable:
    """Untrained, {2, 3} is best, then {2, 5} and {2, 6}; `trained` (layers, step) says what training makes of a set."""

    num_layers, num_sequences = 8, 32

    def __init__(self, trained, batch_sizes=(8,) * 4):
        self.trained, self.batch_sizes, self.num_sequences = trained, batch_sizes, sum(batch_sizes)
        self.tasks, self.forgotten, self.measured = [], [], 0

    def losses(self, sets, progress=None, batches=None):
        self.measured += 1
        read = self.num_sequences if batches is None else sum(self.batch_sizes[number] for number in batches)
        return [self._row(kept, self._untrained(frozenset(kept)), 0)[:read] for kept in sets]

    def trained_losses(self, kept, from_step, to_step, stage, data, progress=None):
        assert (stage, data) == (STAGE, "text")
        progress(f"step {from_step}/{stage.total_steps}")
        self.tasks.append((sorted(kept), from_step, to_step))
        return self._row(kept, self.trained(sorted(kept), to_step), to_step)

    def forget(self, kept, stage, data):
        self.forgotten.append(sorted(kept))

    def _row(self, kept, mean, step):
        difficulty = np.random.default_rng(0).standard_normal(self.num_sequences)
        own = np.random.default_rng([step, *sorted(kept)]).standard_normal(self.num_sequences)
        return (mean + 0.05 * difficulty + 0.01 * own).tolist()

    @staticmethod
    def _untrained(kept):
        return 4.0 - sum({2: 1.5, 3: 0.6, 5: 0.5, 6: 0.4}.get(layer, 0.01) for layer in kept)

    def steps(self, layers):
        return max((to_step for kept, _, to_step in self.tasks if kept == layers), default=0)


def reordered(layers, step):
    return 1.0 if layers == SECOND else 1.5 if layers == BEST else 2.0


def select(evaluator, finalists=3, **options):
    return select_layers(evaluator, 2, AutoOptions(finalists=finalists, **options), stage=STAGE, data="text")


def test_the_set_that_is_best_once_trained_is_found():
    evaluator = Trainable(reordered)
    assert select_layers(evaluator, 2).layers == BEST, "untrained"
    assert evaluator.tasks == []
    found = select(evaluator)
    assert found.layers == SECOND
    assert sorted(found.ranking[:2]) == SECOND
    assert sorted(found.ranking) == list(range(8))
    assert [sorted(row.layers) for row in found.finalists] == [SECOND, BEST, THIRD]
    assert [row.verdict for row in found.finalists] == ["in", "out", "out"]
    told = [event["what"] for event in found.history]
    assert told[-1] == "keep [2, 5] of 3 trained finalists: surely the best at 95%"
    assert "train [2, 3] by stage 2 for 20 steps: out" in told
    assert found.history[-1]["loss"] == pytest.approx(1.0, abs=0.1)
    assert {tuple(kept) for kept, _, _ in evaluator.tasks} == {(2, 3), (2, 5), (2, 6)}, "the nearest rivals"


def test_finalists_that_are_surely_worse_stop_early_but_not_in_the_first_round():
    evaluator = Trainable(lambda layers, step: 2.0 if (layers == BEST) == (step > 10) else 3.0)
    assert select(evaluator).layers == BEST, "the worst of all after the first round, the best from then on"
    assert evaluator.steps(SECOND) == evaluator.steps(THIRD) == 20
    assert sorted(evaluator.forgotten) == [BEST, SECOND, THIRD]
    close = Trainable(lambda layers, step: 2.0)
    found = select(close)
    assert found.finalists[0].verdict == "open"
    assert "the lowest loss, not surely" in found.history[-1]["what"]
    assert all(close.steps(layers) == 40 for layers in (BEST, SECOND, THIRD))


def test_the_untrained_choice_stays_on_a_tie():
    evaluator = Trainable(lambda layers, step: 2.0)
    evaluator.trained_losses = lambda *arguments: [1.0, 2.0] * 16
    assert select(evaluator).layers == BEST


@pytest.mark.parametrize("finalists", [0, 1])
def test_one_finalist_is_none(finalists):
    evaluator = Trainable(reordered)
    assert select(evaluator, finalists) == select_layers(evaluator, 2)
    assert evaluator.tasks == []


@pytest.mark.parametrize("keep", [0, 8])
def test_without_rivals_nothing_is_trained(keep):
    evaluator = Trainable(reordered)
    found = select_layers(evaluator, keep, AutoOptions(finalists=3), stage=STAGE, data="text")
    assert (found.layers, evaluator.tasks) == (list(range(keep)), [])


def test_a_finalist_that_diverges_is_out_with_the_reason():
    evaluator = Trainable(lambda layers, step: math.nan if layers == SECOND and step > 10 else reordered(layers, step))
    found = select(evaluator)
    assert found.layers == BEST
    assert [(row.layers, row.loss) for row in found.finalists][-1] == (SECOND, None)
    reason = "diverged: held-out loss not finite after 20 steps"
    assert found.finalists[-1].reason == reason
    assert f"([2, 5] {reason})" in found.history[-1]["what"]
    assert all(math.isfinite(event["loss"]) for event in found.history)


def test_the_last_one_left_is_trained_before_it_is_taken():
    evaluator = Trainable(lambda layers, step: 1.0 if layers == THIRD else math.nan)
    found = select(evaluator)
    assert (found.layers, evaluator.steps(THIRD)) == (THIRD, 10)
    assert "the only one left" in found.history[-1]["what"]
    none = Trainable(lambda layers, step: math.nan)
    found = select(none)
    assert found.layers == BEST, "the choice without training"
    assert "no finalist trains" in found.history[-1]["what"]
    assert [row.verdict for row in found.finalists] == ["out"] * 3
    assert len(none.tasks) == 3


def test_what_finalists_need_is_named_before_anything_is_measured():
    evaluator = Trainable(reordered, batch_sizes=(4,))
    with pytest.raises(ValueError, match="finalists is 3, which trains candidates; give `stage` and `data`"):
        select_layers(evaluator, 2, AutoOptions(finalists=3))
    with pytest.raises(ValueError, match="4 held-out sequences were scored; the verdicts of this race"):
        select(evaluator)
    with pytest.raises(ValueError, match="rounds is 0"):
        select(evaluator, rounds=0)

    class Untrainable:
        num_layers, batch_sizes, losses = 8, (8,), evaluator.losses

    with pytest.raises(ValueError, match="give a CandidateEvaluator, not a Untrainable"):
        select(Untrainable())
    assert evaluator.measured == 0
    with pytest.raises(ValueError, match="need at least"):
        train_finalists(evaluator, [BEST, SECOND], STAGE, "text")
    assert evaluator.tasks == []


def test_rivals_are_compared_on_the_sequences_that_both_were_read_on():
    seen = {
        frozenset({0, 1}): [1.0, 1.0, 9.0, 9.0],  # the chosen one
        frozenset({0, 2}): [1.2, 1.2],  # a lower mean only because it missed the hard sequences
        frozenset({0, 3}): [1.1, 1.1, 9.1, 9.1],
        frozenset({1, 2}): [math.nan, 1.0],
        frozenset({2, 3}): [1.2, 1.2],
    }
    assert nearest_rivals([1, 0], seen) == [[0, 3], [0, 2], [2, 3]]
    assert nearest_rivals([0, 5], seen) == [], "nothing to compare with"


# ---- small models ----


@pytest.mark.parametrize("after", [1, 4, 6])
def test_killed_finalists_go_on_and_train_nothing_twice(tmp_path, after):
    whole, spent = evaluator_cases.finalists(tmp_path / "whole")
    assert len(whole.finalists) == 3
    run_dir = tmp_path / "killed"
    kill(f"finalists(Path({str(run_dir)!r}), line)", after, "finalist")
    before = events(run_dir)
    shown = []
    resumed, again = evaluator_cases.finalists(run_dir, shown.append)
    assert resumed == whole
    assert (again.tokens, again.flops) == (spent.tokens, spent.flops)
    assert events(run_dir)[: len(before)] == before
    assert events(run_dir) == events(tmp_path / "whole")
    trained = [line for line in shown if "step" in line]
    assert len(trained) == len(events(run_dir)) - len(before), "one line per round of two steps that was left"
    assert not list((run_dir / "candidates").iterdir()), "nobody trains them further"
    shown.clear()
    assert evaluator_cases.finalists(run_dir, shown.append)[0] == whole
    assert shown == []


def test_finalists_are_the_hybrids_that_stage_two_trains(tmp_path):
    import hybridattn as ha
    from hybridattn import evaluate

    found, _ = evaluator_cases.finalists(tmp_path, rounds=1)
    best = found.finalists[0]
    assert found.layers == best.layers
    assert best.loss == min(row.loss for row in found.finalists if row.verdict != "out")
    student, teacher = evaluator_cases.models()
    hybrid = ha.keep_softmax(student, teacher, best.layers)
    stage, steps = evaluator_cases.STAGE, evaluator_cases.STAGE.total_steps
    assert best.steps == steps
    ha.match(hybrid, teacher, evaluator_cases.data(), stage)
    with torch.no_grad():
        losses = evaluate.kl(hybrid, teacher, evaluator_cases.held_out())
    assert best.loss == pytest.approx(losses.mean().item(), rel=1e-5)


def test_a_real_finalist_diverges_and_the_others_go_on(tmp_path, monkeypatch):
    from hybridattn.select import candidate

    untrained, _ = evaluator_cases.finalists(None, count=0)
    train = candidate.TrainedCandidate.train_to

    def diverging(self, step, progress):
        if sorted(self.layers) == untrained.layers:
            with torch.no_grad():
                self.model.model.norm.weight.fill_(math.inf)
        return train(self, step, progress)

    monkeypatch.setattr(candidate.TrainedCandidate, "train_to", diverging)
    found, _ = evaluator_cases.finalists(tmp_path)
    assert found.layers != untrained.layers
    assert found.finalists[-1].layers == untrained.layers
    assert "finite" in found.finalists[-1].reason
    assert any("the loss is nan at step 0" in str(event.get("diverged")) for event in events(tmp_path))
