"""Stage: every number of one training stage, with the fields, defaults and checks of the C++ struct."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hybridattn import _C

_DEFAULTS: dict[str, Any] = _C.distill.stage_defaults()


def _default(name: str) -> Any:
    return _DEFAULTS[name]


class Stage(BaseModel):
    """One training stage. `hybridattn.presets` has the published values; each field can be overridden there.

    Example:
        >>> Stage(tokens=1_000_000, seq_len=512, batch_size=8, lr=7e-6, mixer_lr=1e-4).total_steps
        245

    Raises:
        ValueError: a field that is unknown (with the nearest known one), of the wrong type or out of range.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    tokens: int
    """Budget; the stage takes ceil(tokens / (batch_size * seq_len)) optimiser steps."""
    seq_len: int
    """Tokens per sequence."""
    batch_size: int
    """Sequences per optimiser step."""
    lr: float
    """Peak learning rate of everything that is not a mixer."""
    mixer_lr: float | None = _default("mixer_lr")
    """Peak learning rate of the mixers; None = lr."""
    micro_batch_size: int = _default("micro_batch_size")
    """Sequences per forward pass; 0 = batch_size. Losses and gradients do not depend on it."""
    schedule: Literal["constant", "linear", "cosine", "quarter_cosine", "s_cos_s"] = _default("schedule")
    mixer_schedule: Literal["constant", "linear", "cosine", "quarter_cosine", "s_cos_s"] | None = _default(
        "mixer_schedule"
    )
    """The mixers' schedule; None = schedule."""
    final_lr_ratio: float = _default("final_lr_ratio")
    """The schedule's final multiplier."""
    mixer_final_lr_ratio: float | None = _default("mixer_final_lr_ratio")
    """The mixers'; None = final_lr_ratio."""
    anneal_start: float = _default("anneal_start")
    """s_cos_s: share of the steps before the descent."""
    anneal_end: float = _default("anneal_end")
    """s_cos_s: share of the steps at its end."""
    warmup_steps: int = _default("warmup_steps")
    warmup_start: float = _default("warmup_start")
    """Share of the rate at the first step of the warm-up."""
    betas: tuple[float, float] = Field(default=tuple(_default("betas")), strict=False)
    eps: float = _default("eps")
    weight_decay: float = _default("weight_decay")
    """Of matrices only; never of norms, biases, A_log and dt_bias."""
    grad_clip: float = _default("grad_clip")
    """Largest norm of the whole gradient; 0 = no clipping."""
    dtype: Literal["float32", "bfloat16"] = _default("dtype")
    """Of the computation; weights train in float32."""
    loss: str = _default("loss")
    """align: l2_norm, squared, cosine; match: forward, reverse, jsd; "auto" is the first of these."""
    temperature: float = _default("temperature")
    """Of the KL in match, with the factor temperature^2."""
    gradient_checkpointing: bool = _default("gradient_checkpointing")
    """Recompute each layer's activations in the backward pass."""
    untie_embeddings: bool = _default("untie_embeddings")
    """Train input and output embeddings apart where they are tied."""
    retie_embeddings: bool = _default("retie_embeddings")
    """After the stage, make both the mean of the two again."""
    seed: int = _default("seed")
    """Of the order of the data."""
    checkpoint_every: int = _default("checkpoint_every")
    """Steps between checkpoints; 0 = only at the end."""
    log_every: int = _default("log_every")
    """Steps between log lines."""

    def __init__(self, **fields: Any) -> None:
        _C.distill.check_stage(fields)
        super().__init__(**fields)

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    @property
    def total_steps(self) -> int:
        return -(-self.tokens // self.tokens_per_step)

    def lr_at(self, step: int, *, mixer: bool) -> float:
        """Learning rate of the mixers or of the rest at `step` (from 0)."""
        peak = self.mixer_lr if mixer and self.mixer_lr is not None else self.lr
        return peak * _C.distill.schedule_of(self.model_dump(), mixer).at(step, self.total_steps)

    def resolved_loss(self, *choices: str) -> str:
        """The loss's name among `choices`; "auto" is the first.

        Raises:
            ValueError: `loss` is another one.
        """
        if self.loss == "auto":
            return choices[0]
        if self.loss not in choices:
            raise ValueError(f"Stage: loss is '{self.loss}', expected one of {', '.join(choices)} in this stage")
        return self.loss
