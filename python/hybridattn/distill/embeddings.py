"""Input and output embeddings that share one matrix: trained apart, and made one again."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def are_tied(model: Any) -> bool:
    """Whether the model's head is its embedding matrix."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    return inputs is not None and outputs is not None and inputs.weight is outputs.weight


def untie(model: Any) -> bool:
    """Gives a tied model a head of its own, equal to the embedding; returns whether it was tied."""
    if not are_tied(model):
        return False
    outputs = model.get_output_embeddings()
    outputs.weight = nn.Parameter(outputs.weight.detach().clone(), outputs.weight.requires_grad)
    model.config.tie_word_embeddings = False
    return True


@torch.no_grad()
def retie(model: Any) -> None:
    """Makes both matrices one: their mean, the single matrix nearest to the two (least squares)."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    inputs.weight.lerp_(outputs.weight, 0.5)
    outputs.weight = inputs.weight
    model.config.tie_word_embeddings = True
