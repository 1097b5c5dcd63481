"""Suite: everything that one model is measured on, the same for every model of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hybridattn.data import Batch
from hybridattn.evaluate.quality import kl, perplexity
from hybridattn.evaluate.recall import RecallTask
from hybridattn.evaluate.scoring import Scoring, encode_task, score_recall


@dataclass(frozen=True)
class Suite:
    """Recall tasks and held-out sequences.

    Attributes:
        tokenizer: the models' own.
        tasks: what to recall.
        held_out: sequences for KL and perplexity; without any, both are left out.
        scoring, batch_size: as `score_recall`.
    """

    tokenizer: Any
    tasks: Sequence[RecallTask] = ()
    held_out: Sequence[Batch] = ()
    scoring: Scoring = "generate"
    batch_size: int = 8

    def check(self, vocab_size: int) -> None:
        """Makes sure that every task can be asked of a model of `vocab_size` entries.

        Raises:
            ValueError: as `encode_task`.
        """
        for task in self.tasks:
            encode_task(task, self.tokenizer, vocab_size)

    def measure(
        self, model: nn.Module, teacher: nn.Module | None = None, progress: Callable[[str], None] = lambda line: None
    ) -> dict[str, Any]:
        """One model's row of ``eval.json``.

        Returns:
            ``recall``: task -> ``accuracy``, ``low``, ``high``, ``answers`` and its ``cells``. With held-out sequences
            ``perplexity``, and with a teacher ``kl`` (nats per token), ``kl_interval`` (95 %) and ``kl_sequences``, one
            mean per sequence, so that two models can be compared sequence by sequence.
        """
        model.eval()
        row: dict[str, Any] = {}
        if self.held_out:
            if teacher is not None:
                divergence = kl(model, teacher, self.held_out)
                mean, count = float(divergence.mean()), len(divergence)
                half = 1.96 * float(divergence.std()) / count**0.5 if count > 1 else 0.0
                row |= {"kl": mean, "kl_interval": [mean - half, mean + half], "kl_sequences": divergence.tolist()}
            row["perplexity"] = perplexity(model, self.held_out)
        recall = {}
        for task in self.tasks:
            result = score_recall(model, self.tokenizer, task, self.batch_size, self.scoring, progress)
            recall[task.name] = result.to_json()
        return row | {"recall": recall}
