"""Value residual and token shift in whole models: layers share the first mixer's values, whatever surrounds them."""

import copy
from functools import partial

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hybridattn as ha
from hybridattn import hf
from hybridattn.data import Batch, TokenData
from hybridattn.distill.whole_model import checkpointed
from hybridattn.nn import FirstValue
from tolerances import assert_close

OPTIONS = {"token_shift": "ddlerp", "value_residual": True, "shift_low_rank_dim": 4, "value_low_rank_dim": 4}
IDS = torch.randint(1, 31, (2, 14), generator=torch.Generator().manual_seed(1))


def small_teacher():
    config = LlamaConfig(
        vocab_size=31, hidden_size=24, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def small_student(teacher, mixer="rwkv7", **options):
    """Converted, with every parameter away from starts that have no effect."""
    student = ha.convert(teacher, mixer, OPTIONS | options, verbose=False)
    with torch.no_grad():
        for module in student.mixers().values():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return student


def gradients(model, compute):
    model.zero_grad(set_to_none=True)
    compute().square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mixer", ["rwkv6", "rwkv7"])
@torch.no_grad()
def test_both_change_nothing_at_first(mixer):
    teacher = small_teacher()
    plain, other = ha.convert(teacher, mixer, verbose=False), ha.convert(teacher, mixer, OPTIONS, verbose=False)
    added = set(other.state_dict()) - set(plain.state_dict())
    assert any("token_shift.lora" in name for name in added)
    assert any("v_scale" in name for name in added)
    other.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(other(IDS).logits, plain(IDS).logits)


@pytest.mark.parametrize("kept", [[], [0], [0, 2]])
@torch.no_grad()
def test_later_mixers_read_the_values_of_the_lowest_one(kept):
    teacher = small_teacher()
    hybrid = ha.keep_softmax(small_student(teacher), teacher, kept)
    calls = {}
    for layer, mixer in hybrid.mixers().items():
        mixer.register_forward_hook(partial(_record, calls, layer), with_kwargs=True)
    hybrid(IDS)
    (lowest, mixer), *later = hybrid.mixers().items()
    given, _ = calls[lowest]
    x = mixer.inputs(given["hidden_states"], None, None, None)
    values = mixer.v_proj(x["v_proj"]).unflatten(-1, (4, -1))
    for layer, mixer in later:
        given, out = calls[layer]
        first = FirstValue()
        first.seen_by("the lowest", values)
        expected, _ = mixer.mix(given["hidden_states"], rotary=given["position_embeddings"], first_value=first)
        assert_close(out, expected)
        alone, _ = mixer.mix(given["hidden_states"], rotary=given["position_embeddings"])
        assert not torch.allclose(out, alone, atol=1e-3), "it matters"
    assert later
    assert lowest == min(set(range(4)) - set(kept))


def _record(calls, layer, _module, _args, given, output):
    calls[layer] = (given, output[0])


@pytest.mark.parametrize("mixer", ["rwkv6", "rwkv7"])
@pytest.mark.parametrize("kept", [[], [0, 2]])
@torch.no_grad()
def test_generation_and_padding(mixer, kept):
    teacher = small_teacher()
    hybrid = ha.keep_softmax(small_student(teacher, mixer, short_convolution=3), teacher, kept)
    options = {"max_new_tokens": 6, "do_sample": False}
    cached = hybrid.generate(IDS, **options)
    assert torch.equal(cached, hybrid.generate(IDS, use_cache=False, **options))
    beams = {"num_beams": 3, **options}
    assert torch.equal(hybrid.generate(IDS, **beams), hybrid.generate(IDS, use_cache=False, **beams))
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    padded = hybrid.generate(IDS.where(mask.bool(), 0), attention_mask=mask, **options)
    assert torch.equal(padded[0, 14:], hybrid.generate(IDS[:1, 5:], **options)[0, 9:])
    first = hybrid(IDS[:, :9], use_cache=True)
    second = hybrid(IDS[:, 9:], past_key_values=first.past_key_values, use_cache=True)
    assert_close(second.logits, hybrid(IDS).logits[:, 9:], "logits")
    second.past_key_values.reset()
    again = hybrid(IDS, past_key_values=second.past_key_values, use_cache=True)
    assert_close(again.logits, hybrid(IDS).logits, "logits")


@torch.no_grad()
def test_packed_documents_do_not_see_each_other():
    teacher = small_teacher()
    hybrid = ha.keep_softmax(small_student(teacher), teacher, [1])
    positions = torch.cat([torch.arange(8), torch.arange(6)])[None].expand(2, -1)
    states = hf.hidden_states(hybrid, Batch(IDS, positions, torch.tensor([0, 8, 14, 22, 28])))
    for begin, end in ((0, 8), (8, 14)):
        assert_close(states[:, begin:end], hf.hidden_states(hybrid, Batch(IDS[:, begin:end])))


def test_checkpointed_layers_have_the_same_gradients():
    student = small_student(small_teacher())
    expected = gradients(student, lambda: student(IDS).logits)
    assert "model.layers.3.self_attn.v_lora.down.weight" in expected
    assert "model.layers.0.self_attn.v_lora.down.weight" not in expected, "the first mixer has nothing to mix with"
    with checkpointed(hf.decoder_layers(student)):
        ours = gradients(student, lambda: hf.hidden_states(student, Batch(IDS)) @ hf.head_weight(student).T)
    student.gradient_checkpointing_enable({"use_reentrant": False})
    theirs = gradients(student.train(), lambda: student(IDS).logits)
    for other in (ours, theirs):
        assert other.keys() == expected.keys()
        for name, gradient in expected.items():
            assert_close(other[name], gradient, "gradient")
    student.gradient_checkpointing_enable({"use_reentrant": True})
    student.enable_input_require_grads()
    with pytest.raises(
        RuntimeError, match=r"rwkv7: the first mixer's values carry no gradient; .* use_reentrant=False"
    ):
        student(IDS).logits.sum().backward()


def test_alignment_takes_the_first_mixers_values_as_they_are():
    """What later mixers learn does not reach back into the first one, and they do learn from its values."""
    teacher, data = small_teacher().requires_grad_(False), TokenData.from_tokens(torch.randint(0, 31, (32, 14)))
    stage = ha.presets.align("paper", tokens=4 * 4 * 14, batch_size=4, seq_len=14, mixer_lr=1e-2, grad_clip=0.0)
    open_gates = small_student(teacher)
    closed = copy.deepcopy(open_gates)
    with torch.no_grad():
        for mixer in closed.mixers().values():
            mixer.v_scale.zero_()
    before = copy.deepcopy(open_gates.mixers())
    losses = [ha.align(student, teacher, data, stage).part_losses for student in (open_gates, closed)]
    names = list(losses[0])
    assert losses[0][names[0]] == losses[1][names[0]]
    assert losses[0][names[2]] != losses[1][names[2]]
    for name in ("v_scale", "v0", "v_lora.down.weight", "token_shift.base", "token_shift.mix.w_lora"):
        for layer, moves in ((0, name.startswith("token")), (2, True)):
            old, new = (mixers[layer].get_parameter(name) for mixers in (before, open_gates.mixers()))
            assert torch.equal(old, new) != moves, (name, layer)
