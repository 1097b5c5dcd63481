"""Ops on tensors: linear-attention rules, softmax attention, norms, rotary embedding, losses."""

from hybridattn.ops.backend import (
    BACKENDS,
    backend_report,
    instruction_set,
    instruction_sets,
    use_backend,
    use_instruction_set,
)
from hybridattn.ops.dense import (
    apply_rotary,
    gated_rms_norm,
    l2_normalize,
    rms_norm,
    short_convolution,
    softmax_attention,
)
from hybridattn.ops.losses import alignment_loss, linear_cross_entropy, linear_kl_divergence
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
    "alignment_loss",
    "apply_rotary",
    "backend_report",
    "chunk_delta_rule",
    "chunk_gated_delta_rule",
    "chunk_lightning",
    "chunk_linear_attention",
    "gated_rms_norm",
    "instruction_set",
    "instruction_sets",
    "l2_normalize",
    "linear_cross_entropy",
    "linear_kl_divergence",
    "naive_delta_rule",
    "naive_gated_delta_rule",
    "naive_lightning",
    "naive_linear_attention",
    "rms_norm",
    "short_convolution",
    "softmax_attention",
    "step_delta_rule",
    "step_gated_delta_rule",
    "step_lightning",
    "step_linear_attention",
    "use_backend",
    "use_instruction_set",
]
