"""The C++ decoder against Transformers' own models: logits, padding, packed documents, generation, files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import hybridattn as ha
from tolerances import assert_close

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
}


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **fields}}


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, one KV head, tied": ("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama, all KV heads, biases": ("Llama", {"num_key_value_heads": 6, "attention_bias": True, "mlp_bias": True}),
    "llama, 7 groups": ("Llama", {"hidden_size": 42, "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 4}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, sliding window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"attention_bias": True}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, sliding window": ("Mistral", {"sliding_window": 6}),
    "linear rope": ("Llama", rope("linear", factor=2.0)),
    "dynamic rope": ("Llama", {"max_position_embeddings": 16} | rope("dynamic", factor=2.0)),
    "yarn": ("Llama", rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "longrope, short": (
        "Llama",
        rope("longrope", short_factor=[1.0, 1.1, 1.2, 1.3, 1.4], long_factor=[2.0] * 5, original_max_position_embeddings=48),
    ),
    "longrope, long": (
        "Llama",
        rope("longrope", short_factor=[1.0] * 5, long_factor=[1.5, 2.0, 2.5, 3.0, 3.5], original_max_position_embeddings=16),
    ),
    "llama3": (
        "Llama",
        rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    ),
}  # fmt: skip


def teacher(family: str) -> Any:
    name, fields = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**(SHAPE | fields))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    return model


def saved(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(cpp: Any, tmp_path: Path, family: str) -> None:
    model, ids = teacher(family), torch.randint(0, 97, (2, 31))
    answer = cpp("decoder", {"ids": ids}, model=saved(model, tmp_path / "model"))
    with torch.no_grad():
        assert_close(answer["logits"], model(ids).logits, "logits")


SHARED = {"token_shift": "ddlerp", "value_residual": True}
HYBRIDS: dict[str, dict[str, Any]] = {
    "sliding_window": {"window": 5, "sinks": 2},
    "rwkv6": {"short_convolution": 4, "output_norm": True, "group_norm": True} | SHARED,
    "rwkv7": SHARED,
}


def converted(family: str, mixer: str, layers: list[int]) -> Any:
    """A hybrid whose mixers are away from starts without effect."""
    options = HYBRIDS.get(mixer, {"short_convolution": 4})
    model = ha.convert(teacher(family), mixer, options, layers=layers, verbose=False)
    with torch.no_grad():
        for module in model.mixers().values():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    "mixer", ["gated_deltanet", "deltanet", "kda", "gla", "rwkv6", "rwkv7", "lightning", "sliding_window"]
)
def test_hybrids_saved_by_python(cpp: Any, tmp_path: Path, mixer: str) -> None:
    model = converted("qwen3", mixer, [0, 2])
    ids = torch.randint(0, 97, (2, 31))
    answer = cpp("decoder", {"ids": ids}, model=saved(model, tmp_path / "model"), generate=6)
    with torch.no_grad():
        assert_close(answer["logits"], model(ids).logits, "logits")
    assert torch.equal(answer["cached"], answer["uncached"])
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(answer["cached"], expected)


@pytest.mark.parametrize("mixer", ["gated_deltanet", "rwkv7"])
def test_left_padding_and_generation(cpp: Any, tmp_path: Path, mixer: str) -> None:
    model = converted("llama", mixer, [0, 1])
    ids, mask = torch.randint(0, 97, (2, 12)), torch.ones(2, 12, dtype=torch.bool)
    mask[1, :5] = False
    folder = saved(model, tmp_path / "model")
    answer = cpp("decoder", {"ids": ids, "padding_mask": mask}, model=folder, generate=5)
    alone = cpp("decoder", {"ids": ids[1:, 5:]}, model=folder, generate=5)
    assert torch.equal(answer["cached"], answer["uncached"])
    assert torch.equal(answer["cached"][1:, 5:], alone["cached"])
    assert_close(answer["logits"][1:, 5:], alone["logits"], "logits")


@pytest.mark.parametrize("mixer", ["gated_deltanet", "rwkv7"])
def test_packed_documents_do_not_see_each_other(cpp: Any, tmp_path: Path, mixer: str) -> None:
    model = converted("llama", mixer, [1, 2])
    folder, ids = saved(model, tmp_path / "model"), torch.randint(0, 97, (1, 20))
    packed = cpp("decoder", {"ids": ids, "cu_seqlens": torch.tensor([0, 7, 20])}, model=folder)
    for begin, end in ((0, 7), (7, 20)):
        alone = cpp("decoder", {"ids": ids[:, begin:end]}, model=folder)
        assert_close(packed["logits"][:, begin:end], alone["logits"], "logits")


@pytest.mark.parametrize("hybrid", [False, True])
def test_what_cpp_saves_transformers_loads(cpp: Any, tmp_path: Path, hybrid: bool) -> None:
    model = teacher("llama, one KV head, tied")
    if hybrid:
        model = ha.convert(model, "gated_deltanet", layers=[1], verbose=False)
    cpp(
        "decoder", {"ids": torch.zeros(1, 1, dtype=torch.long)}, model=saved(model, tmp_path / "a"), save=tmp_path / "b"
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert type(loaded) is type(model)
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_shards(cpp: Any, tmp_path: Path) -> None:
    model, ids = teacher("qwen2"), torch.randint(0, 97, (1, 9))
    folder = saved(model, tmp_path / "model", max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    with torch.no_grad():
        assert_close(cpp("decoder", {"ids": ids}, model=folder)["logits"], model(ids).logits, "logits")
    shutil.copy(sorted(folder.glob("model-*"))[0], folder / "kept")
    sorted(folder.glob("model-*.safetensors"))[0].unlink()
    with pytest.raises(AssertionError, match=r"model-00001-of.*No such file"):
        cpp("decoder", {"ids": ids}, model=folder)


def damaged(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (config | changes).items() if v != "remove"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not supported; supported are llama, qwen2, qwen3, mistral"),
        ({"hidden_size": "remove"}, "hidden_size is missing"),
        ({"vocab_size": "many"}, "vocab_size has the wrong type"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"num_hidden_layers": 4}, "tensors are missing: model.layers.3.*and 1 more"),
        ({"num_hidden_layers": 2}, "tensors that the model does not have: model.layers.2"),
        ({"intermediate_size": 51}, "has shape .*the config says"),
    ],
)  # fmt: skip
def test_folders_that_do_not_fit_are_named(cpp: Any, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = saved(teacher("llama"), tmp_path / "model")
    damaged(folder, **changes)
    with pytest.raises(AssertionError, match=message):
        cpp("decoder", {"ids": torch.zeros(1, 1, dtype=torch.long)}, model=folder)


def test_ids_outside_the_vocabulary_are_named(cpp: Any, tmp_path: Path) -> None:
    ids: Tensor = torch.tensor([[97]])
    with pytest.raises(AssertionError, match="own tokenizer"):
        cpp("decoder", {"ids": ids}, model=saved(teacher("llama"), tmp_path / "model"))
