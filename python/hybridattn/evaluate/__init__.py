"""How good a hybrid is: held-out KL and perplexity (`quality`), recall from context (`recall`, `tasks`)."""

from hybridattn.evaluate.quality import kl, perplexity
from hybridattn.evaluate.recall import RecallItem, RecallResult, RecallTask, encode_task, load_task, score_recall
from hybridattn.evaluate.tasks import build_task, key_value, needle

__all__ = [
    "RecallItem",
    "RecallResult",
    "RecallTask",
    "build_task",
    "encode_task",
    "key_value",
    "kl",
    "load_task",
    "needle",
    "perplexity",
    "score_recall",
]
