"""C++ mixers compute what their Python twins compute: outputs, every gradient, padding, packed documents, decoding."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hybridattn.nn import FirstValue, build_mixer
from hybridattn.nn.state import MixerState
from tolerances import assert_close

SHAPE = {"hidden_size": 24, "num_heads": 6, "num_kv_heads": 2, "head_dim": 6}
EVERYTHING = {"qkv_bias": True, "output_bias": True, "qk_norm": True, "norm_eps": 1e-5}
LINEAR = {"value_head_dim": 5, "kv_sharing": "shared", "short_convolution": 3}
BARE = {"rotary": "drop", "activation": "none", "l2_norm": False, "output_gate": False, "output_norm": False}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax": ("softmax_attention", {}),
    "softmax, biases and norms": ("softmax_attention", EVERYTHING),
    "window and sinks": ("sliding_window", EVERYTHING | {"window": 4, "sinks": 2}),
    "gated deltanet": ("gated_deltanet", {}),
    "gated deltanet, everything": ("gated_deltanet", EVERYTHING | LINEAR | {"allow_negative_eigenvalues": True}),
    "gated deltanet, no norm": ("gated_deltanet", {"output_norm": False}),
    "gated deltanet, no gate": ("gated_deltanet", {"output_gate": False}),
    "deltanet": ("deltanet", LINEAR | {"allow_negative_eigenvalues": True}),
    "deltanet, bare but normalised keys": ("deltanet", BARE | {"l2_norm": True}),
    "kda": ("kda", {}),
    "kda, everything": ("kda", EVERYTHING | LINEAR | {"gate_lower_bound": -5.0, "gate_low_rank_dim": 3}),
    "gla": ("gla", {}),
    "gla, everything": ("gla", EVERYTHING | LINEAR | {"gate_logit_normalizer": 4.0, "gate_activation": "sigmoid"}),
    "rwkv6": ("rwkv6", {}),
    "rwkv6, everything": ("rwkv6", EVERYTHING | LINEAR | {"state_balancing": False, "output_norm": True}),
    "rwkv7": ("rwkv7", {}),
    "rwkv7, everything": ("rwkv7", EVERYTHING | LINEAR | {"state_balancing": False, "rate_low_rank_dim": 3}),
    "rwkv6, shifted": ("rwkv6", LINEAR | {"token_shift": "ddlerp", "shift_low_rank_dim": 3}),
    "rwkv6, group norm": (
        "rwkv6",
        {"value_head_dim": 5, "output_norm": True, "group_norm": True, "token_shift": "lerp"},
    ),
    "rwkv7, shifted": ("rwkv7", EVERYTHING | {"token_shift": "ddlerp", "output_gate": False}),
    "rwkv7, value residual": ("rwkv7", LINEAR | {"token_shift": "lerp", "value_residual": True}),
    "kda, gate of low rank": ("kda", {"output_gate_low_rank_dim": 3, "gate_activation": "sigmoid"}),
    "rwkv7, gate of low rank": ("rwkv7", {"output_gate_low_rank_dim": 3, "gate_activation": "inner_sigmoid"}),
    "lightning, bare": ("lightning", BARE),
    "lightning, retnet": ("lightning", LINEAR | {"decay_slopes": "retnet"}),
}


def inputs(tokens: int, batch: int = 2) -> dict[str, Tensor]:
    angle = torch.rand(batch, tokens, SHAPE["head_dim"], dtype=torch.float64)
    shape = (batch, tokens, SHAPE["hidden_size"])
    return {
        "hidden": torch.randn(shape, dtype=torch.float64),
        "gradient": torch.randn(shape, dtype=torch.float64),
        "cos": angle.cos(),
        "sin": angle.sin(),
    }


def first_values(mixer: Any, tokens: int) -> dict[str, Tensor]:
    """Values of a first mixer, for a mixer with a value residual."""
    if not getattr(mixer.options, "value_residual", False):
        return {}
    shape = (2, tokens, mixer.options.num_heads, mixer.options.value_head_dim)
    return {"first": torch.randn(shape, dtype=torch.float64)}


def shared(first: dict[str, Tensor]) -> FirstValue | None:
    """As if a first mixer had run."""
    if not first:
        return None
    value = FirstValue()
    value.seen_by("another", first["first"])
    return value


def variants(tokens: int) -> dict[str, dict[str, Tensor]]:
    padding = torch.ones(2, tokens, dtype=torch.bool)
    padding[1, :5] = False
    return {
        "plain": {},
        "padded": {"padding_mask": padding},
        "packed": {"cu_seqlens": torch.tensor([0, 3, tokens, tokens + 1, 2 * tokens])},
    }


def away_from_its_start(kind: str, options: dict[str, Any]) -> Any:
    """A mixer none of whose parameters is 0, behind which nothing would be compared."""
    mixer = build_mixer(kind, SHAPE | options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return mixer


@pytest.mark.parametrize("variant", ["plain", "padded", "packed"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(cpp: Any, case: str, variant: str) -> None:
    mixer = away_from_its_start(*CASES[case])
    given, extra = inputs(tokens=70), variants(70)[variant]
    if "padding_mask" in extra:  # what stands at padded positions has no meaning, so no gradient comes from there
        given["gradient"] = given["gradient"] * extra["padding_mask"].unsqueeze(-1)
    weights = {f"weights.{name}": tensor for name, tensor in mixer.state_dict().items()}
    first = first_values(mixer, 70)
    answer = cpp("mixer", given | extra | weights | first, kind=mixer.kind, options=mixer.options.to_dict())

    hidden = given["hidden"].requires_grad_()
    for tensor in first.values():
        tensor.requires_grad_()
    out, _ = mixer.mix(hidden, rotary=(given["cos"], given["sin"]), first_value=shared(first), **extra)
    out.backward(given["gradient"])
    keep = extra.get("padding_mask", torch.ones(2, 70, dtype=torch.bool))
    assert_close(answer["out"][keep], out[keep], "value")
    assert_close(answer["gradient.hidden"], hidden.grad, "gradient")
    for name, tensor in first.items():
        assert_close(answer[f"gradient.{name}"], tensor.grad, "gradient")
    for name, parameter in mixer.named_parameters():
        assert_close(answer[f"gradient.{name}"], parameter.grad, "gradient")


@pytest.mark.parametrize("case", CASES)
def test_token_by_token(cpp: Any, case: str) -> None:
    """Prefill and decode with a state in C++ equal one pass in Python, left padding included."""
    mixer = away_from_its_start(*CASES[case])
    given, padding = inputs(tokens=23), variants(23)["padded"]
    weights = {f"weights.{name}": tensor for name, tensor in mixer.state_dict().items()}
    first = first_values(mixer, 23)
    tensors = given | padding | weights | first
    answer = cpp("mixer", tensors, kind=mixer.kind, options=mixer.options.to_dict(), prefill=9)
    with torch.no_grad():
        out, _ = mixer.mix(given["hidden"], rotary=(given["cos"], given["sin"]), first_value=shared(first), **padding)
    keep = padding["padding_mask"]
    assert_close(answer["out"][keep], out[keep], "value")


def test_the_window_forgets_and_stays_right(cpp: Any) -> None:
    """Without padding a window's cache is cut again and again while it decodes."""
    kind, options = CASES["window and sinks"]
    mixer = build_mixer(kind, SHAPE | options).double()
    given = inputs(tokens=40)
    weights = {f"weights.{name}": tensor for name, tensor in mixer.state_dict().items()}
    answer = cpp("mixer", given | weights, kind=mixer.kind, options=mixer.options.to_dict(), prefill=3)
    with torch.no_grad():
        out, _ = mixer.mix(given["hidden"], rotary=(given["cos"], given["sin"]), state=MixerState())
    assert_close(answer["out"], out, "value")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_convolutoin": 4}, "unknown field 'short_convolutoin', the nearest is 'short_convolution'"),
        ({"head_dim": 1.5}, "head_dim has the wrong type"),
        ({"num_kv_heads": 4}, "not a multiple of num_kv_heads 4"),
        ({"kv_sharing": "half"}, "cloned or shared"),
    ],
)
def test_wrong_options_are_named(cpp: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        cpp("mixer", inputs(4), kind="gated_deltanet", options=SHAPE | options)
