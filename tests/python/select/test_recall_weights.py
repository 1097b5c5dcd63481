"""Recall weights against the teacher run token by token on cut contexts; the loss, the budget and the cache made of them."""

import time

import pytest
import torch

from evaluator_cases import LAYERS, STAGE, data, held_out, models
from hybridattn import evaluate, hf, ops
from hybridattn.convert import keep_softmax
from hybridattn.data import Batch
from hybridattn.select import (
    CandidateEvaluator,
    KindCosts,
    RecallWeights,
    keep_for_latency,
    keep_for_memory,
    keep_for_recall,
    retained_recall,
    select_layers,
)

WINDOW = 4


def surprise(teacher, ids, label):
    """-log p(label) after the context `ids` [T]."""
    return -float(teacher(input_ids=ids[None]).logits[0, -1].log_softmax(-1)[label])


def naive_weights(teacher, document):
    """By how much the next token surprises more with 2 to 4 tokens of context than with all."""
    weights = []
    for place in range(len(document) - 1):
        start = max(0, 2 * -(-(place - 3) // 2))
        label = document[place + 1]
        drop = surprise(teacher, document[start : place + 1], label) - surprise(teacher, document[: place + 1], label)
        weights.append(max(0.0, drop))
    return torch.tensor([*weights, 0.0])


def test_weights_are_the_drop_on_a_cut_context():
    _, teacher = models()
    ids = torch.randint(0, 31, (2, 12), generator=torch.Generator().manual_seed(3))
    weights = RecallWeights(teacher, WINDOW)(Batch(ids))
    for row, document in zip(weights, ids, strict=True):
        torch.testing.assert_close(row, naive_weights(teacher, document), atol=1e-5, rtol=1e-4)
    assert weights[:, :WINDOW].max() < 1e-5, "nothing is cut off there"
    assert weights.max() > 0.01


def test_contexts_are_cut_at_documents_too():
    _, teacher = models()
    ids = torch.randint(0, 31, (1, 12), generator=torch.Generator().manual_seed(4))
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8]])
    batch = Batch(ids, positions, torch.tensor([0, 3, 12]))
    weights = RecallWeights(teacher, WINDOW)(batch)[0]
    # Segments begin at even places of the row, not of the document; each document's last token has no next one.
    assert weights[2] == 0
    assert weights[11] == 0
    second = ids[0, 3:]
    for place in range(3, 11):
        start = max(3, 2 * -(-(place - 3) // 2)) - 3
        label, end = second[place - 2], place - 2
        drop = surprise(teacher, second[start:end], label) - surprise(teacher, second[:end], label)
        assert float(weights[place]) == pytest.approx(max(0.0, drop), abs=1e-5)


def test_windows_that_cut_nothing_are_named():
    _, teacher = models()
    with pytest.raises(ValueError, match="window is 1 tokens, expected at least 2"):
        RecallWeights(teacher, 1)
    with pytest.raises(ValueError, match="a window of 12 tokens cuts nothing off sequences of 12"):
        CandidateEvaluator(*models(), held_out(), loss="recall_kl", window=12)
    with pytest.raises(ValueError, match="loss is 'kll', expected one of kl, recall_kl"):
        CandidateEvaluator(*models(), held_out(), loss="kll")


def test_both_losses_share_a_run_directory_and_weights_are_computed_once(tmp_path, monkeypatch):
    student, teacher = models()
    evaluator = CandidateEvaluator(student, teacher, held_out(), tmp_path, loss="recall_kl", window=WINDOW)
    (weighted,) = evaluator.losses([[1]])
    assert evaluator.tokens == 3 * 144, "one hybrid, and two more passes of the teacher"
    weights = evaluator.token_weights()
    assert float(torch.cat(weights).mean()) == pytest.approx(1, rel=1e-6)
    hybrid, expected = keep_softmax(student, teacher, [1]), []
    with torch.no_grad():
        for batch, weight in zip(held_out(), weights, strict=True):
            per_token = ops.linear_kl_divergence(
                hf.hidden_states(hybrid, batch), hf.head_weight(hybrid),
                hf.hidden_states(teacher, batch), hf.head_weight(teacher), reduction="none",
            )  # fmt: skip
            expected += (per_token * weight).mean(1).tolist()
    assert weighted == pytest.approx(expected, rel=1e-4)

    monkeypatch.setattr(RecallWeights, "__call__", lambda *arguments: pytest.fail("computed again"))
    again = CandidateEvaluator(student, teacher, held_out(), tmp_path, loss="recall_kl", window=WINDOW)
    assert again.losses([[1]]) == [weighted]
    again.losses([[0]])
    assert again.tokens == 4 * 144
    (plain,) = CandidateEvaluator(student, teacher, held_out(), tmp_path).losses([[1]])
    assert plain == pytest.approx(evaluate.kl(hybrid, teacher, held_out()).tolist(), rel=1e-4)
    assert plain != weighted


@pytest.mark.parametrize("trained", [False, True])
def test_the_time_of_weights_is_counted_once(monkeypatch, trained):
    clock, formed = [0.0], RecallWeights.__call__

    def slow(self, *given):
        clock[0] += 100
        return formed(self, *given)

    monkeypatch.setattr(RecallWeights, "__call__", slow)
    evaluator = CandidateEvaluator(*models(), held_out(), loss="recall_kl", window=WINDOW)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    if trained:
        evaluator.trained_losses([1], 0, 2, STAGE, data())
    else:
        evaluator.losses([[1], [2]])
    assert evaluator.seconds == 200, "of two batches"


def test_a_killed_selection_goes_on_and_measures_nothing_twice(tmp_path):
    def select(run_dir, progress=lambda line: None):
        evaluator = CandidateEvaluator(*models(), held_out(), run_dir, loss="recall_kl")
        return select_layers(evaluator, 2, progress=progress), evaluator.tokens

    class Killed(Exception):
        pass

    whole = select(tmp_path / "whole")
    lines = (tmp_path / "whole" / "events.jsonl").read_text().splitlines()
    for after in (1, 3, 5):
        left = [after]

        def line(text, left=left):
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        with pytest.raises(Killed):
            select(tmp_path / str(after), line)
        assert select(tmp_path / str(after)) == whole
        assert len((tmp_path / str(after) / "events.jsonl").read_text().splitlines()) == len(lines)


def test_retained_recall_is_1_for_the_teacher_and_its_budget_is_met():
    evaluator = CandidateEvaluator(*models(), held_out(), window=WINDOW)
    everything, nothing = retained_recall(evaluator, [range(LAYERS), []])
    assert everything == 1
    ranking = list(range(LAYERS))
    assert keep_for_recall(evaluator, ranking, 0.0)[0] <= LAYERS
    keep, tried = keep_for_recall(evaluator, ranking, 0.5)
    assert all((event["recall"] >= 0.5) == (event["keep"] >= keep) for event in tried)
    assert nothing != 1
    with pytest.raises(ValueError, match="recall_drop is 1"):
        keep_for_recall(evaluator, ranking, 1)


def test_the_most_layers_that_a_latency_or_a_cache_allows():
    costs = KindCosts(
        10, 4096, softmax_seconds=0.030, linear_seconds=0.010, softmax_bytes=100 << 20, linear_bytes=10 << 20
    )
    assert [keep_for_latency(costs, budget) for budget in (10, 13.9, 14.1, 100)] == [0, 1, 2, 10]
    assert [keep_for_memory(costs, budget) for budget in (10, 18.9, 19, 1000)] == [0, 0, 1, 10]
    with pytest.raises(ValueError, match=r"latency of 9 ms .* this machine needs 10 ms after 4096 tokens"):
        keep_for_latency(costs, 9)
    with pytest.raises(ValueError, match=r"cache of 9 MiB .* at least 10 MiB"):
        keep_for_memory(costs, 9)
    softmax_cheaper = KindCosts(4, 16, 0.01, 0.02, 1 << 20, 2 << 20)
    assert keep_for_latency(softmax_cheaper, 11) == 4
