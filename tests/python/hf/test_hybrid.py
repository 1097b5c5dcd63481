"""Conversion and the hybrid as a Transformers model, for small random teachers of every family."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import hybridattn as ha
from hybridattn import hf
from hybridattn.data import Batch
from tolerances import assert_close

SHAPE = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "pad_token_id": 0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
TEACHERS = {
    "llama-tied-groups3": (LlamaForCausalLM, LlamaConfig, {"num_attention_heads": 6, "num_key_value_heads": 2,
                                                           "tie_word_embeddings": True}),
    "llama3-bias-groups7": (LlamaForCausalLM, LlamaConfig, {"num_attention_heads": 7, "num_key_value_heads": 1,
                                                            "hidden_size": 56, "attention_bias": True,
                                                            "rope_parameters": LLAMA3}),
    "qwen2-groups1": (Qwen2ForCausalLM, Qwen2Config, {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "qwen3-wide-heads": (Qwen3ForCausalLM, Qwen3Config, {"num_attention_heads": 6, "num_key_value_heads": 3,
                                                         "head_dim": 12}),
    "mistral-groups2": (MistralForCausalLM, MistralConfig, {"num_attention_heads": 4, "num_key_value_heads": 2,
                                                            "sliding_window": None}),
    "mistral-window": (MistralForCausalLM, MistralConfig, {"num_attention_heads": 4, "num_key_value_heads": 2,
                                                           "sliding_window": 6}),
    "qwen2-window": (Qwen2ForCausalLM, Qwen2Config, {"num_attention_heads": 4, "num_key_value_heads": 2,
                                                     "use_sliding_window": True, "sliding_window": 6,
                                                     "max_window_layers": 1}),
}  # fmt: skip


@pytest.fixture(params=TEACHERS)
def teacher(request):
    model, config, extra = TEACHERS[request.param]
    teacher = model(config(**(SHAPE | extra))).eval()
    with torch.no_grad():
        for _name, parameter in teacher.named_parameters():
            if parameter.dim() == 1:  # biases and norms away from their plain start
                parameter.add_(0.1 * torch.randn_like(parameter))
    return teacher


@pytest.fixture
def ids():
    return torch.randint(1, 97, (2, 20))


def test_attention_as_mixer_is_the_teacher_bit_for_bit(teacher, ids):
    if getattr(teacher.config, "sliding_window", None):
        teacher = type(teacher)(type(teacher.config)(**(teacher.config.to_dict() | {"sliding_window": 64}))).eval()
    student = ha.convert(teacher, mixer="softmax_attention", verbose=False)
    assert torch.equal(student(ids).logits, teacher(ids).logits)


def test_every_tensor_is_in_the_plan(teacher):
    student = ha.convert(teacher, verbose=False)
    for layer, mixer in student.mixers().items():
        entries = [entry for entry in student.transfer_plan if entry.layer == layer]
        assert {entry.source for entry in entries} - {""} == set(hf.attention(teacher, layer).state_dict())
        assert {entry.target for entry in entries} - {""} == set(mixer.state_dict())


def test_kv_heads_are_cloned_head_by_head(teacher):
    student = ha.convert(teacher, verbose=False)
    source, options = hf.attention(teacher, 1), student.mixers()[1].options
    groups, width = options.num_heads // options.num_kv_heads, options.head_dim
    for head in range(options.num_heads):
        mine = student.mixers()[1].k_proj.weight[head * width : (head + 1) * width]
        kv = head // groups
        assert torch.equal(mine, source.k_proj.weight[kv * width : (kv + 1) * width])


def test_kept_layers_and_the_rest_are_the_teachers(teacher):
    hybrid = ha.keep_softmax(ha.convert(teacher, verbose=False), teacher, [1])
    assert hybrid.softmax_layers == [1]
    assert sorted(hybrid.mixers()) == [0, 2]
    theirs = teacher.state_dict()
    for name, tensor in hybrid.state_dict().items():
        if ".0.self_attn." not in name and ".2.self_attn." not in name:
            assert torch.equal(tensor, theirs[name]), name
            assert tensor.data_ptr() != theirs[name].data_ptr(), name


def test_save_load_and_copy(teacher, ids, tmp_path):
    hybrid = ha.keep_softmax(ha.convert(teacher, verbose=False), teacher, [1])
    hybrid.save_pretrained(tmp_path, max_shard_size="60KB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(hybrid(ids).logits, again(ids).logits)
    assert torch.equal(copy.deepcopy(hybrid)(ids).logits, again(ids).logits)
    narrow = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert narrow.mixers()[0].A_log.dtype == torch.float32
    assert narrow.mixers()[0].q_proj.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("kept", [[], [1], [0, 1, 2]])
@pytest.mark.parametrize("mixer", ["gated_deltanet", "gla", "kda", "rwkv6", "rwkv7", "sliding_window"])
def test_generation(teacher, ids, mixer, kept):
    options = {"window": 5, "sinks": 2} if mixer == "sliding_window" else {"short_convolution": 3}
    hybrid = ha.keep_softmax(ha.convert(teacher, mixer, options, verbose=False), teacher, kept)
    options = {"max_new_tokens": 6, "do_sample": False}
    cached = hybrid.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, hybrid.generate(ids, use_cache=False, **options))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    padded = hybrid.generate(ids.where(mask.bool(), 0), attention_mask=mask, **options)
    assert torch.equal(padded[0, 20:], hybrid.generate(ids[:1, 5:], **options)[0, 15:])


def test_packed_documents_do_not_see_each_other(teacher, ids):
    hybrid = ha.keep_softmax(ha.convert(teacher, verbose=False), teacher, [1])
    positions = torch.cat([torch.arange(12), torch.arange(8)])[None].expand(2, -1)
    packed = Batch(ids, positions, torch.tensor([0, 12, 20, 32, 40]))
    for model in (teacher, hybrid):
        states = hf.hidden_states(model, packed)
        assert_close(states[:, 12:], hf.hidden_states(model, Batch(ids[:, 12:])))
        assert_close(states[:, :12], hf.hidden_states(model, Batch(ids[:, :12])))


def test_kept_layers_keep_the_teachers_window(ids):
    model, config, extra = TEACHERS["qwen2-window"]
    teacher = model(config(**(SHAPE | extra))).eval()
    hybrid = ha.keep_softmax(ha.convert(teacher, verbose=False), teacher, [0, 1, 2])
    assert torch.equal(hybrid(ids).logits, teacher(ids).logits)
    far = ids.clone()
    far[:, 0] = (far[:, 0] + 1) % 97
    linear = ha.convert(teacher, layers=[0], options={"output_gate": False}, verbose=False)
    assert not torch.equal(linear(ids).logits[:, -1], linear(far).logits[:, -1]), "a mixer has no window"


def test_a_cache_that_cannot_hold_a_state_is_refused(ids):
    model, config, extra = TEACHERS["qwen3-wide-heads"]
    hybrid = ha.convert(model(config(**(SHAPE | extra))).eval(), verbose=False)
    with pytest.raises(ValueError, match="cache_implementation 'static' cannot hold the state"):
        hybrid.generate(ids, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match=r"layer 0: the cache .DynamicCache. has no recurrent state .*HybridCache"):
        hybrid(ids, past_key_values=DynamicCache())
    cache = hf.HybridCache(hybrid.config)
    given = hybrid.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False)
    assert torch.equal(given, hybrid.generate(ids, max_new_tokens=4, do_sample=False))
    assert cache.get_seq_length() == 23, "the last token was not read"


def test_beams_and_continued_caches(ids):
    """A cache follows the beams, and a second call goes on where the first one stopped."""
    model, config, extra = TEACHERS["llama-tied-groups3"]
    hybrid = ha.convert(model(config(**(SHAPE | extra))).eval(), options={"short_convolution": 4}, verbose=False)
    with torch.no_grad():
        for name, parameter in hybrid.named_parameters():
            if "conv1d" in name:  # taps start as the identity, which remembers nothing
                parameter.add_(0.5 * torch.randn_like(parameter))
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": 3}
    assert torch.equal(hybrid.generate(ids, **options), hybrid.generate(ids, use_cache=False, **options))
    first = hybrid(ids[:, :13], use_cache=True)
    second = hybrid(ids[:, 13:], past_key_values=first.past_key_values, use_cache=True)
    assert_close(second.logits, hybrid(ids).logits[:, 13:], "logits")
    more = [hybrid(token, past_key_values=second.past_key_values, use_cache=True).logits for token in ids.split(1, 1)]
    assert_close(torch.cat(more, 1), hybrid(torch.cat([ids, ids], 1)).logits[:, 20:], "logits")
    assert second.past_key_values.get_seq_length() == 40


def test_sliding_window_baseline(teacher, ids):
    own = getattr(teacher.config, "sliding_window", None)
    wide = ha.sliding_window(teacher, keep=[0], window=own or 64, sinks=0 if own else 2)
    assert_close(wide(ids).logits, teacher(ids).logits, "logits")
    narrow = ha.sliding_window(teacher, keep=[0], window=3, sinks=1)
    assert not torch.allclose(narrow(ids).logits, teacher(ids).logits, atol=1e-4)


def test_bad_requests_are_named(teacher):
    with pytest.raises(ValueError, match="supported are llama, qwen2, qwen3, mistral"):
        ha.convert(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11)))
    with pytest.raises(ValueError, match="unknown mixer"):
        ha.convert(teacher, mixer="mamba")
    with pytest.raises(ValueError, match="unknown option head_dims"):
        ha.convert(teacher, options={"head_dims": 3})
    with pytest.raises(ValueError, match=r"layers \[3\] do not exist"):
        ha.keep_softmax(ha.convert(teacher, verbose=False), teacher, [3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: weights.pop("model.layers.0.self_attn.A_log"),
            r"lacks model.layers.0.self_attn.A_log; config",
        ),
        (
            lambda weights: weights.update({"model.layers.1.self_attn.A_log": torch.ones(4)}),
            r"has tensors that the config does not: model.layers.1.self_attn.A_log",
        ),
        (
            lambda weights: weights.update({"model.norm.weight": torch.ones(5)}),
            r"holds model.norm.weight of shape \[5\] for \[48\]",
        ),
    ],
)
def test_a_folder_whose_tensors_do_not_fit_is_refused(tmp_path, change, message):
    model, config, extra = TEACHERS["llama-tied-groups3"]
    ha.convert(model(config(**(SHAPE | extra))).eval(), layers=[0], verbose=False).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path)
