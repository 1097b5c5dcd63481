"""Measures a model in a folder, a hybrid or a plain Transformers model, beside its teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from hybridattn import hf
from hybridattn.data import Batch, TokenData
from hybridattn.evaluate.cost import measure_cost
from hybridattn.evaluate.harness import lm_eval_scores
from hybridattn.evaluate.recall_tasks import build_task
from hybridattn.evaluate.scoring import Scoring
from hybridattn.evaluate.suite import Suite


@dataclass(frozen=True)
class FolderOptions:
    """What `evaluate_folders` measures."""

    tasks: Sequence[str] = ()
    """Names of ``FAMILIES`` or paths of jsonl tasks."""
    lengths: Sequence[int] = (512,)
    """Tokens per recall text; contexts whose cost is measured; context lengths of lm-eval's tasks that have some."""
    depths: Sequence[float] = ()
    """Where in the context stands what is asked, 0 to 1; anywhere when empty."""
    items: int = 64
    """Texts per length and depth."""
    scoring: Scoring = "generate"
    """As `score_recall`."""
    batch_size: int = 8
    text: Sequence[str] = ()
    """Files or folders of text that no model was trained on, for KL and perplexity."""
    seq_len: int = 512
    """Tokens per sequence of that text."""
    sequences: int = 64
    """Sequences of that text, at most."""
    cost: bool = False
    """Whether time, memory and cache are measured."""
    lm_eval: Sequence[str] = ()
    """Tasks of lm-eval."""
    limit: int | None = None
    """Examples per task of lm-eval."""
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"


def evaluate_folders(
    model: str | Path,
    teacher: str | Path | None = None,
    options: FolderOptions | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measures `model`, and `teacher` with it where one is given.

    Args:
        model, teacher: folders with config and weights, or names on the hub. The tokenizer is the model's, or where its
            folder has none, the teacher's.
        progress: called with a line of text now and then.

    Returns:
        what a run writes into ``eval.json``: ``models`` (``teacher`` and ``hybrid``, or ``model`` where it has no linear
        layer), and where asked for ``cost`` and ``lm_eval``.

    Raises:
        ValueError: nothing is asked for, a folder holds no model or no tokenizer, teacher and model have different
            vocabularies, or a task does not fit (`build_task`, `encode_task`).
        ModuleNotFoundError: lm-eval is asked for and not installed.
    """

    def labelled(label: str) -> Callable[[str], None]:
        return lambda line: progress(f"{label}  {line}")

    options = options or FolderOptions()
    if not (options.tasks or options.text or options.cost or options.lm_eval):
        raise ValueError("eval: nothing to measure; name tasks, text, cost or tasks of lm-eval")
    tokenizer = _tokenizer([folder for folder in (model, teacher) if folder is not None])
    # Before any model is loaded: what cannot be asked is found here.
    tasks = [
        build_task(name, tokenizer, options.lengths, options.depths, options.items, options.seed)
        for name in options.tasks
    ]
    measured = _load(model, options)
    is_hybrid = isinstance(measured, hf.HybridForCausalLM)
    models = {"hybrid" if is_hybrid else "model": measured}
    if teacher is not None:
        models = {"teacher": _load(teacher, options)} | models
        sizes = {name: found.config.vocab_size for name, found in models.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"eval: vocabularies of {sizes} entries; {teacher} is not the teacher of {model}")
    suite = Suite(tokenizer, tasks, _held_out(tokenizer, measured, options), options.scoring, options.batch_size)
    suite.check(measured.config.vocab_size)
    result: dict[str, Any] = {
        "name": Path(model).name,
        "teacher": None if teacher is None else Path(teacher).name,
        "mixer": measured.config.mixer if is_hybrid else "softmax",
        "num_layers": len(hf.decoder_layers(measured)),
        "models": {},
    }
    for name, found in models.items():
        row = suite.measure(found, models.get("teacher"), labelled(f"eval  {name}"))
        layers = found.softmax_layers if isinstance(found, hf.HybridForCausalLM) else None
        result["models"][name] = row | {"layers": layers}
    if options.cost:
        result["cost"] = measure_cost(models, options.lengths, seed=options.seed, progress=labelled("cost"))
    if options.lm_eval:
        progress("lm-eval")
        result["lm_eval"] = {
            name: lm_eval_scores(
                found, tokenizer, options.lm_eval, lengths=options.lengths, limit=options.limit, batch_size=options.batch_size
            )
            for name, found in models.items()
        }  # fmt: skip
    return result


def _load(folder: str | Path, options: FolderOptions) -> Any:
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, options.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"eval: unknown dtype '{options.dtype}'; float32 and bfloat16 are usual")
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    except OSError as error:
        raise ValueError(f"eval: {folder} holds no model that Transformers loads ({error})") from error
    return model.to(options.device).eval().requires_grad_(False)


def _tokenizer(folders: Sequence[str | Path]) -> Any:
    from transformers import AutoTokenizer

    for folder in folders:
        try:
            return AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError):
            continue
    raise ValueError(
        f"eval: no tokenizer in {' or '.join(map(str, folders))}; save the teacher's there, or name the teacher"
    )


def _held_out(tokenizer: Any, model: Any, options: FolderOptions) -> list[Batch]:
    if not options.text:
        return []
    data = TokenData.from_files(options.text, tokenizer, options.seq_len, held_out=0)
    data.check_vocabulary(model.config.vocab_size)
    sequences = min(options.sequences, data.num_train_sequences)
    batch_size = min(options.batch_size, sequences)
    return [batch.to(options.device) for batch in islice(data.train_batches(batch_size), sequences // batch_size)]
