"""Measurements of a real model: shared work changes nothing, and a search goes on after a kill to the same bits."""

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import hybridattn as ha
from evaluator_cases import LAYERS, STAGE, data, events, held_out, kill, models, race
from hybridattn import evaluate
from hybridattn.data import Batch, TokenData
from hybridattn.select import CandidateEvaluator, ScoreOptions, race_layers, sequential_addition, swap_refinement
from hybridattn.select.journal import Journal


def test_hybrids_that_share_layers_score_as_alone():
    student, teacher = models()
    sets = [[], [0], [4], [1, 3], [0, 1, 2, 3], range(LAYERS), [1, 3]]
    evaluator = CandidateEvaluator(student, teacher, held_out())
    for kept, losses in zip(sets, evaluator.losses(sets), strict=True):
        alone = evaluate.kl(ha.keep_softmax(student, teacher, kept), teacher, held_out()).tolist()
        assert losses == pytest.approx(alone, rel=1e-5, abs=1e-7)
    assert evaluator.losses([range(LAYERS)])[0] == [0.0] * 12
    assert evaluator.tokens == 6 * 144, "six different hybrids, each measured once"


def test_layers_that_share_values_score_as_alone():
    """The lowest mixer of each hybrid is another one, and hybrids that part pass on their own values."""
    student, teacher = models("rwkv7", value_residual=True)
    with torch.no_grad():
        for mixer in student.mixers().values():
            mixer.v_scale.fill_(1.5)
    sets = [[], [0], [1], [0, 1], [0, 2], [4]]
    for kept, losses in zip(sets, CandidateEvaluator(student, teacher, held_out()).losses(sets), strict=True):
        alone = evaluate.kl(ha.keep_softmax(student, teacher, kept), teacher, held_out()).tolist()
        assert losses == pytest.approx(alone, rel=1e-5, abs=1e-7)


def test_packed_documents_and_masks_count_as_in_evaluation():
    student, teacher = models()
    positions = torch.arange(12).repeat(2, 1)
    positions[0, 5:] -= 5
    mask = torch.rand(2, 12) < 0.5
    batch = Batch(torch.randint(0, 31, (2, 12)), positions, torch.tensor([0, 5, 12, 24]), mask)
    (losses,) = CandidateEvaluator(student, teacher, [batch]).losses([[1]])
    alone = evaluate.kl(ha.keep_softmax(student, teacher, [1]), teacher, [batch]).tolist()
    assert losses == pytest.approx(alone, rel=1e-5)


def test_models_are_left_as_they_were():
    student, teacher = models()
    before = {name: tensor.clone() for name, tensor in (student.state_dict() | teacher.state_dict()).items()}
    attention = [layer.self_attn for layer in teacher.model.layers]
    evaluator = CandidateEvaluator(student, teacher, held_out())
    race_layers(evaluator, ScoreOptions(max_steps=2), keep=2, stage=STAGE, data=data())
    assert [layer.self_attn for layer in teacher.model.layers] == attention
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in (student.state_dict() | teacher.state_dict()).items()
    )


@pytest.mark.parametrize(
    ("mode", "after"), [("racing", 1), ("racing", 4), ("racing", 9), ("jaccard", 4), ("jaccard", 7)]
)
def test_a_killed_race_goes_on_and_measures_nothing_twice(tmp_path, mode, after):
    whole = race(tmp_path / "whole", mode=mode)
    run_dir = tmp_path / "killed"
    kill(f"race(Path({str(run_dir)!r}), line, {mode!r})", after)
    before = events(run_dir)
    trained = []
    resumed = race(run_dir, trained.append, mode)
    assert resumed.rows == whole.rows
    assert (resumed.tokens, resumed.flops) == (whole.tokens, whole.flops)
    assert events(run_dir)[: len(before)] == before
    assert events(run_dir) == events(tmp_path / "whole")
    assert len(trained) <= len(events(run_dir)) - len(before) + 1, "steps that were parked do not run again"
    assert not list((run_dir / "candidates").iterdir()), "nobody trains them further"
    again = []
    assert race(run_dir, again.append, mode).rows == whole.rows
    assert again == []


def test_a_run_directory_of_other_models_is_refused(tmp_path):
    student, teacher = models()
    CandidateEvaluator(student, teacher, held_out(), tmp_path).losses([[0]])
    with pytest.raises(ValueError, match=r"another run .held_out was .*choose another directory"):
        CandidateEvaluator(student, teacher, held_out()[:1], tmp_path)
    with torch.no_grad():
        student.mixers()[0].q_proj.weight += 1
    with pytest.raises(ValueError, match=r"another run .student was"):
        CandidateEvaluator(student, teacher, held_out(), tmp_path)


def test_a_line_that_was_being_written_is_dropped_and_a_damaged_one_is_named(tmp_path):
    student, teacher = models()
    (expected,) = CandidateEvaluator(student, teacher, held_out(), tmp_path).losses([[0]])
    path = tmp_path / "events.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert CandidateEvaluator(student, teacher, held_out(), tmp_path).losses([[0]]) == [expected]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "{broken\n" + lines[1])
    with pytest.raises(ValueError, match=r"events.jsonl, line 2 is damaged"):
        CandidateEvaluator(student, teacher, held_out(), tmp_path)


def test_a_candidate_that_diverges_is_out_with_the_reason(tmp_path, monkeypatch):
    from hybridattn.select import candidate

    train = candidate.TrainedCandidate.train_to

    def diverging(self, step, progress):
        if 2 not in self.layers:
            with torch.no_grad():
                self.model.model.norm.weight.fill_(math.inf)
        return train(self, step, progress)

    monkeypatch.setattr(candidate.TrainedCandidate, "train_to", diverging)
    student, teacher = models()
    evaluator = CandidateEvaluator(student, teacher, held_out(), tmp_path)
    scores = race_layers(evaluator, ScoreOptions(max_steps=2), keep=2, stage=STAGE, data=data())
    row = scores.rows[-1]
    assert (row["layer"], row["verdict"]) == (2, "out")
    assert "finite" in row["reason"]
    recorded = next(event for event in events(tmp_path) if event.get("diverged"))
    assert "match: the loss is nan at step 0" in recorded["diverged"]
    assert recorded["losses"] is None


def test_all_or_none_are_kept_without_a_comparison():
    student, teacher = models()
    for keep in (0, LAYERS):
        evaluator = CandidateEvaluator(student, teacher, held_out())
        options = ScoreOptions(mode="racing", steps_per_round=2, max_steps=6)
        scores = race_layers(evaluator, options, keep=keep, stage=STAGE, data=data())
        assert scores.top(k=keep) == list(range(keep))
        assert evaluator.tokens == 0
        assert sequential_addition(evaluator, keep).layers == list(range(keep))
        assert swap_refinement(evaluator, range(keep)).layers == list(range(keep))


def test_the_public_function_measures_on_held_out_documents(tmp_path):
    student, teacher = models()
    # fmt: off
    scores = ha.score_layers(student, teacher, data(), ScoreOptions("addition", held_out_sequences=6), keep=2,
                             run_dir=tmp_path)
    # fmt: on
    assert len(scores.rows) == LAYERS
    assert events(tmp_path)[0]["identity"]["dtype"] == "float32"
    with pytest.raises(ValueError, match="held-out"):
        ha.score_layers(student, teacher, data(), ScoreOptions(held_out_sequences=10_000), keep=2)
    with pytest.raises(ValueError, match="sequences"):
        ha.score_layers(
            student, teacher, data(), ScoreOptions(mode="racing", held_out_sequences=1, confidence=0.999), keep=2
        )
    with pytest.raises(ValueError, match="criterion is 'adition'"):
        ScoreOptions("adition")


TWICE = """
import sys
import time
from pathlib import Path
sys.path.insert(0, {tests!r})
import evaluator_cases
print(evaluator_cases.race(Path({run_dir!r})).rows)
"""


def test_two_processes_on_one_race_share_its_measurements(tmp_path):
    whole = race(tmp_path / "alone")
    code = TWICE.format(tests=str(Path(__file__).parent.parent), run_dir=str(tmp_path / "shared"))
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    lines = []
    while other.poll() is None and not (tmp_path / "shared" / "events.jsonl").exists():
        time.sleep(0.01)
    mine = race(tmp_path / "shared", lines.append)
    printed, _ = other.communicate(timeout=120)
    assert other.returncode == 0
    assert mine.rows == whole.rows
    assert printed.strip() == str(whole.rows)
    assert (mine.tokens, mine.flops) == (whole.tokens, whole.flops), "the ledger holds what both measured"
    assert sorted(event["key"] for event in events(tmp_path / "shared")[1:]) == sorted(
        event["key"] for event in events(tmp_path / "alone")[1:]
    ), "nothing is measured twice"


def test_whoever_waits_for_another_process_says_so_and_takes_up_its_events(tmp_path):
    mine, other = (Journal(tmp_path / "events.jsonl", {"teacher": "x"}) for _ in range(2))
    waited = []

    def measure_elsewhere():
        waited.append(True)
        other.add("a", losses=[1.0])
        holding.__exit__(None, None, None)

    holding = other.measuring()
    holding.__enter__()
    with mine.measuring(measure_elsewhere):
        assert waited
        assert mine.get("a")["losses"] == [1.0]
        mine.add("a", losses=[2.0])
    assert other.get("a")["losses"] == [1.0]
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2


def test_no_held_out_document_trains_a_candidate(tmp_path, monkeypatch):
    from hybridattn.distill import MatchObjective

    rows = torch.randint(0, 31, (60, 12), generator=torch.Generator().manual_seed(1))
    split = TokenData.from_tokens(torch.cat([rows, rows[:20]]), held_out=0.2)  # some documents twice
    scored = {tuple(row) for batch in split.held_out() for row in batch.input_ids.tolist()}
    trained = set()
    backward = MatchObjective.backward

    def spy(self, batch, *arguments):
        trained.update(map(tuple, batch.input_ids.tolist()))
        return backward(self, batch, *arguments)

    monkeypatch.setattr(MatchObjective, "backward", spy)
    evaluator = CandidateEvaluator(*models(), split.held_out(8), tmp_path, loss="recall_kl")
    stage = STAGE.model_copy(update={"tokens": 60 * 2 * 12})
    race_layers(evaluator, ScoreOptions("addition", max_steps=60), keep=1, stage=stage, data=split)
    assert len(trained) > 30
    assert not trained & scored
