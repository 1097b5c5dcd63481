"""What gives every layer a number that says how much its softmax attention matters: one class per criterion, by name."""

from hybridattn.select.criteria.criterion import Criterion, RegisteredCriterion, Scoring
from hybridattn.select.criteria.gates import GateTraining, LearnedGates, learned_gates
from hybridattn.select.criteria.registry import ALIASES, CRITERIA, build_criterion, criterion_type

__all__ = [
    "ALIASES",
    "CRITERIA",
    "Criterion",
    "GateTraining",
    "LearnedGates",
    "RegisteredCriterion",
    "Scoring",
    "build_criterion",
    "criterion_type",
    "learned_gates",
]
