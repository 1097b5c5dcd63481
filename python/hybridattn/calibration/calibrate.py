"""calibrate: initial values of a student's gates from its teacher's attention, in closed form, before stage 1.

Shapes: B batch, T tokens, D hidden size, H heads.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hybridattn import hf
from hybridattn.calibration.fit import (
    no_decay,
    set_decay,
    set_output_gate,
    set_write_strength,
    straighten_similarity,
)
from hybridattn.calibration.statistics import attention_statistics, decay_of_distance
from hybridattn.convert import PlanEntry, TransferPlan
from hybridattn.data import Batch
from hybridattn.distill.loop import BatchSource
from hybridattn.nn.linear_attention import LinearAttention

SEQUENCES = 16
"""Training sequences that are enough for the statistics of a head."""


@torch.no_grad()
def calibrate(
    student: Any, teacher: nn.Module, data: BatchSource, sequences: int = SEQUENCES, seed: int = 0
) -> TransferPlan:
    """Sets the gates of a converted student's mixers, in place, from the teacher's attention on training sequences.

    Per layer and head: the decay from the mean attention distance, the write strength from the attention that each token
    receives, the output gate from the size of the head's output, queries and keys in the range where their activation keeps
    angles. What a kind of mixer lacks stays as it is, and the plan says so. A second call with the same data finds what
    the first one left. Layers are done one after another while the teacher runs, so memory holds one layer's
    activations, and attention scores of a few queries.

    The idea of starting from attention statistics is that of Taylor-Calibrate (arXiv 2606.16429); formulas and fits are
    this library's own (docs/convert.md).

    Args:
        student: of `convert`, in any dtype, before it was trained: what its gates have learned would be lost.
        teacher: the Transformers model it came from, on the same device.
        data: batches, `hybridattn.data.TokenData`; only its training split is read.
        sequences: how many of them.
        seed: of their choice.

    Returns:
        What was set. The same entries replace the student's `transfer_plan`'s, where it has one.

    Raises:
        ValueError: no sequences or no token that counts, a mixer without gates, a teacher without these layers, or
            statistics that are not finite, naming the layer.

    Example:
        >>> student = ha.convert(teacher, mixer="gated_deltanet", verbose=False)
        >>> print(ha.calibrate(student, teacher, data))
    """
    mixers = _mixers(student, teacher)
    batch = _sequences(data, sequences, seed).to(hf.head_weight(teacher).device)
    plan = TransferPlan()
    with ExitStack() as hooks:
        for layer, mixer in mixers.items():
            attention: Any = hf.attention(teacher, layer)
            read: dict[str, Any] = {}
            hook = partial(_at_output, layer, mixer, batch, plan, attention, read)
            hooks.callback(attention.register_forward_pre_hook(partial(_at_input, read), with_kwargs=True).remove)
            hooks.callback(attention.o_proj.register_forward_pre_hook(hook).remove)
        hf.hidden_states(teacher, batch)
    known = getattr(student, "transfer_plan", None)
    if known is not None:
        student.transfer_plan = known.replaced_by(plan)
    return plan


def _mixers(student: Any, teacher: nn.Module) -> dict[int, LinearAttention]:
    mixers = dict(sorted(student.mixers().items()))
    if not mixers:
        raise ValueError("calibrate: the student has no mixers (every layer keeps softmax attention)")
    layers = len(hf.decoder_layers(teacher))
    if max(mixers) >= layers:
        raise ValueError(f"calibrate: a mixer stands in layer {max(mixers)}, the teacher has {layers} layers")
    for layer, mixer in mixers.items():
        if not isinstance(mixer, LinearAttention):
            raise ValueError(
                f'calibrate: {mixer.kind} in layer {layer} has no gates; leave calibration out (init = "default")'
            )
    return mixers


def _sequences(data: BatchSource, count: int, seed: int) -> Batch:
    if count < 1:
        raise ValueError(f"calibrate: sequences is {count}, expected at least 1")
    batch = next(iter(data.train_batches(count, seed=seed)), None)
    if batch is None or batch.num_tokens == 0:
        raise ValueError("calibrate: the data has no training sequences; give a longer corpus")
    if batch.loss_mask is not None and not batch.loss_mask.any():
        raise ValueError(
            f"calibrate: no token of {count} training sequences counts in the loss (loss_mask); raise `sequences`"
        )
    if batch.input_ids.shape[1] < 2 or (batch.position_ids is not None and not batch.position_ids.any()):
        raise ValueError("calibrate: no training document has two tokens; give longer documents")
    return batch


def _at_input(read: dict[str, Any], attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of a teacher's attention module: keeps what it reads."""
    read["hidden_states"] = args[0] if args else kwargs["hidden_states"]
    read["rotary"] = kwargs["position_embeddings"]


def _at_output(
    layer: int,
    mixer: LinearAttention,
    batch: Batch,
    plan: TransferPlan,
    attention: nn.Module,
    read: dict[str, Any],
    _projection: nn.Module,
    args: tuple[Tensor],
) -> None:
    """Forward pre-hook of its o_proj, which reads the heads' outputs: calibrates the mixer of the layer."""
    hidden, rotary = read.pop("hidden_states"), read.pop("rotary")
    shape = batch.input_ids.shape
    positions = batch.position_ids
    if positions is None:
        positions = torch.arange(shape[1], device=hidden.device).expand(shape)
    counted = torch.ones_like(positions, dtype=torch.bool) if batch.loss_mask is None else batch.loss_mask.bool()
    found = attention_statistics(attention, hidden, rotary, positions, counted)
    received = found.received[counted]
    heads = args[0][counted].unflatten(-1, (mixer.options.num_heads, -1))  # [N, H, V]
    if not (found.distance.isfinite().all() and received.isfinite().all() and heads.isfinite().all()):
        raise ValueError(
            f"calibrate: the attention of the teacher's layer {layer} is not finite on these sequences; check the teacher's "
            "weights, and load it in float32 if it is in float16"
        )
    x = mixer.inputs(hidden.to(mixer.o_proj.weight.dtype), None, batch.cu_seqlens, None)
    notes: dict[str, str] = {}
    reason = no_decay(mixer)
    if not reason:
        target = decay_of_distance(found.distance, found.visible)
        times = -math.log(2) / target
        words = f"half-lives of {times.min():.3g} to {times.max():.3g} tokens"
        notes |= set_decay(mixer, lambda: mixer.gates(x)["g"][counted], target, words)
    notes |= set_write_strength(mixer, x, counted, received)
    notes |= set_output_gate(mixer, x, counted, heads.double().square().mean(2).sqrt().mean(0))
    plan += [PlanEntry(layer, "calibrated", "", name, note) for name, note in notes.items()]
    scaled = straighten_similarity(mixer, x, counted)
    plan += [PlanEntry(layer, "calibrated", name, name, note) for name, note in scaled.items()]
    if reason:
        plan.append(PlanEntry(layer, "uncalibrated", "", "", reason))
