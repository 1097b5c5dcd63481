"""Calibrated initial values: what is measured of attention, what is set, and that neither breaks for any teacher."""

import math

import pytest
import torch
from transformers import (
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
from hybridattn.calibration import statistics
from hybridattn.calibration.fit import silu_inverse
from hybridattn.calibration.statistics import attention_statistics, decay_of_distance
from hybridattn.data import TokenData

SHAPE = {
    "vocab_size": 31, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": None,
    "attn_implementation": "eager",
}  # fmt: skip
TEACHERS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 12}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 6}),
    "qwen2-window": (Qwen2ForCausalLM, Qwen2Config, {"use_sliding_window": True, "sliding_window": 6,
                                                     "max_window_layers": 1}),
}  # fmt: skip
MIXERS = ["gated_deltanet", "kda", "gla", "deltanet", "lightning", "rwkv6", "rwkv7"]


def small_teacher(family="llama"):
    model, config, extra = TEACHERS[family]
    teacher = model(config(**(SHAPE | extra))).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.dim() == 1:  # biases and norms away from their plain start
                parameter.add_(0.1 * torch.randn_like(parameter))
    return teacher


def packed_data(**options):
    """Documents of 5 to 29 tokens in rows of 24."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(5, 30, (80,), generator=generator).tolist()
    documents = [torch.randint(1, 31, (length,), generator=generator) for length in lengths]
    return TokenData.from_tokens(documents, 24, held_out=0.1, **options)


def tensors(student):
    return {name: tensor.clone() for name, tensor in student.state_dict().items()}


@pytest.mark.parametrize("family", TEACHERS)
@pytest.mark.parametrize("chunk", [1, 1 << 24])
@torch.no_grad()
def test_statistics_are_those_of_the_teachers_own_attention(family, chunk, monkeypatch):
    monkeypatch.setattr(statistics, "CHUNK_SCORES", chunk)
    teacher = small_teacher(family)
    batch = next(packed_data().train_batches(3))
    seen = {}
    for layer in range(2):
        hf.attention(teacher, layer).register_forward_hook(
            lambda module, args, kwargs, output, layer=layer: seen.update({layer: (kwargs, output[1])}),
            with_kwargs=True,
        )
    hf.hidden_states(teacher, batch)
    positions, counted = batch.position_ids, torch.rand(batch.input_ids.shape) < 0.7
    for layer, (kwargs, weights) in seen.items():
        found = attention_statistics(
            hf.attention(teacher, layer), kwargs["hidden_states"], kwargs["position_embeddings"], positions, counted
        )
        back = torch.arange(24)[:, None] - torch.arange(24)
        weights = weights * counted[:, None, :, None]
        later = weights * (positions > 0)[:, None, None, :]
        expected = (later * back).sum((0, 2, 3)) / later.sum((0, 2, 3))
        torch.testing.assert_close(found.distance, expected.double(), atol=1e-4, rtol=1e-4)
        visible = (weights > 0).any(1)  # [B, T, T]
        relative = (weights * visible.sum(-1)[:, None, :, None]).sum(2) / visible.sum(1).clamp_min(1)[:, None]
        queries = (counted & (positions > 0)).sum()
        share = torch.where(positions[:, None] > 0, later.sum((0, 2, 3))[:, None] / queries, 1)
        torch.testing.assert_close(found.received, (relative / share).transpose(1, 2), atol=1e-4, rtol=1e-4)


def test_decay_of_an_endless_past_has_the_closed_form():
    visible = torch.zeros(20_000, dtype=torch.float64)
    visible[-1] = 1
    distance = torch.tensor([0.5, 3.0, 40.0], dtype=torch.float64)
    torch.testing.assert_close(decay_of_distance(distance, visible), -torch.log1p(1 / distance), atol=1e-9, rtol=1e-6)


def test_equal_attention_to_short_documents_is_the_longest_memory():
    visible = torch.ones(16, dtype=torch.float64)  # queries that see 1 to 16 tokens
    g = decay_of_distance(torch.tensor([7.5 / 2], dtype=torch.float64), visible)
    assert -math.log(2) / g.item() > 8 * 16
    assert decay_of_distance(torch.tensor([1.0], dtype=torch.float64), visible).item() < -0.3


@pytest.mark.parametrize("family", TEACHERS)
@pytest.mark.parametrize("mixer", ["gated_deltanet", "gla"])
@pytest.mark.parametrize("sharing", ["cloned", "shared"])
@torch.no_grad()
def test_every_family_gets_a_finite_student_and_twice_is_once(family, mixer, sharing):
    teacher, data = small_teacher(family), packed_data()
    student = ha.convert(teacher, mixer, {"kv_sharing": sharing}, verbose=False)
    before = tensors(student)
    ha.calibrate(student, teacher, data, sequences=4)
    once, plan = tensors(student), str(student.transfer_plan)
    changed = {name for name in once if not torch.equal(once[name], before[name])}
    named = {f"model.layers.{e.layer}.self_attn.{e.target}" for e in student.transfer_plan if e.action == "calibrated"}
    assert changed == named
    ha.calibrate(student, teacher, data, sequences=4)
    for name, tensor in tensors(student).items():
        torch.testing.assert_close(tensor, once[name], atol=1e-4, rtol=1e-4, msg=name)
    assert str(student.transfer_plan) == plan
    batch = next(data.train_batches(2))
    assert hf.hidden_states(student, batch).isfinite().all()


@pytest.mark.parametrize("mixer", ["gated_deltanet", "kda", "gla"])
@torch.no_grad()
def test_mean_decay_is_the_one_of_the_attention_distance(mixer):
    teacher, data = small_teacher(), packed_data()
    student = ha.convert(teacher, mixer, verbose=False)
    ha.calibrate(student, teacher, data, sequences=6)
    batch, inputs = next(data.train_batches(6)), {}
    for layer in range(2):
        hf.attention(teacher, layer).register_forward_pre_hook(
            lambda module, args, kwargs, layer=layer: inputs.update({layer: kwargs}), with_kwargs=True
        )
    hf.hidden_states(teacher, batch)
    every = torch.ones_like(batch.input_ids, dtype=torch.bool)
    for layer, kwargs in inputs.items():
        hidden = kwargs["hidden_states"]
        found = attention_statistics(
            hf.attention(teacher, layer), hidden, kwargs["position_embeddings"], batch.position_ids, every
        )
        target, module = decay_of_distance(found.distance, found.visible), student.mixers()[layer]
        g = module.gates(module.inputs(hidden, None, batch.cu_seqlens, None))["g"].double()
        g = g.mean((0, 1)) if g.dim() == 3 else g.mean((0, 1, 3))
        torch.testing.assert_close(g, target, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_every_mixer_in_bf16_and_the_plan_says_whose_decay_stays(mixer):
    teacher, data = small_teacher(), packed_data()
    student = ha.convert(teacher, mixer, verbose=False).to(torch.bfloat16)
    ha.calibrate(student, teacher, data, sequences=4)
    lacking = [entry for entry in student.transfer_plan if entry.action == "uncalibrated"]
    assert len(lacking) == (0 if mixer in ("gated_deltanet", "kda", "gla") else 2)
    assert all("decay" in entry.note for entry in lacking)
    assert all(tensor.isfinite().all() for tensor in student.state_dict().values())
    targets = [entry.target for entry in student.transfer_plan if entry.layer == 0 and entry.target]
    assert sorted(targets) == sorted(student.mixers()[0].state_dict())


@pytest.mark.parametrize(
    "options",
    [
        {"gate_lower_bound": -5.0},
        {"output_gate_low_rank_dim": 4, "gate_activation": "inner_sigmoid"},
        {"output_gate": False, "short_convolution": 3},
    ],
)
@torch.no_grad()
def test_other_forms_of_the_gates(options):
    teacher, data = small_teacher(), packed_data()
    student = ha.convert(teacher, "kda", options, verbose=False)
    plan = ha.calibrate(student, teacher, data, sequences=4)
    targets = {entry.target for entry in plan}
    assert ("dt_bias" if "gate_lower_bound" in options else "A_log") in targets
    assert ("g_proj.weight" in targets) == ("gate_lower_bound" in options)
    assert ("g_proj.up.weight" in targets) == ("output_gate_low_rank_dim" in options)
    assert hf.hidden_states(student, next(data.train_batches(2))).isfinite().all()


@torch.no_grad()
def test_the_output_gate_has_the_size_of_the_teachers_heads_and_equal_seeds_give_equal_bits():
    teacher, data = small_teacher(), packed_data()
    students = [ha.convert(teacher, verbose=False) for _ in range(3)]
    for student, seed in zip(students, (0, 0, 1), strict=True):
        ha.calibrate(student, teacher, data, sequences=4, seed=seed)
    first, same, other = (tensors(student) for student in students)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    hidden, heads = [], []
    attention = hf.attention(teacher, 0)
    attention.register_forward_pre_hook(
        lambda module, args, kwargs: hidden.append(kwargs["hidden_states"]), with_kwargs=True
    )
    attention.o_proj.register_forward_pre_hook(lambda module, args: heads.append(args[0]))
    hf.hidden_states(teacher, next(data.train_batches(4)))
    size = heads[0].unflatten(-1, (4, -1)).square().mean(3).sqrt().mean((0, 1))
    gates = [
        torch.nn.functional.silu(student.mixers()[0].g_proj(hidden[0])).unflatten(-1, (4, -1))
        for student in (students[0], ha.convert(teacher, verbose=False))
    ]
    distance, plain = (((gate - size[:, None]) / size[:, None]).square().mean() for gate in gates)
    assert distance < 0.5 * plain


@pytest.mark.parametrize("size", [0.001, 0.2, 1.0, 7.0, 500.0])
def test_the_inverse_of_silu(size):
    z = silu_inverse(torch.tensor([size], dtype=torch.float64))
    assert torch.nn.functional.silu(z).item() == pytest.approx(size, rel=1e-9)


def test_held_out_text_is_not_read_and_masked_tokens_do_not_count():
    teacher, read = small_teacher(), []
    teacher.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"]), with_kwargs=True
    )
    documents = torch.randint(1, 31, (40, 24), generator=torch.Generator().manual_seed(3))
    data = TokenData.from_tokens(documents, held_out=0.5)
    ha.calibrate(ha.convert(teacher, verbose=False), teacher, data, sequences=8)
    held_out = {tuple(row.tolist()) for batch in data.held_out() for row in batch.input_ids}
    assert len(read[0]) == 8
    assert not held_out & {tuple(row.tolist()) for row in read[0]}

    mask = torch.ones_like(documents, dtype=torch.bool)
    mask[:, 12:] = False
    masked = TokenData.from_tokens(documents, loss_mask=mask, held_out=0.5)
    students = [ha.convert(teacher, verbose=False) for _ in range(2)]
    batch = next(masked.train_batches(8))
    short = type("Rows", (), {"train_batches": lambda self, *args, **kwargs: iter([_first_half(batch)])})()
    ha.calibrate(students[0], teacher, masked, sequences=8)
    ha.calibrate(students[1], teacher, short, sequences=8)
    for name, tensor in students[0].state_dict().items():
        torch.testing.assert_close(tensor, students[1].state_dict()[name], atol=1e-4, rtol=1e-4, msg=name)


def _first_half(batch):
    from hybridattn.data import Batch

    return Batch(batch.input_ids[:, :12])


@pytest.mark.parametrize(
    ("mixer", "options", "sequences", "message"),
    [
        ("softmax_attention", {}, 4, "softmax_attention in layer 0 has no gates; leave calibration out"),
        ("sliding_window", {"window": 4}, 4, "sliding_window in layer 0 has no gates"),
        ("gated_deltanet", {}, 0, "sequences is 0, expected at least 1"),
    ],
)
def test_errors_name_what_is_wrong(mixer, options, sequences, message):
    teacher = small_teacher()
    student = ha.convert(teacher, mixer, options, verbose=False)
    with pytest.raises(ValueError, match=message):
        ha.calibrate(student, teacher, packed_data(), sequences)


def test_errors_about_data_and_teacher():
    teacher, data = small_teacher(), packed_data()
    student = ha.convert(teacher, verbose=False)
    empty = type("Nothing", (), {"train_batches": lambda self, *args, **kwargs: iter(())})()
    with pytest.raises(ValueError, match="no training sequences; give a longer corpus"):
        ha.calibrate(student, teacher, empty)
    documents = torch.randint(1, 31, (6, 8))
    silent = TokenData.from_tokens(documents, loss_mask=torch.zeros_like(documents, dtype=torch.bool), held_out=0)
    with pytest.raises(ValueError, match="no token of 16 training sequences counts"):
        ha.calibrate(student, teacher, silent)
    with pytest.raises(ValueError, match="has no mixers"):
        ha.calibrate(ha.keep_softmax(student, teacher, [0, 1]), teacher, data)
    before = tensors(student)
    with torch.no_grad():
        hf.attention(teacher, 1).q_proj.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="teacher's layer 1 is not finite"):
        ha.calibrate(student, teacher, data)
    for name, tensor in student.state_dict().items():
        if ".layers.1." in name:
            assert torch.equal(tensor, before[name])
