"""Transformers' own hybrid models on this library's kernels: logits, generation and gradients of the reference; packing."""

import pytest
import torch
import transformers

import hybridattn as ha
from tolerances import assert_close

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
KIMI = {
    **{name: x for name, x in SMALL.items() if not name.startswith(("linear_", "head_dim"))},
    "num_key_value_heads": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
MODELS = {
    "qwen3_next": ("Qwen3Next", SMALL | EXPERTS),
    "qwen3_5": ("Qwen3_5", SMALL),
    "qwen3_5_moe": ("Qwen3_5Moe", SMALL | EXPERTS),
    "olmo_hybrid": ("OlmoHybrid", SMALL | {"linear_num_key_heads": 4}),
    "kimi_linear": ("KimiLinear", KIMI),
}
RULES = {"kimi_linear": "kda"}
"""The rule of a model; the others have the gated delta rule."""


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def rule(name):
    return RULES.get(name, "gated_delta_rule")


@pytest.fixture
def model(name):
    family, options = MODELS[name]
    config_class = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
    model = getattr(transformers, f"{family}ForCausalLM")(config_class(**options))
    with torch.no_grad():
        for parameter in model.parameters():  # away from the zeros and ones that some start with
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def test_logits_and_gradients_are_the_references(model, rule):
    ids = torch.randint(3, 64, (2, 71))

    def results():
        model.zero_grad()
        output = model(ids, labels=ids)
        output.loss.backward()
        return output.logits.detach(), {
            name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None
        }

    expected, expected_grads = results()
    with ha.accelerate_transformers() as acceleration:
        assert any("torch_chunk_gated_delta_rule" in name for name in acceleration.replaced)
        before = ha.ops.backend_report().get(f"chunk_{rule}", {}).get("native", 0)
        actual, grads = results()
        assert ha.ops.backend_report()[f"chunk_{rule}"]["native"] > before
    assert_close(actual, expected, "logits")
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        assert_close(grad, expected_grads[name], "logits")


def test_cached_generation_is_the_references(model, rule):
    ids = torch.randint(3, 64, (2, 9))
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "output_logits": True}
    options |= {"return_dict_in_generate": True, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(ids, **options)
    with ha.accelerate_transformers():
        before = ha.ops.backend_report().get(f"step_{rule}", {}).get("native", 0)
        actual = model.generate(ids, **options)
        assert ha.ops.backend_report()[f"step_{rule}"]["native"] > before
    assert torch.equal(actual.sequences, expected.sequences)
    for a, e in zip(actual.logits, expected.logits, strict=True):
        assert_close(a, e, "logits")


def test_packed_documents_are_separate(model, name):
    documents = [torch.randint(3, 64, (1, length)) for length in (5, 17, 1, 40)]
    borders = torch.tensor([0, 5, 22, 23, 63], dtype=torch.int32)
    numbers = torch.repeat_interleave(torch.arange(4, dtype=torch.int32), borders.diff())[None]
    packed = {
        "input_ids": torch.cat(documents, 1),
        "position_ids": torch.cat([torch.arange(ids.shape[1]) for ids in documents])[None],
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": 40,
        "max_length_k": 40,
        "seq_idx": numbers,
    }
    if name != "kimi_linear":  # whose reference mixes them in silence
        with torch.no_grad(), pytest.raises(ValueError, match="can't keep packed sequences apart"):
            model(**packed, use_cache=False)
    with torch.no_grad(), ha.accelerate_transformers():
        together = model(**packed, use_cache=False).logits
        alone = torch.cat([model(ids, use_cache=False).logits for ids in documents], 1)
    assert_close(together, alone, "logits")


def test_it_can_be_undone_and_names_what_it_does():
    from transformers.models.qwen3_next import modeling_qwen3_next as module

    original = module.torch_chunk_gated_delta_rule
    acceleration = ha.accelerate_transformers("qwen3_next")
    assert module.torch_chunk_gated_delta_rule is not original
    assert acceleration.replaced[0] == "transformers.models.qwen3_next.modeling_qwen3_next.torch_chunk_gated_delta_rule"
    assert "modeling_qwen3_next.causal_conv1d_fn" in str(acceleration)
    assert ha.accelerate_transformers("qwen3_next").replaced == []
    acceleration.undo()
    assert module.torch_chunk_gated_delta_rule is original
    assert acceleration.replaced == []


def test_what_was_not_tested_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="unknown model 'bert', known are qwen3_next"):
        ha.accelerate_transformers("bert")
    monkeypatch.setattr("hybridattn.hf.accelerate.transformers.__version__", "5.99.0")
    with pytest.raises(RuntimeError, match=r"Transformers 5\.99\.0 was not tested, only 5\.23"):
        ha.accelerate_transformers()
