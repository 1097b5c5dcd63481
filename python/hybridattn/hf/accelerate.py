"""This library's CPU kernels in Transformers' own hybrid models, which otherwise run a Python loop on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from types import ModuleType, TracebackType
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.activations import ACT2FN

from hybridattn import ops
from hybridattn.hf.native_layers import native_layers

TESTED_VERSIONS = ("5.23", "5.24")
"""Releases of Transformers whose functions these replacements were compared with."""


_EPSILON = 1e-6  # of the reference's L2 norm

Function = Callable[..., Any]


def _documents(cu_seqlens: Tensor | None, seq_idx: Tensor | None) -> Tensor | None:
    """Offsets [N + 1] of packed documents, given as they are or as the number of each token's document [1, T]."""
    if cu_seqlens is not None or seq_idx is None:
        return cu_seqlens
    if seq_idx.shape[0] != 1:
        raise ValueError(f"packed documents need a batch of 1, got seq_idx {tuple(seq_idx.shape)}")
    starts = torch.nonzero(seq_idx[0, 1:] != seq_idx[0, :-1]).flatten() + 1
    return torch.cat([starts.new_zeros(1), starts, starts.new_full((1,), seq_idx.shape[1])])


def _prepared(query: Tensor, key: Tensor, value: Tensor, beta: Tensor, normalize: bool) -> tuple[Tensor, ...]:
    """In fp32, as the reference computes."""
    query, key, value, beta = (x.float() for x in (query, key, value, beta))
    if normalize:
        query, key = ops.l2_normalize(query, _EPSILON), ops.l2_normalize(key, _EPSILON)
    return query, key, value, beta


def _chunk(reference: Function, rule: str) -> Function:
    op = getattr(ops, f"chunk_{rule}")

    def chunk(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        g: Tensor,
        beta: Tensor,
        chunk_size: int = 64,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        cu_seqlens: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if query.device.type != "cpu":
            return reference(
                query, key, value, g, beta, chunk_size, initial_state, output_final_state, use_qk_l2norm_in_kernel,
                cu_seqlens=cu_seqlens, **kwargs,
            )  # fmt: skip
        documents = cu_seqlens
        if documents is None:
            documents = _documents(kwargs.get("cu_seq_lens_q"), kwargs.get("seq_idx"))
        q, k, v, strength = _prepared(query, key, value, beta, use_qk_l2norm_in_kernel)
        out, state = op(
            q, k, v, g.float(), strength,
            initial_state=initial_state, output_final_state=output_final_state, cu_seqlens=documents, chunk_size=chunk_size,
        )  # fmt: skip
        return out.to(query.dtype), state

    return chunk


def _recurrent(reference: Function, rule: str) -> Function:
    chunk, op = _chunk(reference, rule), getattr(ops, f"step_{rule}")

    def recurrent(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        g: Tensor,
        beta: Tensor,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        cu_seqlens: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        tensors = (query, key, value, g, beta, initial_state)
        needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
        if query.device.type != "cpu" or query.shape[1] != 1 or cu_seqlens is not None or needs_grad:
            options = {} if query.device.type != "cpu" else {"cu_seqlens": cu_seqlens}
            function = reference if query.device.type != "cpu" else chunk
            return function(
                query, key, value, g, beta,
                initial_state=initial_state, output_final_state=output_final_state,
                use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, **options, **kwargs,
            )  # fmt: skip
        q, k, v, strength = _prepared(query, key, value, beta, use_qk_l2norm_in_kernel)
        shape = (value.shape[0], value.shape[2], key.shape[3], value.shape[3])
        # A copy: the caller's state is not ours to change.
        state = (
            v.new_zeros(shape)
            if initial_state is None
            else initial_state.float().clone(memory_format=torch.contiguous_format)
        )
        out = op(q, k, v, g.float(), strength, state=state)
        return out.to(query.dtype), state if output_final_state else None

    return recurrent


def _convolution(reference: Function) -> Function:
    def causal_conv1d_fn(
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str | None = None,
        seq_idx: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if hidden_states.device.type != "cpu":
            return reference(
                hidden_states, weight, bias, activation, seq_idx=seq_idx, cu_seq_lens_q=cu_seq_lens_q, **kwargs
            )
        x = hidden_states.transpose(1, 2).to(weight.dtype)
        own = "silu" if activation in ("silu", "swish") else "none"
        out = ops.short_convolution(x, weight, bias, cu_seqlens=_documents(cu_seq_lens_q, seq_idx), activation=own)
        if activation is not None and own == "none":
            out = ACT2FN[activation](out)
        return out.transpose(1, 2).to(hidden_states.dtype)

    return causal_conv1d_fn


def _gated_norm(reference: Function) -> Function:
    def forward(self: Any, hidden_states: Tensor, gate: Tensor) -> Tensor:
        if hidden_states.device.type != "cpu" or self.activation != "silu":
            return reference(self, hidden_states, gate)
        return ops.gated_rms_norm(hidden_states, gate, self.weight, self.variance_epsilon)

    return forward


def _gated_delta_rule(norm: str) -> dict[str, Callable[[Function], Function]]:
    """Function of a model's module, or method of its class of gated norms -> what builds its replacement from it."""
    return {
        "torch_chunk_gated_delta_rule": partial(_chunk, rule="gated_delta_rule"),
        "torch_recurrent_gated_delta_rule": partial(_recurrent, rule="gated_delta_rule"),
        "causal_conv1d_fn": _convolution,
        f"{norm}.forward": _gated_norm,
    }


KIMI_DELTA_ATTENTION: dict[str, Callable[[Function], Function]] = {
    "chunk_kimi_delta_attention": partial(_chunk, rule="kda"),
    "recurrent_kimi_delta_attention": partial(_recurrent, rule="kda"),
    "causal_conv1d_fn": _convolution,
}

MODELS = {
    "qwen3_next": _gated_delta_rule("Qwen3NextRMSNormGated"),
    "qwen3_5": _gated_delta_rule("Qwen3_5RMSNormGated"),
    "qwen3_5_moe": _gated_delta_rule("Qwen3_5MoeRMSNormGated"),
    "olmo_hybrid": _gated_delta_rule("OlmoHybridRMSNormGated"),
    "kimi_linear": KIMI_DELTA_ATTENTION,
}
"""Models with linear attention layers, as Transformers names their folders, and what is replaced in each."""


@dataclass
class Acceleration:
    """What `accelerate_transformers` replaced. `undo` puts the originals back; so does leaving a ``with`` block."""

    originals: dict[str, tuple[ModuleType | type, str, Function]] = field(default_factory=dict)
    layers: ExitStack = field(default_factory=ExitStack)

    @property
    def replaced(self) -> list[str]:
        """Full names of the functions that are replaced now."""
        return [*self.originals, "torch.nn.Linear.forward"] if self.originals else []

    def undo(self) -> None:
        for owner, name, original in self.originals.values():
            setattr(owner, name, original)
        self.originals.clear()
        self.layers.close()

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __str__(self) -> str:
        listed = "".join(f"\n  {name}" for name in self.replaced) or " nothing"
        return f"hybridattn computes on CPUs, instead of Transformers {transformers.__version__}:{listed}"


def accelerate_transformers(*models: str) -> Acceleration:
    """Runs the linear attention layers of Transformers' hybrid models, and every `torch.nn.Linear`, on this library's CPU
    kernels.

    Outputs, caches and gradients are the reference's up to rounding, and packed documents work, which the reference refuses
    (or, in Kimi Linear, mixes).
    Loaded models follow at once. What is not on a CPU goes on through the original functions.

    Args:
        models: names among `MODELS`; all of them by default.

    Returns:
        An `Acceleration` that says what was replaced and undoes it. What was already replaced is not replaced again.

    Raises:
        ValueError: an unknown model.
        RuntimeError: this release of Transformers was not tested.

    Example:
        >>> with ha.accelerate_transformers() as acceleration:
        ...     print(acceleration)
        ...     model.generate(ids)
    """
    if unknown := [model for model in models if model not in MODELS]:
        raise ValueError(f"accelerate_transformers: unknown model '{unknown[0]}', known are {', '.join(MODELS)}")
    if not transformers.__version__.startswith(tuple(f"{version}." for version in TESTED_VERSIONS)):
        raise RuntimeError(
            f"accelerate_transformers: Transformers {transformers.__version__} was not tested, only "
            f"{', '.join(TESTED_VERSIONS)}; install one of these, or go on without"
        )
    done = Acceleration()
    for model in models or MODELS:
        module = import_module(f"transformers.models.{model}.modeling_{model}")
        for name, build in MODELS[model].items():
            class_name, _, own_name = name.rpartition(".")
            owner = getattr(module, class_name) if class_name else module
            original = getattr(owner, own_name)
            if getattr(original, "accelerated", False):
                continue
            replacement = build(original)
            replacement.accelerated = True  # type: ignore[attr-defined]
            setattr(owner, own_name, replacement)
            done.originals[f"{module.__name__}.{name}"] = (owner, own_name, original)
    if done.originals:
        done.layers.enter_context(native_layers())
    return done
