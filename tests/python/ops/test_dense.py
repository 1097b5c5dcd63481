"""Softmax attention, convolution, norms and rotary embedding against plain formulas and Transformers."""

import pytest
import torch

from hybridattn import ops
from tolerances import assert_close


@pytest.fixture
def qkv():
    return torch.randn(2, 50, 6, 8), torch.randn(2, 50, 2, 8), torch.randn(2, 50, 2, 8)


def reference(q, k, v, window, sinks):
    k, v = k.repeat_interleave(3, 2), v.repeat_interleave(3, 2)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * 8**-0.5
    i, j = torch.arange(50)[:, None], torch.arange(50)[None]
    visible = j <= i
    if window:
        visible = visible & ((j > i - window) | (j < sinks))
    return torch.einsum("bhij,bjhd->bihd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize(("window", "sinks"), [(0, 0), (7, 0), (7, 3), (60, 3), (1, 0)])
def test_attention(qkv, window, sinks):
    q, k, v = qkv
    expected = reference(q, k, v, window, sinks)
    assert_close(ops.softmax_attention(q, k, v, window=window, sinks=sinks), expected)
    for start in (40, 49):  # some queries, and a single one, whose grouped heads are computed together
        last = ops.softmax_attention(q[:, start:], k, v, window=window, sinks=sinks)
        assert_close(last, expected[:, start:])


def test_windowed_attention_of_a_long_sequence(qkv):
    q, k, v = (torch.randn(1, 300, heads, 8) for heads in (2, 1, 1))
    full = ops.softmax_attention(q, k, v, window=40, sinks=2)
    for t in (0, 63, 64, 130, 299):
        start = max(0, t - 39)
        keys = sorted({*range(start, t + 1), *range(min(2, t + 1))})
        alone = ops.softmax_attention(q[:, t : t + 1], k[:, keys], v[:, keys])
        assert_close(full[:, t : t + 1], alone)


def test_documents_and_padding_are_separate(qkv):
    q, k, v = qkv
    options = {"window": 7, "sinks": 2}
    packed = ops.softmax_attention(q[:1], k[:1], v[:1], cu_seqlens=torch.tensor([0, 13, 13, 50]), **options)
    for part in (slice(0, 13), slice(13, 50)):
        assert_close(packed[:, part], ops.softmax_attention(q[:1, part], k[:1, part], v[:1, part], **options))
    mask = torch.ones(2, 50, dtype=torch.bool)
    mask[0, :9] = False
    padded = ops.softmax_attention(q, k, v, padding_mask=mask, **options)
    assert torch.isfinite(padded).all()
    assert_close(ops.softmax_attention(q[:, 49:], k, v, padding_mask=mask, **options), padded[:, 49:])
    assert_close(padded[:1, 9:], ops.softmax_attention(q[:1, 9:], k[:1, 9:], v[:1, 9:], **options))


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
