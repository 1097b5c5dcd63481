"""What a model is, in a few words and numbers: to tell two runs apart, and to count operations."""

from __future__ import annotations

import zlib
from typing import Any

from torch import nn

_SAMPLES = 4096


def fingerprint(model: nn.Module) -> str:
    """Names a model by its tensors' names, shapes, dtypes and a sample of their values (the first and evenly spaced
    ones): cheap for any size, and different for any two models that were trained differently."""
    checksum = 0
    for name, parameter in model.named_parameters():
        checksum = zlib.crc32(f"{name} {list(parameter.shape)} {parameter.dtype}".encode(), checksum)
        values = parameter.detach().reshape(-1)
        sample = values[:: max(1, values.numel() // _SAMPLES)].double().cpu()
        checksum = zlib.crc32(sample.numpy().tobytes(), checksum)
    return f"{type(model).__name__} {checksum:08x}"


def describe_mixers(student: Any) -> dict[str, Any]:
    """Layer -> kind and options of its mixer."""
    described = {}
    for layer, mixer in sorted(student.mixers().items()):
        options = getattr(mixer, "options", None)
        described[str(layer)] = {
            "kind": getattr(mixer, "kind", type(mixer).__name__),
            "options": options.to_dict() if options is not None else {},
        }
    return described


def matrix_weights(module: Any, *, head: bool = True) -> int:
    """Weights that each token is multiplied with: matrices, without the embedding table's look-up and, without `head`,
    without the output head."""
    total = sum(parameter.numel() for parameter in module.parameters() if parameter.dim() >= 2)
    embedding = module.get_input_embeddings() if hasattr(module, "get_input_embeddings") else None
    output = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    if embedding is not None:
        total -= embedding.weight.numel()
    if output is not None:
        tied = embedding is not None and output.weight is embedding.weight
        total += output.weight.numel() * (int(head) - (0 if tied else 1))
    return total
