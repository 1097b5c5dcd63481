"""GA-S1 and GR-S1: the alignment loss of stage 1 instead of the KL of stage 2.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from hybridattn import ops
from hybridattn.data import Batch
from hybridattn.distill.fingerprint import matrix_weights
from hybridattn.distill.objective import counted
from hybridattn.select.criteria.criterion import Found, RegisteredCriterion, Scoring
from hybridattn.select.criteria.divergence import addition_sets, removal_sets
from hybridattn.select.criteria.single_layer import Replacement, single_layer_distances
from hybridattn.select.criteria.sound_layers import finite_or_none, none_as_nan
from hybridattn.select.evaluator import CandidateEvaluator, Line
from hybridattn.select.layer_sets import LayerSetPass
from hybridattn.select.measurement import set_name

Inputs = Literal["own", "teacher"]
"""``own``: the hybrid's hidden states reach each layer, so that a mixer's error counts in every layer above it;
``teacher``: each layer gets the teacher's, as in the training of stage 1."""


class AdditionAlignment(RegisteredCriterion):
    """The hybrid with softmax in one layer alone, scored by the distance of its attention outputs from the teacher's.

    Attributes:
        inputs: what reaches each layer (`Inputs`).
    """

    name: ClassVar[str] = "ga_s1"
    title: ClassVar[str] = "Addition, stage 1 (GA-S1)"
    label: ClassVar[str] = "held-out alignment loss"
    important: ClassVar[Literal["high", "low"]] = "low"
    source: ClassVar[str] = "arXiv 2512.20569, GA-S1; the loss: RADLADS, arXiv 2505.03005, step 1"
    deviations: ClassVar[str] = (
        "held out, paired, with intervals; each hybrid runs on its own hidden states, because on the teacher's, as in the "
        "training of stage 1, GA-S1 and GR-S1 both rank by each mixer's own loss (`inputs = 'teacher'`)"
    )
    explanation: ClassVar[str] = (
        "Softmax is restored in one layer of the all-linear student alone (GA-S1): important layers bring the attention "
        "outputs closest to the teacher's."
    )

    inputs: Inputs = "own"

    def measure(self, scoring: Scoring) -> Found:
        evaluator = scoring.models(self.name)
        sets = addition_sets(evaluator.num_layers)
        return self.ranked(alignment_losses(evaluator, sets, self.inputs, scoring.progress), scoring)


class RemovalAlignment(RegisteredCriterion):
    """The teacher with a mixer in one layer alone, scored by the distance of its attention outputs from the teacher's.

    Attributes:
        inputs: what reaches each layer (`Inputs`).
    """

    name: ClassVar[str] = "gr_s1"
    title: ClassVar[str] = "Removal, stage 1 (GR-S1)"
    label: ClassVar[str] = AdditionAlignment.label
    important: ClassVar[Literal["high", "low"]] = "high"
    source: ClassVar[str] = "arXiv 2512.20569, GR-S1; the loss: RADLADS, arXiv 2505.03005, step 1"
    deviations: ClassVar[str] = AdditionAlignment.deviations
    explanation: ClassVar[str] = (
        "Each layer of the teacher is made linear alone (GR-S1): important layers move the attention outputs farthest "
        "from the teacher's."
    )

    inputs: Inputs = "own"

    def measure(self, scoring: Scoring) -> Found:
        evaluator = scoring.models(self.name)
        sets = removal_sets(evaluator.num_layers)
        return self.ranked(alignment_losses(evaluator, sets, self.inputs, scoring.progress), scoring)


def alignment_losses(
    evaluator: CandidateEvaluator, sets: list[list[int]], inputs: Inputs, progress: Line
) -> list[list[float]]:
    """[sets][sequences]: distance of the attention outputs from the teacher's, a mean over tokens and layers.

    The distance is stage 1's, the L2 norm times D^-1/2. Layers that keep softmax count as well: on a hybrid's own hidden
    states their outputs differ from the teacher's, too.
    """
    if inputs == "teacher":
        mixers = single_layer_distances(evaluator, "alignment of mixers", _mixer_distance, progress)
        linear = [[layer for layer in range(evaluator.num_layers) if layer not in kept] for kept in sets]
        columns = range(evaluator.num_sequences)
        return [[sum(mixers[layer][i] for layer in row) / evaluator.num_layers for i in columns] for row in linear]
    rows: list[list[float]] = [[] for _ in sets]
    names = ";".join(map(set_name, sets))
    for number, batch in enumerate(evaluator.held_out):

        def measure(batch: Batch = batch) -> dict[str, Any]:
            return _own_inputs(evaluator, batch, sets)

        progress(f"alignment  batch {number + 1}/{len(evaluator.held_out)}  {len(sets)} hybrids")
        event = evaluator.recorded(f"alignment batch {number} keep {names}", measure)
        for row, values in zip(rows, event["values"], strict=True):
            row += none_as_nan(values)
    return rows


def _mixer_distance(replacement: Replacement) -> Tensor:
    return ops.alignment_loss(replacement.mixer, replacement.attention, reduction="none")


def _own_inputs(evaluator: CandidateEvaluator, batch: Batch, sets: list[list[int]]) -> dict[str, Any]:
    weights = counted(batch)
    share = weights / (weights.sum(1, keepdim=True).clamp(min=1) * evaluator.num_layers)
    targets: dict[int, Tensor] = {}

    def remember(layer: int, output: Tensor) -> Tensor:
        targets[layer] = output
        return output.new_zeros(batch.num_sequences)

    def distance(layer: int, output: Tensor) -> Tensor:
        return (ops.alignment_loss(output, targets[layer], reduction="none") * share).sum(1)

    everything = frozenset(range(evaluator.num_layers))
    work = LayerSetPass(evaluator.teacher, evaluator.mixers, batch)
    with evaluator.precision.forward():
        list(work.observations([everything], remember))
        found = dict(work.observations([frozenset(kept) for kept in sets], distance))
    per_layer = matrix_weights(evaluator.teacher, head=False) / evaluator.num_layers
    return {
        "values": [finite_or_none(found[index].tolist()) for index in range(len(sets))],
        "tokens": batch.num_tokens * (1 + len(sets)),
        "flops": 2.0 * batch.num_tokens * per_layer * work.layers_run,
    }
