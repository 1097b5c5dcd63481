"""Held-out KL and perplexity on models whose numbers are known."""

import math

import pytest
import torch

from hybridattn import evaluate, ops
from hybridattn.data import Batch


def test_a_model_has_no_divergence_from_itself(small_model):
    model = small_model()
    batch = Batch(torch.randint(0, 29, (3, 12)))
    assert evaluate.kl(model, model, [batch]).tolist() == [0.0] * 3
    other = evaluate.kl(small_model(), model, [batch, batch])
    assert (other > 0).all()
    assert torch.equal(other[:3], other[3:])


def test_divergence_is_that_of_the_definition_over_counted_tokens(small_model):
    student, teacher = small_model(), small_model()
    mask = torch.rand(3, 12) < 0.5
    mask[:, 0] = True
    batch = Batch(torch.randint(0, 29, (3, 12)), loss_mask=mask)
    p, q = (model(batch.input_ids).logits.double().log_softmax(-1) for model in (teacher, student))
    per_token = (p.exp() * (p - q)).sum(-1)
    expected = [(row[keep]).mean().item() for row, keep in zip(per_token, mask, strict=True)]
    assert evaluate.kl(student, teacher, [batch]).tolist() == pytest.approx(expected, rel=1e-4)


def test_perplexity_is_transformers_loss(small_model):
    model = small_model()
    ids = torch.randint(0, 29, (3, 12))
    assert math.log(evaluate.perplexity(model, [Batch(ids)])) == pytest.approx(
        model(ids, labels=ids).loss.item(), rel=1e-5
    )


def test_perplexity_does_not_predict_across_documents(small_model):
    model = small_model()
    ids = torch.randint(0, 29, (1, 12))
    positions = torch.tensor([[*range(5), *range(7)]])
    packed = evaluate.perplexity(model, [Batch(ids, positions, torch.tensor([0, 5, 12]))])
    parts = [model(part, labels=part).loss.item() for part in (ids[:, :5], ids[:, 5:])]
    assert math.log(packed) == pytest.approx((4 * parts[0] + 6 * parts[1]) / 10, rel=1e-5)
    with pytest.raises(ValueError, match="no token with a next token"):
        evaluate.perplexity(model, [Batch(ids[:, :1])])


def test_models_are_evaluated_on_the_kernels(small_model, characters):
    model = small_model()
    batch = Batch(torch.randint(0, 29, (3, 12)))
    task = evaluate.RecallTask("letters", (evaluate.RecallItem("\3\4\5", ((1, 2),)),))

    def calls() -> int:
        return ops.backend_report().get("swiglu", {}).get("native", 0)

    for measure in (
        lambda: evaluate.kl(model, model, [batch]),
        lambda: evaluate.perplexity(model, [batch]),
        lambda: evaluate.score_recall(model, characters, task, scoring="forced"),
    ):
        before = calls()
        measure()
        assert calls() > before
