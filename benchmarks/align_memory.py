"""Peak memory of stage 1 on a model shaped as SmolLM2-135M, against what arithmetic says it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

import hybridattn as ha
from benchmarks.registry import Contenders, Goal, benchmark
from hybridattn import hf, ops
from hybridattn.data import Batch
from hybridattn.distill import AlignObjective, Trainer

SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152,
}  # fmt: skip
TINY = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 64,
}  # fmt: skip
MODELS = {"smollm2-135m": SMOLLM2, "tiny": TINY}


class OneBatch:
    """A data source that gives the same random sequences again and again."""

    def __init__(self, sequences: int, tokens: int, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batch = Batch(torch.randint(0, vocabulary, (sequences, tokens), generator=generator))

    def train_batches(self, batch_size: int, start_step: int = 0, seed: int = 0) -> Iterator[Batch]:
        return repeat(self.batch)


class AlignAtOnce(AlignObjective):
    """Stage 1 as one writes it first: all layers' losses are added up, then back-propagated."""

    @torch.no_grad()
    def backward(self, batch: Batch, weights: Tensor, total: float, precision: Any) -> Tensor:
        losses: list[Tensor] = []

        def at_layer(mixer: nn.Module) -> Callable[..., None]:
            @torch.enable_grad()
            def hook(_: nn.Module, args: Any, kwargs: dict[str, Any], output: tuple[Tensor, ...]) -> None:
                prediction, _ = mixer(args[0] if args else kwargs["hidden_states"], kwargs["position_embeddings"])
                losses.append(ops.alignment_loss(prediction, output[0], mask=weights.bool(), reduction="sum") / total)

            return hook

        with ExitStack() as hooks:
            for layer, mixer in self.by_layer.items():
                attention = hf.attention(self.teacher, layer)
                hooks.callback(attention.register_forward_hook(at_layer(mixer), with_kwargs=True).remove)
            hf.hidden_states(self.teacher, batch)
        with torch.enable_grad():
            torch.stack(losses).mean().backward()
        return torch.stack(losses).detach()


def models(model: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """A random teacher and its all-linear student."""
    torch.manual_seed(0)
    teacher: Any = LlamaForCausalLM(LlamaConfig(**MODELS[model], tie_word_embeddings=True))
    teacher = teacher.to(dtype).eval().requires_grad_(False)
    return teacher, ha.convert(teacher, verbose=False)


def bound(model: str, B: int, T: int, dtype: torch.dtype) -> dict[str, float]:
    """MiB by part: the models, the mixers' optimiser, and what one mixer's loss saves for its backward pass."""
    teacher, student = models(model, dtype)
    mixer = next(iter(student.mixers().values()))
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    hidden = torch.randn(B, T, teacher.config.hidden_size, dtype=dtype)
    positions = torch.arange(T).expand(B, T)
    own = {parameter.untyped_storage().data_ptr() for parameter in mixer.parameters()}
    with saved_tensors_hooks(note, lambda tensor: tensor):
        prediction, _ = mixer(hidden, position_embeddings=teacher.model.rotary_emb(hidden, positions))
        _loss = ops.alignment_loss(prediction, hidden)
    activations = sum(size for storage, size in saved.items() if storage not in own)

    def size(*modules: nn.Module) -> int:
        return sum(parameter.nbytes for module in modules for parameter in module.parameters())

    mixers = size(*student.mixers().values())
    parts = {
        "teacher": size(teacher), "student's copy of the rest": size(student) - mixers, "mixers": mixers,
        "their gradients": mixers, "Adam's moments": 2 * mixers, "one layer's activations": activations,
    }  # fmt: skip
    return {name: round(value / 2**20, 4) for name, value in parts.items()}


@benchmark(
    "align/step",
    cases=[{"model": "smollm2-135m", "B": 1, "T": 512}],
    tiny={"model": "tiny", "B": 1, "T": 16},
    quick=[{"model": "tiny", "B": 1, "T": 64}],
    threads=(2,),
    goals=[Goal("one backward pass", 1.0, "memory")],
    memory_bound=bound,
    rounds=3,
)
def align_step(model: str, B: int, T: int, dtype: torch.dtype) -> Contenders:
    """Two optimiser steps of stage 1 (the second has optimiser state), layer by layer or with one backward pass."""
    teacher, student = models(model, dtype)
    data = OneBatch(B, T, teacher.config.vocab_size)
    # With a rate of 0 all the work is done and the weights stay: every call measures the same.
    stage = ha.presets.align("paper", tokens=2 * B * T, seq_len=T, batch_size=B, lr=0.0, mixer_lr=0.0)

    def run(objective: type[AlignObjective]) -> Callable[[], object]:
        def steps() -> list[float]:
            with Trainer(objective(student, teacher, stage), stage, data) as trainer:
                return trainer.run(0, 2)

        return steps

    return {"hybridattn": run(AlignObjective), "one backward pass": run(AlignAtOnce)}
