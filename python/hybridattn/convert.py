"""A teacher into a hybrid: `convert` (all layers linear), `keep_softmax` (some back), `sliding_window` (no training)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from hybridattn import _C
from hybridattn.hf import HybridConfig, HybridForCausalLM, attention, check_teacher, decoder_layers
from hybridattn.nn import Mixer, mixer_type


@dataclass(frozen=True)
class PlanEntry:
    """Where one tensor of one layer went or came from: `action` is copied, cloned, initialised or dropped; or calibrated
    or uncalibrated, after `calibrate`."""

    layer: int
    action: str
    source: str
    target: str
    note: str


class TransferPlan(list[PlanEntry]):
    """What `convert` did with each attention tensor."""

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(entry) for entry in self]

    def replaced_by(self, later: Iterable[PlanEntry]) -> TransferPlan:
        """This plan with the entries of `later` in the place of those for the same tensor; new ones at their layer's end."""
        new = {(entry.layer, entry.source, entry.target): entry for entry in later}
        plan = [new.pop((entry.layer, entry.source, entry.target), entry) for entry in self]
        return TransferPlan(sorted([*plan, *new.values()], key=lambda entry: entry.layer))

    def __str__(self) -> str:
        lines = []
        for entry in self:
            arrow = f"{entry.source or '-'} -> {entry.target or '-'}"
            lines.append(f"layer {entry.layer:3d}  {entry.action:12s} {arrow:36s} {entry.note}".rstrip())
        return "\n".join(lines)


def _shape(teacher: Any) -> dict[str, Any]:
    """The mixer options that the teacher's attention decides."""
    config: Any = teacher.config
    module: Any = attention(teacher, 0)
    return {
        "hidden_size": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": module.head_dim,
        "qkv_bias": module.q_proj.bias is not None,
        "output_bias": module.o_proj.bias is not None,
        "qk_norm": hasattr(module, "q_norm"),
        "norm_eps": config.rms_norm_eps,
    }


def _layers(layers: Iterable[int], count: int, where: str) -> list[int]:
    chosen = sorted(set(layers))
    wrong = [layer for layer in chosen if not 0 <= layer < count]
    if wrong:
        raise ValueError(f"{where}: layers {wrong} do not exist; the teacher has layers 0 to {count - 1}")
    return chosen


def _build(teacher: Any, kinds: list[str], mixer: str, options: dict[str, Any]) -> HybridForCausalLM:
    """A hybrid with the teacher's weights wherever it has the teacher's modules."""
    config = HybridConfig(
        teacher_config=teacher.config.to_dict(), layer_types=kinds, mixer=mixer, mixer_options=options
    )
    config._attn_implementation = teacher.config._attn_implementation
    model = HybridForCausalLM(config).to(teacher.dtype)
    own = {name: tensor for name, tensor in teacher.state_dict().items() if not _replaced(name, kinds)}
    missing, unexpected = model.load_state_dict(own, strict=False)
    missing = [name for name in missing if not _replaced(name, kinds)]
    if missing or unexpected:
        raise ValueError(f"convert: teacher tensors do not fit: missing {missing}, left over {unexpected}")
    model.generation_config = teacher.generation_config
    return model.to(teacher.device).eval()


def _replaced(name: str, kinds: Sequence[str]) -> bool:
    parts = name.split(".")
    return parts[:2] == ["model", "layers"] and parts[3] == "self_attn" and kinds[int(parts[2])] == "linear_attention"


@torch.no_grad()
def convert(
    teacher: nn.Module,
    mixer: str = "gated_deltanet",
    options: Mapping[str, Any] | None = None,
    layers: Iterable[int] | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> HybridForCausalLM:
    """The student: the teacher with its attention replaced by mixers that carry the attention's weights.

    Args:
        teacher: Llama, Qwen2, Qwen3 or Mistral (Transformers).
        mixer: kind, a key of ``hybridattn.nn.MIXERS``.
        options: mixer options beyond the teacher's shape, e.g. ``{"short_convolution": 4}``.
        layers: which layers to replace; all when absent.
        seed: of the new parameters' initial values.
        verbose: print the transfer plan.

    Returns:
        The student, sharing no memory with the teacher; its `transfer_plan` says where each tensor went.

    Raises:
        ValueError: an unsupported teacher, an unknown mixer or option, or a tensor that does not fit.
    """
    config: Any = teacher.config
    check_teacher(config)
    count = len(decoder_layers(teacher))
    chosen = _layers(range(count) if layers is None else layers, count, "convert")
    full = mixer_type(mixer).options_type.from_dict(_shape(teacher) | dict(options or {})).to_dict()
    kinds = ["linear_attention" if layer in chosen else "full_attention" for layer in range(count)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = _build(teacher, kinds, mixer, full)
    plan = TransferPlan()
    for layer, module in student.mixers().items():
        plan += _transfer(layer, attention(teacher, layer), module)
    student.transfer_plan = plan
    if verbose:
        print(plan)
    return student


def _transfer(layer: int, source: nn.Module, mixer: Mixer) -> list[PlanEntry]:
    state = mixer.state_dict()
    options = mixer.options
    weights, entries = _C.transfer.transfer_attention(
        dict(source.state_dict()),
        num_heads=options.num_heads,
        num_kv_heads=options.num_kv_heads,
        head_dim=options.head_dim,
        mixer=dict(state),
    )
    for name, tensor in weights.items():
        state[name].copy_(tensor)
    return [PlanEntry(layer, **entry) for entry in entries]


@torch.no_grad()
def keep_softmax(student: HybridForCausalLM, teacher: nn.Module, layers: Iterable[int]) -> HybridForCausalLM:
    """A hybrid with the teacher's softmax attention in `layers` and the student's mixers elsewhere.

    Everything that is not a mixer is the teacher's, bit for bit; nothing is shared with either model.

    Raises:
        ValueError: a layer does not exist, or the student has no mixer for a layer that needs one.
    """
    kept = _layers(layers, len(student.layers), "keep_softmax")
    mixers = student.mixers()
    lacking = [layer for layer in range(len(student.layers)) if layer not in kept and layer not in mixers]
    if lacking:
        raise ValueError(f"keep_softmax: the student has no mixer in layers {lacking}; convert them too")
    kinds = ["full_attention" if layer in kept else "linear_attention" for layer in range(len(student.layers))]
    hybrid = _build(teacher, kinds, student.config.mixer, student.config.mixer_options)
    for layer, mixer in hybrid.mixers().items():
        mixer.load_state_dict(mixers[layer].state_dict())
    return hybrid


def sliding_window(teacher: nn.Module, keep: Iterable[int], window: int = 512, sinks: int = 4) -> HybridForCausalLM:
    """The baseline that needs no training: sliding-window attention with sinks outside the layers `keep`."""
    count = len(decoder_layers(teacher))
    kept = _layers(keep, count, "sliding_window")
    others = [layer for layer in range(count) if layer not in kept]
    options = {"window": window, "sinks": sinks}
    return convert(teacher, "sliding_window", options, layers=others, verbose=False)
