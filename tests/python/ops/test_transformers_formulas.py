"""Norms and rotary embedding against Transformers."""

import torch

from hybridattn import ops
from tolerances import assert_close


def test_norms_and_rotary_match_transformers():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

    x, gate = torch.randn(3, 5, 16), torch.randn(3, 5, 16)
    norm, gated = LlamaRMSNorm(16, 1e-5), Qwen3NextRMSNormGated(16, 1e-5)
    with torch.no_grad():
        norm.weight.uniform_()
        gated.weight.copy_(norm.weight)
    assert_close(ops.rms_norm(x, norm.weight, 1e-5), norm(x))
    assert_close(ops.gated_rms_norm(x, gate, norm.weight, 1e-5), gated(x, gate))
    q, cos, sin = torch.randn(2, 7, 3, 8), torch.randn(2, 7, 8), torch.randn(2, 7, 8)
    expected, _ = apply_rotary_pos_emb(q, q, cos, sin, unsqueeze_dim=2)
    assert torch.equal(ops.apply_rotary(q, cos, sin), expected)
    zero = torch.zeros(4, requires_grad=True)
    ops.l2_normalize(zero).sum().backward()
    assert torch.isfinite(zero.grad).all()
