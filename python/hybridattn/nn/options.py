"""Mixer options: strict dataclasses whose field names are those of the C++ options, of config.json and of the recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Self

_FIELD_TYPES: dict[str, type] = {"int": int, "bool": bool, "float": float, "str": str}


def _choice(owner: str, name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{owner}: {name} must be one of {', '.join(allowed)}; got {value!r}")


@dataclass(kw_only=True)
class MixerOptions:
    """Shape of an attention layer, as every mixer shares it. D = hidden_size, H = num_heads, K = head_dim."""

    hidden_size: int
    """D, width of the residual stream."""
    num_heads: int
    """H, query heads."""
    num_kv_heads: int = 0
    """Key/value heads of the teacher; 0 means as many as query heads."""
    head_dim: int = 0
    """K, width of a query/key head; 0 means hidden_size / num_heads."""
    qkv_bias: bool = False
    """q_proj, k_proj and v_proj have biases."""
    output_bias: bool = False
    """o_proj has a bias."""
    qk_norm: bool = False
    """RMSNorm over each query and key head before the rotary embedding (Qwen3)."""
    rotary: str = "keep"
    """"keep" rotates q and k at the teacher's point, "drop" leaves positions out."""
    norm_eps: float = 1e-6
    """Epsilon of every RMSNorm in the mixer: the teacher's."""

    def __post_init__(self) -> None:
        owner = type(self).__name__
        for field in fields(self):
            setattr(self, field.name, self._typed(field.name, str(field.type), getattr(self, field.name)))
        for name in ("hidden_size", "num_heads"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{owner}: {name} must be positive; got {getattr(self, name)}")
        if self.num_kv_heads == 0:
            self.num_kv_heads = self.num_heads
        if self.num_kv_heads < 0 or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{owner}: num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim == 0:
            if self.hidden_size % self.num_heads:
                raise ValueError(
                    f"{owner}: hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; give head_dim"
                )
            self.head_dim = self.hidden_size // self.num_heads
        if self.head_dim < 0:
            raise ValueError(f"{owner}: head_dim must be positive; got {self.head_dim}")
        if not self.norm_eps > 0:
            raise ValueError(f"{owner}: norm_eps must be positive; got {self.norm_eps}")
        _choice(owner, "rotary", self.rotary, ("keep", "drop"))

    @classmethod
    def _typed(cls, name: str, type_name: str, value: Any) -> Any:
        wanted = _FIELD_TYPES[type_name]
        if wanted is float and type(value) is int:
            return float(value)
        if type(value) is not wanted:
            raise TypeError(f"{cls.__name__}: {name} must be {type_name}; got {value!r}")
        return value

    def to_dict(self) -> dict[str, Any]:
        """Every field with its resolved value, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds the options from a mapping.

        Raises:
            ValueError: an unknown key, a missing one, or a value out of range (the message names it).
            TypeError: a value of the wrong type.
        """
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"{cls.__name__}: unknown option {', '.join(unknown)} (known: {', '.join(known)})")
        missing = [name for name, field in known.items() if field.default is MISSING and name not in values]
        if missing:
            raise ValueError(f"{cls.__name__}: missing option {', '.join(missing)}")
        return cls(**values)


@dataclass(kw_only=True)
class SoftmaxAttentionOptions(MixerOptions):
    """Softmax attention; with `window` it is sliding-window attention with optional sinks."""

    window: int = 0
    """A query sees the last `window` positions, itself included; 0 means all of them."""
    sinks: int = 0
    """The first `sinks` tokens stay visible outside the window."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 0 or self.sinks < 0:
            raise ValueError(
                f"{type(self).__name__}: window and sinks must be >= 0; got {self.window} and {self.sinks}"
            )
        if self.sinks and not self.window:
            raise ValueError(f"{type(self).__name__}: sinks {self.sinks} has no effect without a window")


@dataclass(kw_only=True)
class SlidingWindowOptions(SoftmaxAttentionOptions):
    """Softmax attention that must have a window."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.window:
            raise ValueError(f"{type(self).__name__}: window must be positive; got 0")


@dataclass(kw_only=True)
class LinearAttentionOptions(MixerOptions):
    """What every linear mixer shares. V = value_head_dim."""

    value_head_dim: int = 0
    """V, width of a value head; 0 means head_dim."""
    kv_sharing: str = "cloned"
    """"cloned": k_proj and v_proj have one head per query head; "shared": num_kv_heads of them, repeated at run time."""
    activation: str = "silu"
    """Activation on q, k and v: "silu" or "none"."""
    l2_norm: bool = True
    """L2-normalise each query and key head before the rule."""
    short_convolution: int = 0
    """Width of a causal depthwise convolution on q, k and v before the activation; 0 = none."""
    output_gate: bool = True
    """Multiply the (normalised) output by an activation of g_proj x."""
    gate_activation: str = "silu"
    """Activation of the output gate: "silu" or "sigmoid"; "inner_sigmoid" stands in the middle of a g_proj of low rank."""
    output_gate_low_rank_dim: int = 0
    """Rank of g_proj; 0: a full matrix."""
    output_norm: bool = True
    """RMSNorm over each value head before the gate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        if self.value_head_dim == 0:
            self.value_head_dim = self.head_dim
        if self.value_head_dim < 0:
            raise ValueError(f"{owner}: value_head_dim must be positive; got {self.value_head_dim}")
        if self.short_convolution < 0 or self.short_convolution == 1:
            raise ValueError(f"{owner}: short_convolution must be 0 (off) or at least 2; got {self.short_convolution}")
        _choice(owner, "kv_sharing", self.kv_sharing, ("cloned", "shared"))
        _choice(owner, "activation", self.activation, ("silu", "none"))
        _choice(owner, "gate_activation", self.gate_activation, ("silu", "sigmoid", "inner_sigmoid"))
        if self.output_gate_low_rank_dim < 0:
            raise ValueError(
                f"{owner}: output_gate_low_rank_dim must be 0 (a full matrix) or positive; "
                f"got {self.output_gate_low_rank_dim}"
            )
        if self.gate_activation == "inner_sigmoid" and not self.output_gate_low_rank_dim:
            raise ValueError(f"{owner}: gate_activation inner_sigmoid needs output_gate_low_rank_dim; got 0")

    @property
    def projected_kv_heads(self) -> int:
        """Heads that k_proj and v_proj produce."""
        return self.num_kv_heads if self.kv_sharing == "shared" else self.num_heads


@dataclass(kw_only=True)
class DeltaNetOptions(LinearAttentionOptions):
    """Delta rule without decay."""

    allow_negative_eigenvalues: bool = False
    """beta in (0, 2) instead of (0, 1), so that a state transition may have negative eigenvalues."""


@dataclass(kw_only=True)
class GatedDeltaNetOptions(DeltaNetOptions):
    """Delta rule with a data-dependent scalar decay per head."""


@dataclass(kw_only=True)
class LightningOptions(LinearAttentionOptions):
    """Additive rule with a fixed decay per head."""

    decay_slopes: str = "lightning"
    """"lightning": g_h = -2^(-8 h / H), h = 1..H; "retnet": g_h = log(1 - 2^(-5 - h)), h = 0..H-1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _choice(type(self).__name__, "decay_slopes", self.decay_slopes, ("lightning", "retnet"))


def _rank(owner: str, name: str, rank: int, when_zero: int = 0) -> int:
    if rank < 0 or rank + when_zero == 0:
        raise ValueError(f"{owner}: {name} must be positive; got {rank}")
    return rank or when_zero


@dataclass(kw_only=True)
class GatedLinearAttentionOptions(LinearAttentionOptions):
    """Additive rule with a data-dependent decay per channel."""

    gate_low_rank_dim: int = 16
    """Rank of the projection that gives the decay."""
    gate_logit_normalizer: float = 16.0
    """g = logsigmoid(gk_proj x) / gate_logit_normalizer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        self.gate_low_rank_dim = _rank(owner, "gate_low_rank_dim", self.gate_low_rank_dim)
        if not self.gate_logit_normalizer > 0:
            raise ValueError(f"{owner}: gate_logit_normalizer must be positive; got {self.gate_logit_normalizer}")


@dataclass(kw_only=True)
class KimiDeltaAttentionOptions(DeltaNetOptions):
    """Delta rule with a data-dependent decay per channel."""

    gate_low_rank_dim: int = 0
    """Rank of the projection that gives the decay; 0 means head_dim."""
    gate_lower_bound: float = 0.0
    """0: g = -exp(A_log) softplus(f_proj x + dt_bias); below 0: g = bound * sigmoid(exp(A_log) (f_proj x + dt_bias))."""

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        self.gate_low_rank_dim = _rank(owner, "gate_low_rank_dim", self.gate_low_rank_dim, self.head_dim)
        if self.gate_lower_bound > 0:
            raise ValueError(f"{owner}: gate_lower_bound must be 0 (off) or below; got {self.gate_lower_bound}")


@dataclass(kw_only=True)
class Rwkv6Options(LinearAttentionOptions):
    """Additive rule with RWKV-6's decay per channel; keys are written by as much as the state forgets."""

    activation: str = "none"
    l2_norm: bool = False
    gate_activation: str = "sigmoid"
    output_norm: bool = False
    gate_low_rank_dim: int = 64
    """Rank of the projection that gives the decay."""
    state_balancing: bool = True
    """Scale keys so that the state's size does not depend on its decay; stands for an output norm."""
    group_norm: bool = False
    """The output norm, where there is one, is RWKV's group norm instead of an RMSNorm."""
    token_shift: str = "none"
    """Projections read a mixture with the token before: "lerp" in fixed shares per channel, "ddlerp" in shares that
    depend on the data, "none" not at all. Starts without a shift."""
    shift_low_rank_dim: int = 32
    """Rank of the projections that give ddlerp's shares."""
    value_residual: bool = False
    """Mix the values with those of the model's first mixer by a learned gate, which starts closed."""
    value_low_rank_dim: int = 32
    """Rank of the projection that gives the value residual's gate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        for name in ("gate_low_rank_dim", "shift_low_rank_dim", "value_low_rank_dim"):
            setattr(self, name, _rank(owner, name, getattr(self, name)))
        _choice(owner, "token_shift", self.token_shift, ("none", "lerp", "ddlerp"))
        if self.group_norm and not self.output_norm:
            raise ValueError(f"{owner}: group_norm has no effect without output_norm")


@dataclass(kw_only=True)
class Rwkv7Options(Rwkv6Options):
    """RWKV-7's generalised delta rule: what the state holds for the normalised key is replaced at a rate per channel."""

    rate_low_rank_dim: int = 64
    """Rank of the projection that gives the in-context learning rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rate_low_rank_dim = _rank(type(self).__name__, "rate_low_rank_dim", self.rate_low_rank_dim)
