"""Norms over the last dimension: RMSNorm, and RWKV's group norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in fp32 (Zhang & Sennrich, arXiv 1910.07467).

    Shapes: x [..., N], weight [N]; the result has x's shape and dtype.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        # Transformers' formula, to the bit: attention that is kept must not change.
        wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class HeadGroupNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) over each head, then a weight and a bias per channel, computed in fp32: RWKV's group
    norm with a group per head (arXiv 2404.05892).

    Shapes: x [..., H, V], weight and bias [H V]; the result has x's shape and dtype.
    """

    def __init__(self, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(heads * head_dim))
        self.bias = nn.Parameter(torch.zeros(heads * head_dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = F.layer_norm(wide, x.shape[-1:], eps=self.eps)
        return torch.addcmul(self.bias.to(wide).view(x.shape[-2:]), wide, self.weight.to(wide).view(x.shape[-2:])).to(x)
