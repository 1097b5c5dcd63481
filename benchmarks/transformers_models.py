"""Whole models of Transformers with `accelerate_transformers()`, against themselves without.

Letters: T tokens, D hidden size, L layers, H heads of the linear layers (of 128 dimensions).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import hybridattn as ha
from benchmarks.registry import Contenders, Goal, Work, benchmark

SHAPES: dict[str, Any] = {
    "quick": [{"T": 128, "D": 256, "L": 4, "H": 4}],
    "tiny": {"T": 70, "D": 32, "L": 4, "H": 2},
    "threads": (2,),
    "work": lambda T, **_: Work(tokens=T),
    "rounds": 5,
}
PREFILL = {"T": 2048, "D": 1024, "L": 8, "H": 16}
TRAINING = {"T": 1024, "D": 1024, "L": 8, "H": 16}


def qwen3_5(D: int, L: int, H: int, dtype: torch.dtype) -> nn.Module:
    """A random Qwen3.5: three linear layers, then a softmax layer, and so on."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    torch.manual_seed(0)
    config = Qwen3_5TextConfig(
        vocab_size=4096,
        hidden_size=D,
        intermediate_size=3 * D,
        num_hidden_layers=L,
        num_attention_heads=H // 2,
        num_key_value_heads=H // 2,
        head_dim=128,
        linear_num_key_heads=H,
        linear_num_value_heads=H,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        pad_token_id=0,
    )
    return Qwen3_5ForCausalLM(config).to(dtype).eval()


def both(run: Callable[[], object]) -> Contenders:
    def accelerated() -> object:
        with ha.accelerate_transformers("qwen3_5"):
            return run()

    return {"hybridattn": accelerated, "transformers": run}


def random_ids(length: int) -> Tensor:
    return torch.randint(1, 4096, (1, length), generator=torch.Generator().manual_seed(0))


@benchmark("qwen3_5/prefill", cases=[PREFILL], goals=[Goal("transformers", 1.5)], **SHAPES)
def prefill(T: int, D: int, L: int, H: int, dtype: torch.dtype) -> Contenders:
    """A random Qwen3.5 reads a prompt."""
    model, ids = qwen3_5(D, L, H, dtype), random_ids(T)
    return both(torch.no_grad()(lambda: model(ids, logits_to_keep=1).logits))


@benchmark("qwen3_5/decode", cases=[PREFILL | {"T": 16}], goals=[Goal("transformers", 2.0)], **SHAPES)
def decode(T: int, D: int, L: int, H: int, dtype: torch.dtype) -> Contenders:
    """A random Qwen3.5 generates T tokens after a prompt of 8."""
    model, ids = qwen3_5(D, L, H, dtype), random_ids(8)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": T, "min_new_tokens": T}
    return both(torch.no_grad()(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **options)))


@benchmark("qwen3_5/training_step", cases=[TRAINING], goals=[Goal("transformers", 2.0)], **SHAPES)
def training_step(T: int, D: int, L: int, H: int, dtype: torch.dtype) -> Contenders:
    """Forward and backward of a random Qwen3.5 on one sequence."""
    model, ids = qwen3_5(D, L, H, dtype).train(), random_ids(T)
    parameters = list(model.parameters())

    def step() -> object:
        loss = model(ids, labels=ids).loss
        gradients = torch.autograd.grad(loss, parameters)
        # Some gates' gradients are rounding alone in a random model; the embedding's passes through every layer.
        return loss.detach(), gradients[0]

    return both(step)


def linear_layers(D: int, L: int, H: int, dtype: torch.dtype) -> list[nn.Module]:
    """The linear attention layers of the model, with their projections, convolution and gated norm."""
    model: Any = qwen3_5(D, L, H, dtype)
    return [layer.linear_attn for layer in model.model.layers if hasattr(layer, "linear_attn")]


def hidden_states(T: int, D: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(1, T, D, generator=torch.Generator().manual_seed(0)).to(dtype)


@benchmark("qwen3_5/linear_layers", cases=[PREFILL], goals=[Goal("transformers", 4.0)], **SHAPES)
def layers(T: int, D: int, L: int, H: int, dtype: torch.dtype) -> Contenders:
    """The linear layers' own share of a prompt."""
    modules, x = linear_layers(D, L, H, dtype), hidden_states(T, D, dtype)
    return both(torch.no_grad()(lambda: [module(x) for module in modules]))


@benchmark("qwen3_5/linear_layers_training", cases=[TRAINING], goals=[Goal("transformers", 4.0)], **SHAPES)
def layers_training(T: int, D: int, L: int, H: int, dtype: torch.dtype) -> Contenders:
    """The linear layers' own share of a training step: forward and backward."""
    modules, x = linear_layers(D, L, H, dtype), hidden_states(T, D, dtype).requires_grad_()
    wanted = [x, *(parameter for module in modules for parameter in module.parameters())]

    def step() -> object:
        outputs = [module(x) for module in modules]
        gradients = torch.autograd.grad(outputs, wanted, [torch.ones_like(out) for out in outputs])
        return outputs[0].detach(), gradients[0]

    return both(step)
