"""Layers of PyTorch and Transformers on this library's kernels, for as long as a block runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Lock, local
from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from hybridattn import ops

RMS_NORMS = {
    "hybridattn.nn.norm": ("RMSNorm", "eps"),
    "transformers.models.llama.modeling_llama": ("LlamaRMSNorm", "variance_epsilon"),
    "transformers.models.mistral.modeling_mistral": ("MistralRMSNorm", "variance_epsilon"),
    "transformers.models.qwen2.modeling_qwen2": ("Qwen2RMSNorm", "variance_epsilon"),
    "transformers.models.qwen3.modeling_qwen3": ("Qwen3RMSNorm", "variance_epsilon"),
}
"""Module -> its norm and where that keeps its epsilon: the mixers' own, and those of the families that can be teachers."""

MLPS = {
    "transformers.models.llama.modeling_llama": "LlamaMLP",
    "transformers.models.mistral.modeling_mistral": "MistralMLP",
    "transformers.models.qwen2.modeling_qwen2": "Qwen2MLP",
    "transformers.models.qwen3.modeling_qwen3": "Qwen3MLP",
}
"""Module -> its feed-forward layer, of the same families."""

ROTARY = "apply_rotary_pos_emb"
"""What those families call the rotary embedding of queries and keys."""

MIXER_ATTENTION = "hybridattn.nn.softmax_attention"
TRANSFORMERS_MODELS = "transformers.modeling_utils"
SDPA = "sdpa"
"""Where mixers and Transformers look up their softmax attention, and the latter's name of it."""

SDPA_OPTIONS = ("position_bias", "softcap")
"""What Transformers may ask of it beside."""

Function = Callable[..., Any]

_open_blocks = 0
_lock = Lock()
_undo: dict[tuple[int, str], Callable[[], None]] = {}
"""Owner and name of what is replaced while blocks are open -> what puts the original back."""


def _of_same_dtype(layer: Any, x: Tensor, *dtypes: torch.dtype) -> bool:
    return x.device.type == "cpu" and x.dtype in dtypes and layer.weight.dtype == x.dtype


def _under_autocast(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


class _Narrowed(local):
    """The last input that autocast narrowed: projections of one input share it. Where gradients flow, each projection
    narrows for itself, so that they are added in the input's dtype."""

    def __init__(self) -> None:
        self._source: Callable[[], Tensor | None] = lambda: None
        self._version = 0
        self._value: Tensor | None = None

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.requires_grad or x.is_inference() or x.dtype == dtype or torch.compiler.is_compiling():
            return x
        if self._value is None or self._source() is not x or self._version != x._version or self._value.dtype != dtype:
            self._source, self._version, self._value = ref(x, self._forget), x._version, x.to(dtype)
        return self._value

    def _forget(self, source: Any) -> None:
        if source is self._source:
            self._value = None


_narrowed = _Narrowed()


def _linear(original: Function) -> Function:
    def forward(self: Any, input: Tensor) -> Tensor:
        # Autocast narrows the products of PyTorch's layer.
        if _under_autocast(input):
            narrow = input.dtype == torch.float32
            return cast(Tensor, original(self, _narrowed(input, torch.get_autocast_dtype("cpu")) if narrow else input))
        if _of_same_dtype(self, input, torch.float32, torch.float64):
            return ops.linear(input, self.weight, self.bias)
        return cast(Tensor, original(self, input))

    return forward


def _rms_norm(original: Function, epsilon: str) -> Function:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if _of_same_dtype(self, hidden_states, *ops.NATIVE_DTYPES):
            return ops.rms_norm(hidden_states, self.weight, getattr(self, epsilon))
        return original(self, hidden_states)

    return forward


def _mlp(original: Function) -> Function:
    def forward(self: Any, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not isinstance(self.act_fn, (nn.SiLU, SiLUActivation)):
            return cast(Tensor, original(self, x))
        gate, up = self.gate_proj(x), self.up_proj(x)
        native = gate.dtype == up.dtype and gate.dtype in ops.NATIVE_DTYPES
        return cast(Tensor, self.down_proj(ops.swiglu(gate, up) if native else self.act_fn(gate) * up))

    return forward


def _rotary(original: Function) -> Function:
    """In place of Transformers' function. Under autocast, where its results are wider than what it is given and SDPA
    narrows them again, they are narrowed here."""

    def forward(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        same = q.dtype == k.dtype == cos.dtype or _under_autocast(q)
        if q.device.type != "cpu" or q.dtype not in ops.NATIVE_DTYPES or not same or unsqueeze_dim != 1:
            return original(q, k, cos, sin, unsqueeze_dim)
        q, k = (ops.apply_rotary(x.transpose(1, 2), cos, sin).transpose(1, 2) for x in (q, k))
        return q, k

    return forward


def _attention(original: Function) -> Function:
    """In place of Transformers' function over SDPA, where that is given no mask."""

    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        queries, keys = query.shape[2], key.shape[2]
        same = query.dtype == key.dtype == value.dtype or _under_autocast(query)
        of_ours = query.device.type == "cpu" and query.dtype in ops.NATIVE_DTYPES and same
        plain = attention_mask is None and dropout == 0 and all(options.get(name) is None for name in SDPA_OPTIONS)
        # Keys beyond the queries are a static cache's empty places, which the original cuts off.
        if not (of_ours and plain and (queries in (1, keys) or not causal)):
            return original(
                module, query, key, value, attention_mask,
                dropout=dropout, scaling=scaling, is_causal=is_causal, **options,
            )  # fmt: skip
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return ops.softmax_attention(q, k, v, scale=scaling, causal=causal and queries > 1), None

    return forward


def _mixer_attention(original: Function) -> Function:
    del original
    return ops.softmax_attention


def _replace(owner: Any, name: str, replacement: Callable[[Function], Function]) -> None:
    if (id(owner), name) not in _undo:
        original = owner.__dict__[name]
        _undo[id(owner), name] = partial(setattr, owner, name, original)
        setattr(owner, name, replacement(original))


def _replace_sdpa(module: Any) -> None:
    functions = module.ALL_ATTENTION_FUNCTIONS
    if (id(functions), SDPA) not in _undo:
        original = functions[SDPA]
        _undo[id(functions), SDPA] = partial(functions.register, SDPA, original)
        functions.register(SDPA, _attention(original))


@contextmanager
def native_layers() -> Iterator[None]:
    """Inside, these layers compute on this library's kernels, in the whole process: `torch.nn.Linear` in float32 and
    float64 (`ops.linear`), RMS norms of teachers and mixers (`ops.rms_norm`), rotary embedding and SiLU-gated feed-forward
    layers of teachers (`ops.apply_rotary`, `ops.swiglu`), and softmax attention, of mixers and, where it has no mask and is
    computed by SDPA, of teachers (`ops.softmax_attention`). Under autocast, projections of one input that needs no gradient
    narrow it once.

    Blocks may overlap. A backward pass that runs its forward pass again (gradient checkpointing) belongs inside too.
    """
    global _open_blocks
    with _lock:
        _open_blocks += 1
        _replace(nn.Linear, "forward", _linear)
        for module, (name, epsilon) in RMS_NORMS.items():
            if module in sys.modules:
                owner = sys.modules[module]
                _replace(getattr(owner, name), "forward", partial(_rms_norm, epsilon=epsilon))
                if module in MLPS:
                    _replace(getattr(owner, MLPS[module]), "forward", _mlp)
                    _replace(owner, ROTARY, _rotary)
        if MIXER_ATTENTION in sys.modules:
            _replace(sys.modules[MIXER_ATTENTION], "attention", _mixer_attention)
        if TRANSFORMERS_MODELS in sys.modules:
            _replace_sdpa(sys.modules[TRANSFORMERS_MODELS])
    try:
        yield
    finally:
        with _lock:
            _open_blocks -= 1
            if _open_blocks == 0:
                for undo in _undo.values():
                    undo()
                _undo.clear()
