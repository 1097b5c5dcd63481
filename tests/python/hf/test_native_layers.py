"""Layers of PyTorch and Transformers in a block: the same values and gradients, other kernels; afterwards as before."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hybridattn import ops
from hybridattn.hf import native_layers
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
    calls = {op: native_calls(op) for op in ("linear", "rms_norm")}
    with ops.use_backend("native"), native_layers():
        found = results()
    assert native_calls("linear") == calls["linear"] + 2 * 7 + 1
    assert native_calls("rms_norm") == calls["rms_norm"] + norms
    for actual, wanted in zip(found, expected, strict=True):
        assert_close(actual, wanted, "logits")


def test_blocks_overlap_and_end():
    originals = nn.Linear.forward, LlamaRMSNorm.forward
    first, second = native_layers(), native_layers()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert nn.Linear.forward is not originals[0]
    assert LlamaRMSNorm.forward is not originals[1]
    with pytest.raises(KeyError), native_layers():
        raise KeyError
    assert nn.Linear.forward is not originals[0]
    second.__exit__(None, None, None)
    assert (nn.Linear.forward, LlamaRMSNorm.forward) == originals


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
