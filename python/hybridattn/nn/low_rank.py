"""LowRank: a projection through a narrow middle."""

from __future__ import annotations

from torch import Tensor, nn


class ZeroLinear(nn.Linear):
    """A linear layer that gives 0 at first, whatever it reads."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class LowRank(nn.Module):
    """up(activation(down x)): a data-dependent gate per channel at the cost of a narrow projection.

    `activation` is "none", "tanh" or "sigmoid"; with `from_zero` the whole gives 0 at first.
    """

    def __init__(
        self,
        inputs: int,
        rank: int,
        outputs: int,
        *,
        bias: bool = False,
        activation: str = "none",
        from_zero: bool = False,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = (ZeroLinear if from_zero else nn.Linear)(rank, outputs, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return self.up(x if self.activation == "none" else getattr(x, self.activation)())
