"""Raw data read back: what was chosen, what distillation made of it, and the best subset, per teacher, seed and budget."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.selection.cell import LOSSES
from benchmarks.selection.truth import all_sets, best_of

TIE = 0.01
"""Recalls that differ by no more are one recall: about twice its standard error, so that KL decides where recall cannot."""


@dataclass(frozen=True)
class Outcome:
    """A hybrid after distillation.

    Attributes:
        right: share of right answers per question text.
        kl: nats per token per held-out sequence.
        recall: share of right answers of all.
    """

    layers: frozenset[int]
    right: list[float]
    kl: list[float]
    recall: float

    @property
    def divergence(self) -> float:
        return sum(self.kl) / len(self.kl)

    @classmethod
    def of(cls, layers: Iterable[int], event: dict[str, Any]) -> Outcome:
        shares = [right / asked for right, asked in zip(event["right"], event["asked"], strict=True)]
        return cls(frozenset(layers), shares, event["kl"], sum(event["right"]) / sum(event["asked"]))


def best_outcome(outcomes: Iterable[Outcome]) -> Outcome:
    """The lowest KL among the outcomes whose recall is within `TIE` of the highest one."""
    found = list(outcomes)
    highest = max(outcome.recall for outcome in found)
    return min((o for o in found if o.recall >= highest - TIE), key=lambda o: (o.divergence, sorted(o.layers)))


@dataclass(frozen=True)
class Chosen:
    """What one contender chose.

    Attributes:
        scores: per layer, higher is more important; None of a contender that scores no layers.
    """

    name: str
    outcome: Outcome
    scores: list[float] | None
    tokens: float
    flops: float
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """All contenders of one teacher, seed and budget, and the best subset that is known there.

    Attributes:
        means: loss -> untrained mean loss of every set, in the order of `all_sets`.
        whole: whether all sets that the ground truth asks for were distilled.
    """

    teacher: str
    seed: int
    num_layers: int
    keep: int
    means: dict[str, list[float]]
    outcomes: dict[frozenset[int], Outcome]
    chosen: dict[str, Chosen]
    whole: bool

    @cached_property
    def best(self) -> Outcome:
        return best_outcome(self.outcomes.values())

    def layer_values(self, loss: str) -> list[float]:
        """Per layer, by how much the untrained loss is lower in sets with it than in sets without it, on average.

        With one layer kept this orders the layers as their single losses do.
        """
        values = []
        for layer in range(self.num_layers):
            inside: list[float] = []
            outside: list[float] = []
            for kept, mean in zip(all_sets(self.num_layers, self.keep), self.means[loss], strict=True):
                (inside if layer in kept else outside).append(mean)
            values.append(sum(outside) / len(outside) - sum(inside) / len(inside))
        return values


@dataclass(frozen=True)
class CellRecord:
    """One file of raw data."""

    identity: dict[str, Any]
    events: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> CellRecord:
        """Reads a file that may still be written to: a last line that is not whole is not there yet.

        Raises:
            ValueError: naming file and line, when a line is damaged.
        """
        text = path.read_text(encoding="utf-8")
        lines = text[: text.rfind("\n") + 1].splitlines()
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path.name}, line {number} is no JSON ({error}); take it out") from error
        return cls(rows[0]["identity"], {row["key"]: row for row in rows[1:]}) if rows else cls({}, {})

    @property
    def sessions(self) -> list[dict[str, Any]]:
        return [event for key, event in self.events.items() if key.startswith("session ")]

    def teacher_recall(self) -> float:
        event = self.events["teacher"]
        return sum(event["right"]) / sum(event["asked"])

    def comparisons(self) -> Iterator[Comparison]:
        """Every budget whose sets were all scored, smallest first; contenders whose choice was distilled."""
        outcomes = {}
        for key, event in self.events.items():
            if key.startswith("distil "):
                listed = key.removeprefix("distil ")
                layers = frozenset(int(layer) for layer in listed.split(",") if listed != "none")
                outcomes[layers] = Outcome.of(layers, event)
        for keep in range(self.identity.get("num_layers", 0) + 1):
            scored = {loss: self.events.get(f"exhaustive {keep} {loss}") for loss in LOSSES}
            own = {layers: outcome for layers, outcome in outcomes.items() if len(layers) == keep}
            if own and all(scored.values()):
                means = {loss: event["means"] for loss, event in scored.items() if event}
                yield self._comparison(keep, means, own)

    def _comparison(
        self, keep: int, means: dict[str, list[float]], outcomes: dict[frozenset[int], Outcome]
    ) -> Comparison:
        identity, chosen = self.identity, {}
        for key, event in self.events.items():
            layers = event["layers"].get(str(keep)) if key.startswith("choose ") else None
            if layers is not None and (outcome := outcomes.get(frozenset(layers))) is not None:
                name = key.removeprefix("choose ").removesuffix(f" {keep}")
                cost = event["tokens"], event["flops"], event["seconds"]
                chosen[name] = Chosen(name, outcome, event["scores"], *cost)
        protocol = identity["protocol"]
        wanted = best_of(
            identity["num_layers"], keep, list(means.values()), protocol["best_share"], protocol["best_least"]
        )
        whole = all(frozenset(layers) in outcomes for layers in wanted)
        return Comparison(
            identity["teacher"], identity["seed"], identity["num_layers"], keep, means, outcomes, chosen, whole
        )


def read_all(folder: Path) -> list[CellRecord]:
    """All files of raw data in `folder`, by name.

    Raises:
        FileNotFoundError: there is none.
    """
    paths = sorted(folder.glob("*-seed-*.jsonl"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no raw data; run `python -m benchmarks.selection.run` first")
    return [CellRecord.read(path) for path in paths]
