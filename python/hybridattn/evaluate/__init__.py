"""How good a hybrid is, and what it saves.

Held-out KL and perplexity (`quality`), recall from context (`recall_tasks` builds it, `scoring` scores it), all of it for one
model (`suite`), the cost of prefill and decoding against context length (`cost`), lm-eval's own tasks (`harness`), and all
of this for models in folders (`folders`).
"""

from hybridattn.evaluate.cost import cache_bytes, measure_cost
from hybridattn.evaluate.folders import FolderOptions, evaluate_folders
from hybridattn.evaluate.harness import lm_eval_scores
from hybridattn.evaluate.quality import kl, perplexity
from hybridattn.evaluate.recall import RecallCell, RecallItem, RecallResult, RecallTask, load_task
from hybridattn.evaluate.recall_tasks import FAMILIES, build_task
from hybridattn.evaluate.scoring import Scoring, encode_task, score_recall
from hybridattn.evaluate.suite import Suite

__all__ = [
    "FAMILIES",
    "FolderOptions",
    "RecallCell",
    "RecallItem",
    "RecallResult",
    "RecallTask",
    "Scoring",
    "Suite",
    "build_task",
    "cache_bytes",
    "encode_task",
    "evaluate_folders",
    "kl",
    "lm_eval_scores",
    "load_task",
    "measure_cost",
    "perplexity",
    "score_recall",
]
