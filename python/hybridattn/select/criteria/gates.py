"""Learned gates: frozen attention and frozen aligned mixer of every layer mixed by one gate each, trained together.

Shapes: B batch, T tokens, D hidden size, L layers.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hybridattn import hf, ops
from hybridattn.data import Batch
from hybridattn.distill.fingerprint import matrix_weights
from hybridattn.distill.match import TokenWeights
from hybridattn.distill.objective import counted
from hybridattn.select.criteria.criterion import Found, RegisteredCriterion, Scoring
from hybridattn.select.evaluator import CandidateEvaluator, Line, silent
from hybridattn.select.layer_scores import rank_samples

_ANNEALED = 0.7
"""Share of the steps over which the budget goes from half of the layers, where gates start, to K."""
_PROPORTIONAL, _INTEGRAL = 0.5, 0.05
"""Change of the penalty's logarithm per gate too many, now and summed over the steps."""


class LearnedGates(RegisteredCriterion):
    """Layers whose gates stay open. Every other criterion judges layers one at a time; gates are trained together, so
    two layers that work only together open together.

    Attributes:
        steps: Adam steps of the gates.
        lr: of Adam, on the gates' logits.
        penalty: nats per token that one open gate costs; with a budget, at first: it is then adjusted at every step, so
            that the gates' sum follows a budget which shrinks from half of the layers to K.
        batch_size: training sequences per step.
        seeds: orders of the training data; the score is the mean over them.
        seed: the first of them.
    """

    name: ClassVar[str] = "learned_gates"
    title: ClassVar[str] = "Learned gates"
    label: ClassVar[str] = "gate"
    important: ClassVar[Literal["high", "low"]] = "high"
    source: ClassVar[str] = "FlashMorph, arXiv 2606.30562, section 3; the same idea in DASH"
    deviations: ClassVar[str] = (
        "the loss is KL(teacher || mixed model) on the training data, not a distance of hidden states on synthetic "
        "passkeys; gates are sigmoids that start at one half; the penalty is annealed to the budget"
    )
    explanation: ClassVar[str] = (
        "In every layer a gate mixes the teacher's attention (1) and the aligned mixer (0), both frozen. All gates are "
        "trained together to keep the teacher's predictions while an open gate has its price. Important layers stay open."
    )

    steps: int = Field(60, ge=4)
    lr: float = Field(0.15, gt=0)
    penalty: float = Field(0.2, ge=0)
    batch_size: int = Field(8, ge=1)
    seeds: int = Field(1, ge=1)
    seed: int = 0

    def measure(self, scoring: Scoring) -> Found:
        evaluator = scoring.models(self.name)
        if scoring.data is None:
            raise ValueError("score_layers: criterion 'learned_gates' trains gates; give `data`")
        runs = []
        for seed in range(self.seed, self.seed + self.seeds):
            options = self.model_copy(update={"seed": seed})
            runs.append(learned_gates(evaluator, scoring.data, options, keep=scoring.keep, progress=scoring.progress))
        # Steps of one run are no independent sample: their spread is shown, and no verdict is drawn from it.
        values = [run.final for run in runs] if self.seeds > 1 else runs[0].last
        samples = [list(column) for column in zip(*values, strict=True)]
        keep = scoring.keep if self.seeds > 1 else None
        rows = rank_samples(samples, self.important, keep, scoring.options.confidence)
        return Found([row | {"steps": self.steps} for row in rows], dict(enumerate(samples)))


@dataclass(frozen=True)
class GateTraining:
    """One training of the gates.

    Attributes:
        gates: [steps][L], each in (0, 1), after each step.
        divergences: [steps], KL in nats per token of the mixed model.
    """

    gates: list[list[float]]
    divergences: list[float]

    @property
    def last(self) -> list[list[float]]:
        """The gates after each step of the last quarter."""
        return self.gates[-max(2, len(self.gates) // 4) :]

    @property
    def final(self) -> list[float]:
        """[L]: means over the last quarter of the steps."""
        return torch.tensor(self.last, dtype=torch.float64).mean(0).tolist()


def learned_gates(
    evaluator: CandidateEvaluator,
    data: Any,
    options: LearnedGates | None = None,
    *,
    keep: int | None = None,
    token_weights: TokenWeights | None = None,
    progress: Line = silent,
) -> GateTraining:
    """Trains one gate per layer on the training documents of `data`; nothing else changes.

    Args:
        evaluator: the models, and the journal in which every step is kept: a run that was killed goes on from there.
        data: `TokenData`; its held-out documents are not read.
        keep: the budget to which the penalty is annealed; without one the penalty stays as it is.
        token_weights: batch -> weight [B, T] of each token in the KL, as in `match`.

    Raises:
        ValueError: `keep` is not in 0..L, or the KL is not finite (naming the step).
    """
    options = options or LearnedGates()
    layers = evaluator.num_layers
    if keep is not None and not 0 <= keep <= layers:
        raise ValueError(f"learned_gates: keep is {keep}, expected 0 to {layers}")
    trainer = _GateTrainer(evaluator, options, keep, token_weights)
    fingerprint = getattr(token_weights, "fingerprint", getattr(token_weights, "__qualname__", None))
    identity = [options.model_dump(exclude={"seeds"}), keep, getattr(data, "fingerprint", None), fingerprint]
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=6).hexdigest()
    gates, divergences = [], []
    batches = _BatchesByStep(data, options)
    for step in range(options.steps):
        event = evaluator.recorded(f"gates {digest} step {step}", partial(trainer.step, step, batches))
        trainer.restore(event)
        gates.append(event["gates"])
        divergences.append(event["divergence"])
        progress(
            f"gates  step {step + 1}/{options.steps}  KL {event['divergence']:.4f}  open {sum(event['gates']):.2f}"
        )
    return GateTraining(gates, divergences)


class _BatchesByStep:
    """Training batches of the steps that are done here; others may be in the journal, or done by another process."""

    def __init__(self, data: Any, options: LearnedGates) -> None:
        self._data, self._options, self._next = data, options, -1

    def at(self, step: int) -> Batch:
        if step != self._next:
            self._batches = self._data.train_batches(self._options.batch_size, start_step=step, seed=self._options.seed)
        self._next = step + 1
        return next(self._batches)


class _GateTrainer:
    """The gates' logits with Adam's state, small enough to stand in every line of the journal."""

    def __init__(
        self, evaluator: CandidateEvaluator, options: LearnedGates, keep: int | None, weights: TokenWeights | None
    ) -> None:
        self.evaluator, self.options, self.keep, self.token_weights = evaluator, options, keep, weights
        device = hf.head_weight(evaluator.teacher).device
        self.logits = nn.Parameter(torch.zeros(evaluator.num_layers, dtype=torch.float64, device=device))
        self.adam = torch.optim.Adam([self.logits], lr=options.lr)
        self.penalty, self.excess = options.penalty, 0.0

    def step(self, number: int, batches: _BatchesByStep) -> dict[str, Any]:
        """One Adam step; the journal's event of it."""
        evaluator, precision = self.evaluator, self.evaluator.precision
        batch = batches.at(number).to(self.logits.device)
        weights = counted(batch) if self.token_weights is None else self.token_weights(batch) * counted(batch)
        head = hf.head_weight(evaluator.teacher).detach()
        with precision.forward(), torch.no_grad():
            target = hf.hidden_states(evaluator.teacher, batch)
        gates = self.logits.sigmoid()
        with frozen(evaluator.teacher, evaluator.student), mixed_attention(evaluator, gates):
            with precision.forward():
                hidden = hf.hidden_states(evaluator.teacher, batch)
            with precision.backward():
                divergence = ops.linear_kl_divergence(
                    precision.narrowed(hidden), precision.narrowed(head), precision.narrowed(target),
                    precision.narrowed(head), weights=weights,
                )  # fmt: skip
                self.adam.zero_grad()
                (divergence + self.penalty * gates.sum()).backward()
        assert self.logits.grad is not None
        if not (math.isfinite(divergence.item()) and bool(self.logits.grad.isfinite().all())):
            raise ValueError(f"learned_gates: the KL is {divergence.item()} at step {number}; lower lr")
        self.adam.step()
        self._anneal(number)
        state = self.adam.state[self.logits]
        body = matrix_weights(evaluator.teacher, head=False)
        mixers = sum(matrix_weights(mixer) for mixer in evaluator.mixers.values())
        # Teacher forward, mixed model forward and backward; weights get no gradient, so backward costs one forward.
        flops = batch.num_tokens * (2.0 * (body + 2 * head.numel()) + 4.0 * (body + mixers + head.numel()))
        return {
            "gates": self.logits.detach().sigmoid().tolist(),
            "logits": self.logits.tolist(),
            "adam": [state["exp_avg"].tolist(), state["exp_avg_sq"].tolist(), number + 1],
            "penalty": [self.penalty, self.excess],
            "divergence": divergence.item(),
            "tokens": batch.num_tokens,
            "flops": flops,
        }

    def _anneal(self, number: int) -> None:
        """An open gate gets dearer while more is open than the budget of this step, cheaper otherwise.

        Proportional to the excess, and to its sum over the steps: the sum alone (dual ascent) swings around the budget.
        """
        if self.keep is None:
            return
        layers, over = self.evaluator.num_layers, min(1.0, (number + 1) / (_ANNEALED * self.options.steps))
        excess = float(self.logits.detach().sigmoid().sum()) - layers / 2 - (self.keep - layers / 2) * over
        excess = max(-2.0, min(2.0, excess))
        self.excess += excess
        self.penalty = self.options.penalty * math.exp(_PROPORTIONAL * excess + _INTEGRAL * self.excess)

    def restore(self, event: dict[str, Any]) -> None:
        """Stands where `event` was recorded, to the same bits."""
        first, second, steps = event["adam"]
        with torch.no_grad():
            self.logits.copy_(torch.tensor(event["logits"], dtype=torch.float64))
        like = self.logits.detach()
        self.adam.state[self.logits] = {
            "step": torch.tensor(float(steps)),
            "exp_avg": torch.tensor(first, dtype=like.dtype, device=like.device),
            "exp_avg_sq": torch.tensor(second, dtype=like.dtype, device=like.device),
        }
        self.penalty, self.excess = event["penalty"]


class MixedAttention(nn.Module):
    """gate · attention + (1 - gate) · mixer, in the attention's place."""

    def __init__(self, attention: nn.Module, mixer: nn.Module, gate: Tensor) -> None:
        super().__init__()
        self.attention, self.mixer, self.gate = attention, mixer, gate

    def forward(self, hidden_states: Tensor, **arguments: Any) -> tuple[Tensor, None]:
        soft = self.attention(hidden_states=hidden_states, **arguments)[0]
        linear = self.mixer(hidden_states=hidden_states, **arguments)[0]
        gate = self.gate.to(soft.dtype)
        return gate * soft + (1 - gate) * linear, None


@contextmanager
def mixed_attention(evaluator: CandidateEvaluator, gates: Tensor) -> Iterator[None]:
    """The teacher's decoder with `gates` [L] between its attention and the student's mixers."""
    with ExitStack() as scope:
        for index, layer in enumerate(hf.decoder_layers(evaluator.teacher)):
            attention = hf.attention(evaluator.teacher, index)
            scope.callback(setattr, layer, "self_attn", attention)
            layer.self_attn = MixedAttention(attention, evaluator.mixers[index], gates[index])
        yield


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Parameters of `models` that need no gradient, and afterwards need what they needed."""
    parameters = [p for p in itertools.chain(*(model.parameters() for model in models)) if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
