"""Ops on tensors: linear-attention rules, softmax attention, norms, rotary embedding, losses."""

from hybridattn.ops.backend import BACKENDS, backend_report, use_backend
from hybridattn.ops.rules import (
    chunk_delta_rule,
    chunk_gated_delta_rule,
    chunk_lightning,
    chunk_linear_attention,
    naive_delta_rule,
    naive_gated_delta_rule,
    naive_lightning,
    naive_linear_attention,
    step_delta_rule,
    step_gated_delta_rule,
    step_lightning,
    step_linear_attention,
)

__all__ = [
    "BACKENDS",
    "backend_report",
    "chunk_delta_rule",
    "chunk_gated_delta_rule",
    "chunk_lightning",
    "chunk_linear_attention",
    "naive_delta_rule",
    "naive_gated_delta_rule",
    "naive_lightning",
    "naive_linear_attention",
    "step_delta_rule",
    "step_gated_delta_rule",
    "step_lightning",
    "step_linear_attention",
    "use_backend",
]
