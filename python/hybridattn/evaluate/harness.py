"""lm-eval's own tasks (RULER, common sense, ...) on a hybrid or its teacher; the package `lm-eval` is an extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hybridattn import hf


def _max_length(config: Any) -> int | None:
    """Positions that the model was made for; a hybrid's config keeps them in its teacher's."""
    found = getattr(config, "max_position_embeddings", None)
    return found or getattr(config, "teacher_config", {}).get("max_position_embeddings")


def lm_eval_scores(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    lengths: Sequence[int] = (),
    limit: int | None = None,
    batch_size: int = 8,
    include_path: str | Path | None = None,
) -> dict[str, dict[str, float]]:
    """Runs tasks of lm-eval through its interface for Transformers models (HFLM).

    Args:
        model: a hybrid or a plain Transformers model, on the device to run on.
        tokenizer: its tokenizer; tasks that write their own texts (RULER) load it once more from where it came from.
        tasks: names that ``lm-eval ls tasks`` lists, or that `include_path` defines.
        lengths: context lengths of tasks that have some (RULER); lm-eval's default when empty.
        limit: examples per task; all when None.
        include_path: folder with tasks of your own.

    Returns:
        task or group -> its metrics and their standard errors, by lm-eval's names.

    Raises:
        ModuleNotFoundError: lm-eval is not installed; with the command that installs it.
        ValueError: lm-eval does not know a task.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"lm_eval_scores: lm-eval is not installed here (no module '{error.name}'); "
            "pip install 'hybridattn[lm-eval]', or 'lm-eval[hf,ruler]', brings it",
            name=error.name,
        ) from error
    metadata: dict[str, Any] = {"tokenizer": tokenizer.name_or_path}
    if lengths:
        metadata["max_seq_lengths"] = list(lengths)
    manager = TaskManager(include_path=None if include_path is None else str(include_path), metadata=metadata)
    if unknown := [name for name in tasks if not manager.match_tasks([name])]:
        raise ValueError(f"lm_eval_scores: lm-eval has no task '{unknown[0]}'; `lm-eval ls tasks` lists them")
    language_model = HFLM(
        pretrained=model.eval(),
        tokenizer=tokenizer,
        backend="causal",
        batch_size=batch_size,
        max_length=_max_length(model.config),
        device=str(hf.head_weight(model).device),
    )
    found = simple_evaluate(
        language_model, tasks=list(tasks), limit=limit, task_manager=manager, log_samples=False, bootstrap_iters=1000
    )
    return {name: _numbers(row) for name, row in found["results"].items()}


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """Metrics without the filter that lm-eval appends to their names where there is one filter only."""
    return {key.removesuffix(",none"): float(value) for key, value in row.items() if isinstance(value, (int, float))}
