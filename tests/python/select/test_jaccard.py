"""Scoring that stops when the best K hardly change: the race in Python, on synthetic losses and on small models."""

import json
import math

import pytest

import evaluator_cases
from evaluator_cases import LAYERS, STAGE, data, held_out, models
from hybridattn.select import CandidateEvaluator, Race, ScoreOptions, race_layers


def loss(layer, step):
    """Layers 0 and 1 lead from step 20 on; before, 3 and 2 do."""
    return [layer if step >= 20 else -layer] * 2 + [layer + 0.5 if step >= 20 else 0.5 - layer] * 2


def jaccard(**options):
    return Race(num_layers=4, mode="jaccard", steps_per_round=10, max_steps=60, **({"keep": 2} | options))


def run(race):
    tasks = []
    while (task := race.next()) is not None:
        tasks.append(task)
        race.record(task[0], loss(task[0], task[2]))
    return tasks


def test_all_stop_together_once_the_best_agree():
    race = jaccard(jaccard_window=2)
    tasks = run(race)
    assert tasks[:5] == [(0, 0, 10), (1, 0, 10), (2, 0, 10), (3, 0, 10), (0, 10, 20)]
    assert race.agreement() == [0.0, 1.0, 1.0]
    assert {row["steps"] for row in race.ranking()} == {40}
    assert [(row["layer"], row["verdict"]) for row in race.ranking()] == [(0, "in"), (1, "in"), (2, "out"), (3, "out")]
    assert all(row["reason"].startswith("settled: the best 2") for row in race.ranking())
    assert len(run(jaccard(jaccard_window=1))) == 12
    assert len(run(jaccard(jaccard_window=3, jaccard_threshold=0.6))) == 16, "two of three agree"


def test_a_race_read_back_within_a_round_goes_on():
    whole = jaccard()
    expected = run(whole)
    race, tasks = jaccard(), []
    while (task := race.next()) is not None:
        tasks.append(task)
        race.record(task[0], loss(task[0], task[2]))
        race = Race.from_json(json.loads(json.dumps(race.to_json())))
    assert tasks == expected
    assert race.to_json() == whole.to_json()


def scored(tmp_path, mode, **options):
    evaluator = CandidateEvaluator(*models(), held_out(), tmp_path)
    return race_layers(
        evaluator, ScoreOptions("addition", mode, 1, 6, **options), keep=2, stage=STAGE, data=data()
    ), evaluator  # fmt: skip


def test_fewer_tokens_than_exhaustive_and_the_same_losses_on_the_way(tmp_path):
    exhaustive, spent = scored(tmp_path / "all", "exhaustive")
    early, less = scored(tmp_path / "early", "jaccard", jaccard_threshold=0.3, jaccard_window=1)
    steps = {row["steps"] for row in early.rows}
    assert len(steps) == 1, "all stop together"
    assert 2 <= steps.pop() < 6
    assert less.tokens < spent.tokens
    whole = {event["key"]: event for event in evaluator_cases.events(tmp_path / "all")[1:]}
    assert all(whole[event["key"]] == event for event in evaluator_cases.events(tmp_path / "early")[1:])
    assert early.top(k=2) == sorted(row["layer"] for row in early.rows if row["verdict"] == "in")
    assert not list((tmp_path / "early" / "candidates").iterdir()), "nobody trains them further"
    never, all_of_it = scored(tmp_path / "never", "jaccard", jaccard_window=9)
    assert all_of_it.tokens == spent.tokens
    assert [row["score"] for row in never.rows] == [row["score"] for row in exhaustive.rows]


def test_a_candidate_that_diverges_is_out_and_the_others_settle(monkeypatch):
    measure = CandidateEvaluator.trained_losses

    def diverging(self, kept, from_step, to_step, *others):
        losses = measure(self, kept, from_step, to_step, *others)
        return [math.nan] * len(losses) if list(kept) == [2] and to_step == 2 else losses

    monkeypatch.setattr(CandidateEvaluator, "trained_losses", diverging)
    scores, _ = scored(None, "jaccard", jaccard_threshold=0.3, jaccard_window=2)
    assert (scores.rows[-1]["layer"], scores.rows[-1]["verdict"], scores.rows[-1]["steps"]) == (2, "out", 2)
    assert "diverged" in scores.rows[-1]["reason"]
    assert 2 not in scores.top(k=2)
    assert sum(row["verdict"] == "in" for row in scores.rows) == 2


@pytest.mark.parametrize("keep", [0, LAYERS])
def test_none_or_all_train_nothing(keep):
    evaluator = CandidateEvaluator(*models(), held_out())
    options = ScoreOptions(mode="jaccard", steps_per_round=2, max_steps=6)
    assert race_layers(evaluator, options, keep=keep, stage=STAGE, data=data()).top(k=keep) == list(range(keep))
    assert evaluator.tokens == 0


def test_options_that_do_not_go_are_named():
    with pytest.raises(ValueError, match="expected one of exhaustive, racing, jaccard"):
        ScoreOptions(mode="jacard")
    evaluator = CandidateEvaluator(*models(), held_out())
    with pytest.raises(ValueError, match="racing and jaccard need to know how many to find"):
        race_layers(evaluator, ScoreOptions(mode="jaccard"))
    with pytest.raises(ValueError, match="jaccard_threshold is 2"):
        race_layers(evaluator, ScoreOptions(mode="jaccard", jaccard_threshold=2), keep=2)
