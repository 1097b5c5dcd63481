"""Layers of PyTorch and Transformers in a block: the same values and gradients, other kernels; afterwards as before."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import hybridattn
from hybridattn import ops
from hybridattn.hf import native_layers
from hybridattn.nn import softmax_attention
from tolerances import assert_close

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def native_calls(op):
    return ops.backend_report().get(op, {}).get("native", 0)


@pytest.mark.parametrize(
    ("family", "config", "norms"), [(LlamaForCausalLM, LlamaConfig, 5), (Qwen3ForCausalLM, Qwen3Config, 9)]
)
def test_a_model_computes_the_same(family, config, norms):
    model = family(config(**SMALL))
    ids = torch.randint(0, 40, (2, 17))

    def results():
        out = model(ids, labels=ids)
        return [out.logits, *torch.autograd.grad(out.loss, list(model.parameters()))]

    expected = results()
    calls = {op: native_calls(op) for op in ("linear", "rms_norm", "softmax_attention", "apply_rotary", "swiglu")}
    with ops.use_backend("native"), native_layers():
        found = results()
    assert native_calls("linear") == calls["linear"] + 2 * 7 + 1
    assert native_calls("rms_norm") == calls["rms_norm"] + norms
    assert native_calls("softmax_attention") == calls["softmax_attention"] + 2
    assert native_calls("apply_rotary") == calls["apply_rotary"] + 4
    assert native_calls("swiglu") == calls["swiglu"] + 2
    for actual, wanted in zip(found, expected, strict=True):
        assert_close(actual, wanted, "logits")


def replaced():
    return (
        nn.Linear.forward,
        LlamaRMSNorm.forward,
        softmax_attention.attention,
        ALL_ATTENTION_FUNCTIONS["sdpa"],
        modeling_llama.apply_rotary_pos_emb,
    )


def test_blocks_overlap_and_end():
    originals = replaced()
    first, second = native_layers(), native_layers()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert all(now is not before for now, before in zip(replaced(), originals, strict=True))
    with pytest.raises(KeyError), native_layers():
        raise KeyError
    assert all(now is not before for now, before in zip(replaced(), originals, strict=True))
    second.__exit__(None, None, None)
    assert replaced() == originals


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_embedding_has_transformers_bits(dtype):
    q, k = torch.randn(2, 4, 6, 8).to(dtype), torch.randn(2, 2, 6, 8).to(dtype)
    for angles in (dtype, torch.float32):
        cos, sin = torch.randn(2, 1, 6, 8).to(angles)
        with torch.autocast("cpu", torch.bfloat16, enabled=angles != dtype):
            expected = modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)
            before = native_calls("apply_rotary")
            with ops.use_backend("native"), native_layers():
                found = modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)
        assert native_calls("apply_rotary") == before + 2
        assert all(torch.equal(a, e.to(dtype)) for a, e in zip(found, expected, strict=True))
    heads_last = [x.transpose(1, 2) for x in (q, k)]
    with native_layers():
        same = modeling_llama.apply_rotary_pos_emb(*heads_last, cos, sin, unsqueeze_dim=2)
    assert all(torch.equal(a.transpose(1, 2), e) for a, e in zip(same, expected, strict=True))


def test_feed_forward_layers_of_another_activation_are_transformers_own():
    layer = modeling_llama.LlamaMLP(LlamaConfig(**SMALL, hidden_act="gelu"))
    x = torch.randn(3, 32)
    before = native_calls("swiglu")
    expected = layer(x)
    with ops.use_backend("native"), native_layers():
        assert_close(layer(x), expected)
    assert native_calls("swiglu") == before


@torch.no_grad()
def test_attention_that_is_not_ours_stays_sdpas():
    """Masks, dropout and a static cache's empty places; and mixers outside a block."""
    layer = nn.Module()
    layer.num_key_value_groups = 2
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    wide, narrow = torch.randn(2, 2, 9, 8), v.bfloat16()
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    cases = [
        ((q, k, v, mask), {}, 0),
        ((q, k, v, None), {"dropout": 0.5}, 0),
        ((q, wide, wide, None), {}, 0),
        ((q, k, v, None), {"position_bias": torch.zeros(1, 1, 6, 6)}, 0),
        ((q, k, v, None), {}, 1),
        ((q, k, v, None), {"is_causal": False, "scaling": 0.3}, 1),
        ((q, wide, wide, None), {"is_causal": False}, 1),
        ((q[:, :, :1], wide, wide, None), {}, 1),
        ((q.bfloat16(), k.bfloat16(), narrow, None), {}, 1),
    ]
    for arguments, options, native in cases:
        before = native_calls("softmax_attention")
        torch.manual_seed(0)
        expected, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](layer, *arguments, **options)
        torch.manual_seed(0)
        with ops.use_backend("native"), native_layers():
            found, weights = ALL_ATTENTION_FUNCTIONS["sdpa"](layer, *arguments, **options)
        assert weights is None
        assert native_calls("softmax_attention") == before + native, options
        assert_close(found, expected)
    before = native_calls("softmax_attention")
    softmax_attention.attention(*(x.transpose(1, 2) for x in (q, k, v)))
    assert native_calls("softmax_attention") == before
    with ops.use_backend("native"):
        softmax_attention.attention(*(x.transpose(1, 2) for x in (q, k, v)))
    assert native_calls("softmax_attention") == before + 1


def test_attention_as_mixer_is_the_teachers_to_the_bit():
    teacher = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    student = hybridattn.convert(teacher, mixer="softmax_attention", verbose=False)
    ids = torch.randint(0, 40, (2, 150))
    for context in (nullcontext(), native_layers()):
        with context:
            assert torch.equal(student(ids).logits, teacher(ids).logits)


def test_projections_of_one_input_share_its_narrowed_copy():
    first, second = nn.Linear(12, 8), nn.Linear(12, 8)
    x = torch.randn(3, 12)

    def casts(function):
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            result = function()
        return result, sum(event.count for event in profiled.key_averages() if event.key == "aten::_to_copy")

    def both():
        return first(x), second(x)

    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected, before = casts(both)
        with native_layers():
            found, after = casts(both)
            assert all(torch.equal(a, e) for a, e in zip(found, expected, strict=True))
            assert after == before - 1
            x.mul_(2)  # another input now
            changed = both()
        assert all(torch.equal(a, e) for a, e in zip(changed, both(), strict=True))
        assert not torch.equal(changed[0], expected[0])
        x.requires_grad_()
        with native_layers():
            (grad,) = torch.autograd.grad(sum(y.float().sum() for y in both()), x)
        (wanted,) = torch.autograd.grad(sum(y.float().sum() for y in both()), x)
        assert torch.equal(grad, wanted)


def test_other_dtypes_are_torchs_own():
    layer, norm = nn.Linear(12, 8), LlamaRMSNorm(12)
    x = torch.randn(3, 12)
    with ops.use_backend("native"), native_layers():
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert norm(x.bfloat16()).dtype == torch.float32  # which the weight makes it
        narrow = layer.bfloat16()
        assert narrow(x.bfloat16()).dtype == torch.bfloat16
        with pytest.raises(RuntimeError, match="dtype"):
            narrow(x)
    with native_layers():
        assert layer.float().to("meta")(x.to("meta")).shape == (3, 8)
