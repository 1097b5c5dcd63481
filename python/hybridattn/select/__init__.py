"""Which layers keep softmax: scores (`scoring`, by `criteria`), searches over sets (`search`), and what they measure with."""

from hybridattn import _C
from hybridattn.select.evaluator import CandidateEvaluator, LayerSetEvaluator
from hybridattn.select.layer_scores import LayerScores
from hybridattn.select.options import ScoreOptions
from hybridattn.select.scoring import race_layers, score_layers
from hybridattn.select.search import SearchResult, sequential_addition, swap_refinement

Race = _C.select.Race
uniform_plan = _C.select.uniform_plan
random_plan = _C.select.random_plan
first_plan = _C.select.first_plan
last_plan = _C.select.last_plan
explicit_plan = _C.select.explicit_plan

__all__ = [
    "CandidateEvaluator",
    "LayerScores",
    "LayerSetEvaluator",
    "Race",
    "ScoreOptions",
    "SearchResult",
    "explicit_plan",
    "first_plan",
    "last_plan",
    "race_layers",
    "random_plan",
    "score_layers",
    "sequential_addition",
    "swap_refinement",
    "uniform_plan",
]
