"""Which layers keep softmax: scores (`scoring`, by `criteria`), searches over sets (`search`), and what they measure with."""

from hybridattn import _C
from hybridattn.select.budget import KindCosts, keep_for_latency, keep_for_memory, keep_for_recall, measure_kinds
from hybridattn.select.default import AutoOptions, Selection, choose_finalist, select_layers
from hybridattn.select.elimination import NestedOrder, backward_elimination
from hybridattn.select.evaluator import CandidateEvaluator, LayerSetEvaluator, Loss
from hybridattn.select.finalists import Finalist, finalist_race, train_finalists
from hybridattn.select.layer_scores import LayerScores
from hybridattn.select.options import ScoreOptions
from hybridattn.select.recall_weights import RecallWeights
from hybridattn.select.retained_recall import retained_recall
from hybridattn.select.scoring import race_layers, score_layers
from hybridattn.select.search import SearchResult, sequential_addition, swap_refinement
from hybridattn.select.set_race import BatchEvaluator, race_sets
from hybridattn.select.training_race import TrainingEvaluator

Race = _C.select.Race
uniform_plan = _C.select.uniform_plan
random_plan = _C.select.random_plan
first_plan = _C.select.first_plan
last_plan = _C.select.last_plan
explicit_plan = _C.select.explicit_plan

__all__ = [
    "AutoOptions",
    "BatchEvaluator",
    "CandidateEvaluator",
    "Finalist",
    "KindCosts",
    "LayerScores",
    "LayerSetEvaluator",
    "Loss",
    "NestedOrder",
    "Race",
    "RecallWeights",
    "ScoreOptions",
    "SearchResult",
    "Selection",
    "TrainingEvaluator",
    "backward_elimination",
    "choose_finalist",
    "explicit_plan",
    "finalist_race",
    "first_plan",
    "keep_for_latency",
    "keep_for_memory",
    "keep_for_recall",
    "last_plan",
    "measure_kinds",
    "race_layers",
    "race_sets",
    "random_plan",
    "retained_recall",
    "score_layers",
    "select_layers",
    "sequential_addition",
    "swap_refinement",
    "train_finalists",
    "uniform_plan",
]
