"""The whole pipeline for every kind of mixer: convert, align, score, keep, match, save, load, generate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import hybridattn as ha
from hybridattn.data import TokenData
from hybridattn.nn import MIXERS

OPTIONS: dict[str, dict[str, Any]] = {
    "sliding_window": {"window": 5, "sinks": 1},
    "gla": {"gate_low_rank_dim": 4},
    "kda": {"gate_lower_bound": -5.0, "output_gate_low_rank_dim": 4, "gate_activation": "sigmoid"},
    "rwkv6": {"token_shift": "ddlerp", "output_norm": True, "group_norm": True},
    "rwkv7": {"token_shift": "lerp", "value_residual": True},
    "gated_deltanet": {"short_convolution": 3},
}


def small_teacher() -> Any:
    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def stage(name: str, **fields: Any) -> Any:
    values = {"tokens": 6 * 4 * 16, "seq_len": 16, "batch_size": 4, "lr": 1e-3, "mixer_lr": 1e-2, "warmup_steps": 0}
    return getattr(ha.presets, name)("paper", **values | fields)


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_whole_way(mixer: str, tmp_path: Path) -> None:
    teacher, data = small_teacher(), TokenData.from_tokens(torch.randint(0, 31, (40, 16)), held_out=0.2)
    student = ha.convert(teacher, mixer, OPTIONS.get(mixer), verbose=False)
    starts = {entry.target: entry.note for entry in student.transfer_plan if entry.action == "initialised"}
    assert "module default" not in starts.values(), starts
    for name, note in starts.items():
        tensor = student.mixers()[1].state_dict()[name]
        if note.startswith(("zeros", "ones")):
            assert torch.equal(tensor, torch.full_like(tensor, note.startswith("ones"))), name

    aligned = ha.align(student, teacher, data, stage("align"))
    if mixer == "softmax_attention":
        assert set(aligned.losses) == {0.0}
    elif MIXERS[mixer].is_linear:
        assert aligned.losses[-1] < aligned.losses[0]
    scores = ha.score_layers(student, teacher, data, ha.select.ScoreOptions("removal", held_out_sequences=8), keep=1)
    hybrid = ha.keep_softmax(student, teacher, scores.top(k=1))
    matched = ha.match(hybrid, teacher, data, stage("match", gradient_checkpointing=True))
    assert all(map(torch.isfinite, torch.tensor(matched.losses)))

    hybrid.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.softmax_layers == scores.top(k=1)
    assert (
        again.mixers()[again.config.layer_types.index("linear_attention")].options
        == next(iter(hybrid.mixers().values())).options
    )
    ids = torch.randint(0, 31, (2, 9))
    expected = hybrid.generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(again.generate(ids, max_new_tokens=5, do_sample=False), expected)
    assert torch.equal(again.generate(ids, max_new_tokens=5, do_sample=False, use_cache=False), expected)
