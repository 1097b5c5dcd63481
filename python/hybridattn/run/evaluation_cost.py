"""What measuring a model costs: ``[eval]``'s suite and its table of costs, from a part of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from hybridattn import hf
from hybridattn.distill.fingerprint import matrix_weights
from hybridattn.evaluate import Suite, measure_cost, score_recall
from hybridattn.evaluate.cost import DECODE_TOKENS, REPEATS
from hybridattn.evaluate.quality import kl, perplexity
from hybridattn.evaluate.recall import RecallTask
from hybridattn.evaluate.scoring import prompts_and_tokens
from hybridattn.run.probe import timed

Cost = tuple[int, float, float | None]
"""Tokens that go through models, operations, seconds (None where nothing was timed)."""


def evaluation_cost(suite: Suite, model: nn.Module, teacher: nn.Module, is_timed: bool) -> Cost:
    """Of ``suite.measure(model, teacher)``. A batch of held-out sequences and about a batch of each task's prompts are
    measured; generation that ends early takes less."""
    weights, of_teacher = matrix_weights(model), matrix_weights(teacher)
    held_out = sum(batch.num_tokens for batch in suite.held_out)
    # KL reads the sequences with both models, perplexity with one.
    tokens, flops = 3 * held_out, 2.0 * held_out * (2 * weights + of_teacher)
    seconds = 0.0
    if is_timed and held_out:
        first = suite.held_out[:1]
        took = timed(lambda: (kl(model, teacher, first), perplexity(model, first)))
        seconds += took * held_out / first[0].num_tokens
    vocabulary = hf.head_weight(model).shape[0]
    for task in suite.tasks:
        prompts, read = prompts_and_tokens(task, suite.tokenizer, vocabulary, suite.scoring)
        tokens, flops = tokens + read, flops + 2.0 * read * weights
        if is_timed:
            sample = _sample(task, math.ceil(suite.batch_size * len(task.items) / prompts))
            _, in_sample = prompts_and_tokens(sample, suite.tokenizer, vocabulary, suite.scoring)
            score = partial(score_recall, model, suite.tokenizer, sample, suite.batch_size, suite.scoring)
            seconds += timed(score) * read / in_sample
    return tokens, flops, seconds if is_timed else None


def _sample(task: RecallTask, items: int) -> RecallTask:
    """`items` of the task, spread over it."""
    stride = max(1, len(task.items) // max(1, items))
    return replace(task, items=task.items[::stride][: max(1, items)])


def cost_table_cost(models: Mapping[str, nn.Module], lengths: Sequence[int], is_timed: bool) -> Cost:
    """Of `measure_cost` of these models; one round at the shortest length is measured."""
    rounds = REPEATS + 2  # one that warms up, one for the memory
    contexts = sorted(set(lengths))
    tokens = rounds * len(models) * sum(length + DECODE_TOKENS for length in contexts)
    flops = 2.0 * tokens / len(models) * sum(matrix_weights(model) for model in models.values())
    if not is_timed:
        return tokens, flops, None
    found = measure_cost(models, contexts[:1], repeats=1)["models"]
    points = [model["points"][0] for model in found.values()]
    per_context_token = sum(1 / point["prefill_tokens_per_second"] for point in points)
    per_new_token = sum(point["decode_seconds"] for point in points)
    seconds = rounds * sum(length * per_context_token + DECODE_TOKENS * per_new_token for length in contexts)
    return tokens, flops, seconds
