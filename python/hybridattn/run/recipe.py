"""What a run does, as strict TOML: every key known, every error naming the key and the nearest known one."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

from hybridattn import _C
from hybridattn.evaluate import Scoring
from hybridattn.select.options import Mode
from hybridattn.validation import validated


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class DataTable(_Table):
    """``[data]``: the text to distil on."""

    sources: list[str] = Field(min_length=1)
    """Files (txt, jsonl, parquet), folders or hub datasets; paths are relative to the recipe."""
    field: str = "text"
    seq_len: int = Field(512, ge=2)
    """Tokens per sequence in every stage that does not say otherwise."""
    held_out: float = Field(0.05, gt=0, lt=1)
    """Share of the documents that no stage trains on."""
    cache: str | None = None
    """Folder of the token cache; the run directory's ``cache/`` when absent."""


class ConvertTable(_Table):
    """``[convert]``: the mixer that replaces softmax attention, and its options."""

    mixer: str = "gated_deltanet"
    options: dict[str, Any] = Field(default_factory=dict)
    init: Literal["default", "calibrated"] = "default"
    """Where the mixers' gates start: as new, or ``calibrated`` to the teacher's attention on training sequences."""
    calibration_sequences: PositiveInt = 16


class ScoringTable(_Table):
    """How the importance of layers is measured: ``[score]``, and ``[compare.scores.NAME]`` beside it."""

    criterion: str = "removal"
    """``removal`` linearises one layer of the teacher (GR-S2); ``addition`` restores softmax in one (GA-S2); or another
    name of ``hybridattn.select.criteria.CRITERIA``."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The criterion's own, e.g. ``{tasks = ["key_value"]}`` of ``halo``."""
    mode: Mode = "exhaustive"
    """Who stops training when: nobody, each with its verdict, or all together once the top K hardly change."""
    jaccard_threshold: float = Field(0.9, gt=0, le=1)
    """``jaccard`` stops at this mean similarity of the top K of successive rounds."""
    jaccard_window: int = Field(2, ge=1)
    """Of so many similarities."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    steps_per_round: int = Field(0, ge=0)
    """Training steps between two scorings of a candidate; 0 scores without training."""
    max_steps: int = Field(0, ge=0)
    stage: dict[str, Any] = Field(default_factory=dict)
    """Fields of the candidates' stage-2 training (preset ``paper`` unless ``preset`` is given)."""


class ScoreTable(ScoringTable):
    """``[score]``: the scoring of this run, and the sequences on which every scoring measures."""

    held_out_sequences: int = Field(64, ge=2)


BUDGETS = ("keep", "fraction", "latency", "memory", "recall_drop")
"""Keys of ``[select]`` of which a recipe has one."""


class SelectTable(_Table):
    """``[select]``: how many layers keep softmax, and who chooses them."""

    keep: int | None = Field(None, ge=0)
    fraction: float | None = Field(None, ge=0, le=1)
    latency: float | None = Field(None, gt=0)
    """Milliseconds per decoded token on this machine after `context` tokens: as many layers as that allows."""
    memory: float | None = Field(None, gt=0)
    """MiB of one sequence's cache after `context` tokens: as many layers as that allows."""
    recall_drop: float | None = Field(None, ge=0, lt=1)
    """Share of the teacher's recall on held-out text that may be lost before distillation: as few layers as that needs."""
    context: int = Field(2048, ge=1)
    """Tokens of context at which latency and memory count."""
    strategy: str = "auto"
    """``auto`` (elimination, races, exchanges), ``ranking`` (top of the scores), a criterion, ``sequential``, ``uniform``,
    ``random``, ``first``, ``last`` or ``explicit``."""
    loss: Literal["kl", "recall_kl"] = "kl"
    """What searches lower: the held-out KL, plain or (``recall_kl``) with each token weighted by how much it needs far
    context."""
    window: int | None = Field(None, ge=2)
    """Tokens beyond which context is far, for `recall_drop` and ``recall_kl``; a quarter of the sequence when absent."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of every race and exchange of ``auto``."""
    proposals: list[str] = Field(default_factory=list)
    """Criteria (as in ``[score]``, or names of ``[compare.scores]``) whose highest layers ``auto`` also considers."""
    finalists: int = Field(0, ge=0)
    """How many of the best sets that ``auto`` measured are trained by stage 2 before one is chosen; 0 or 1: none."""
    rounds: int = Field(4, ge=1)
    """Scorings of a finalist on the way."""
    stage: dict[str, Any] = Field(default_factory=dict)
    """Fields of the finalists' stage-2 training that differ from ``[score.stage]``; ``tokens`` is each one's budget, without
    it ``max_steps`` of ``[score]``."""
    frontier: bool = True
    """Whether ``auto`` measures loss, latency and cache of other numbers of layers too, for the report."""
    refine: Literal["none", "swap"] = "swap"
    layers: list[int] | None = None
    """The layers of an ``explicit`` choice."""
    offset: int = 0
    seed: int = 0

    @model_validator(mode="after")
    def _one_budget(self) -> SelectTable:
        if self.strategy == "explicit":
            if self.layers is None:
                raise ValueError("strategy 'explicit' needs `layers`")
        elif sum(getattr(self, name) is not None for name in BUDGETS) != 1:
            raise ValueError(
                "give exactly one of `keep` (layers), `fraction` (of all layers), `latency` (ms per token), `memory` (MiB of "
                "cache) and `recall_drop` (share of the teacher's recall)"
            )
        return self

    def budget(self, num_layers: int) -> int | None:
        """How many of a teacher's layers keep softmax; None where that is to be measured.

        Raises:
            ValueError: more than there are, or a listed layer does not exist.
        """
        if self.layers is not None:
            return len(_C.select.explicit_plan(num_layers, self.layers))
        if self.fraction is not None:
            return _C.select.keep_of_fraction(num_layers, self.fraction)
        if self.keep is not None and self.keep > num_layers:
            raise ValueError(f"select.keep is {self.keep}, the teacher has {num_layers} layers")
        return self.keep


class StageTable(BaseModel):
    """``[align]``, ``[match]``, ``[finetune]``: a preset and what differs from it (fields of ``hybridattn.Stage``)."""

    model_config = ConfigDict(extra="allow")
    preset: str = "paper"

    def overrides(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class EvalTable(_Table):
    """``[eval]``: what the finished hybrid and its rivals are measured on."""

    held_out_sequences: int = Field(64, ge=1)
    recall: list[str] = Field(default_factory=list)
    """Names of ``hybridattn.evaluate.FAMILIES`` (``needle``, ``key_value``, ``phonebook``, ...) or paths of jsonl tasks."""
    recall_length: Annotated[list[PositiveInt], BeforeValidator(_as_list)] = Field([512], min_length=1)
    """Tokens per text: one number or several."""
    recall_depths: list[Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=list)
    """Where in the context stands what is asked, 0 to 1; anywhere when empty."""
    recall_items: int = Field(64, ge=1)
    """Texts per length and depth."""
    scoring: Scoring = "generate"
    """``generate`` lets each model write its answers; ``forced`` takes one forward pass per text."""
    batch_size: int = Field(8, ge=1)
    cost_lengths: list[PositiveInt] = Field(default_factory=list)
    """Tokens of context at which time, memory and cache of teacher and hybrid are measured; not at all when empty."""


class CompareTable(_Table):
    """``[compare]``: other choices of layers that get the same distillation, for the report."""

    plans: list[str] = Field(default_factory=list)
    """``uniform``, ``uniform:OFFSET``, ``uniform:all`` (every offset), ``random:SEED``, ``first``, ``last``,
    ``all_linear``, ``sequential``, a criterion as in ``[score]``, a name of `scores`, or layers as ``0,5,7``."""
    scores: dict[str, ScoringTable] = Field(default_factory=dict)
    """Further scorings by name, with the keys of ``[score]``; the highest layers of each are a plan of that name."""


class Recipe(_Table):
    """A whole run. Paths are relative to the recipe's own folder."""

    name: str
    teacher: str
    seed: int = 0
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """``auto`` is bfloat16 where the machine computes in it, otherwise float32."""
    data: DataTable
    convert: ConvertTable = Field(default_factory=ConvertTable)
    align: StageTable = Field(default_factory=StageTable)
    score: ScoreTable = Field(default_factory=ScoreTable)
    select: SelectTable
    match: StageTable = Field(default_factory=StageTable)
    finetune: StageTable | None = None
    eval: EvalTable = Field(default_factory=EvalTable)
    compare: CompareTable = Field(default_factory=CompareTable)

    def digest(self) -> str:
        """Names the recipe's content; a run directory belongs to one digest."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]

    def resolved(self, base: Path) -> Recipe:
        """A copy with the paths that exist under `base` made absolute, so that it means the same from anywhere."""

        def absolute(value: str) -> str:
            return str((base / value).resolve()) if (base / value).exists() else value

        copy = self.model_copy(deep=True)
        copy.teacher = absolute(copy.teacher)
        copy.data.sources = [absolute(source) for source in copy.data.sources]
        copy.eval.recall = [absolute(task) for task in copy.eval.recall]
        for table in (copy.score, *copy.compare.scores.values()):
            for name, value in table.options.items():
                if isinstance(value, str):
                    table.options[name] = absolute(value)
                elif isinstance(value, list):
                    table.options[name] = [absolute(v) if isinstance(v, str) else v for v in value]
        return copy


def _set(values: dict[str, Any], change: str) -> None:
    """Applies ``table.key=value`` (value in TOML syntax, or a bare string) to a recipe's values."""
    name, equals, text = change.partition("=")
    if not equals:
        raise ValueError(f"--set {change}: expected KEY=VALUE, for example select.keep=4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, key = name.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ValueError(f"--set {change}: '{table}' is a key, not a table")
    values[key] = value


def shipped_recipes() -> dict[str, Path]:
    """Recipes inside the package, by name."""
    folder = Path(__file__).parent.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(path: str | Path, changes: Sequence[str] = (), without: Sequence[str] = ()) -> Recipe:
    """Reads and resolves a recipe: a file, or the name of one that ships with the package.

    Paths in a file are relative to it, paths in a shipped recipe to the current directory.

    Args:
        changes: ``table.key=value`` each, applied before validation.
        without: ``table.key`` each, left out of the file's values before the changes.

    Raises:
        ValueError: the file is not TOML, or a key is unknown, missing or of the wrong kind.
        FileNotFoundError: there is no such file.
    """
    shipped = shipped_recipes().get(str(path))
    base = Path.cwd() if shipped else Path(path).resolve().parent
    path = shipped or Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name}: not valid TOML: {error}") from error
    for name in without:
        table, _, key = name.partition(".")
        values.get(table, {}).pop(key, None)
    for change in changes:
        _set(values, change)
    return validated(Recipe, values, path.name).resolved(base)
