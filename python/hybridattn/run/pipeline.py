"""The steps of a run, in order; each reads files of earlier steps, writes its own, and is skipped when they exist."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

import hybridattn as ha
from hybridattn import _C, hf
from hybridattn.data import TokenData
from hybridattn.distill.checkpoint import sync
from hybridattn.distill.fingerprint import matrix_weights
from hybridattn.evaluate import Suite, build_task, measure_cost
from hybridattn.info import collect
from hybridattn.run.check import check_data, check_recipe
from hybridattn.run.choice import Choice, LayerChooser
from hybridattn.run.directory import RunDirectory
from hybridattn.run.recipe import Recipe, StageTable
from hybridattn.select import CandidateEvaluator

Progress = Callable[[str], None]


class Pipeline:
    """One recipe in one run directory.

    Args:
        recipe: what to do.
        path: the run directory; made when absent, refused when it belongs to another recipe.
        progress: called with one line of text whenever there is something new to show.
    """

    evaluator_type: Callable[..., CandidateEvaluator] = CandidateEvaluator
    """What layers are scored and searched with."""

    def __init__(self, recipe: Recipe, path: str | Path, progress: Progress = lambda line: None) -> None:
        self.recipe = recipe
        self.directory = RunDirectory(path, recipe)
        self.progress = progress
        self.teacher: Any = None
        self.tokenizer: Any = None
        self._data: TokenData | None = None
        self._suite: Suite | None = None

    # ---- what every step needs ----

    def load_teacher(self) -> nn.Module:
        """The teacher in fp32, frozen; loaded once, after the recipe was found to fit its config.

        Raises:
            ValueError: naming the teacher when it cannot be loaded, or what in the recipe does not fit it.
        """
        if self.teacher is None:
            from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

            name = self.recipe.teacher
            self.progress(f"teacher  {name}")
            try:
                config = AutoConfig.from_pretrained(name)
                check_recipe(self, config)
                self.tokenizer = AutoTokenizer.from_pretrained(name)
                teacher = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
            except OSError as error:
                raise ValueError(
                    f"teacher '{name}' cannot be loaded (no such folder, or it lacks files: {error}); give a folder with "
                    "config, weights and tokenizer, or the name of a model on the hub"
                ) from error
            self.teacher = teacher.eval().requires_grad_(False)
        return self.teacher

    def data(self, seq_len: int | None = None) -> TokenData:
        """The corpus, tokenised once; in sequences of `seq_len` (the recipe's by default)."""
        if self._data is None:
            table = self.recipe.data
            self.load_teacher()
            cache = Path(table.cache) if table.cache else self.directory.cache
            self._data = TokenData.from_files(
                table.sources,
                self.tokenizer,
                table.seq_len,
                held_out=table.held_out,
                cache_dir=cache,
                field=table.field,
            )
            self._data.check_vocabulary(self.teacher.config.vocab_size)
        return self._data if seq_len is None else self._data.with_seq_len(seq_len)

    def dtype(self) -> str:
        """The computation's dtype; ``auto`` is bfloat16 on a CPU with bf16 arithmetic or on a GPU."""
        if self.recipe.dtype != "auto":
            return self.recipe.dtype
        fast = torch.cuda.is_available() or any("bf16" in name for name in collect().instruction_sets)
        return "bfloat16" if fast else "float32"

    def stage(self, name: str, table: StageTable) -> Any:
        fields = {"seq_len": self.recipe.data.seq_len, "seed": self.recipe.seed, "dtype": self.dtype()}
        return getattr(ha.presets, name)(table.preset, **(fields | table.overrides()))

    def account(self, step: str, tokens: int, flops: float, seconds: float) -> None:
        """One line of the ledger; a repeated step adds to its line."""
        ledger = self.directory.read("ledger.json") or {"entries": []}
        entry = next((entry for entry in ledger["entries"] if entry["step"] == step), None)
        if entry is None:
            entry = {"step": step, "tokens": 0, "flops": 0.0, "seconds": 0.0}
            ledger["entries"].append(entry)
        entry["tokens"] += tokens
        entry["flops"] += flops
        entry["seconds"] += seconds
        self.directory.write("ledger.json", ledger)

    # ---- the steps ----

    def convert(self) -> Any:
        """The all-linear student straight from the teacher's weights; writes ``plan.json``."""
        table = self.recipe.convert
        student = ha.convert(
            self.load_teacher(), mixer=table.mixer, options=table.options, seed=self.recipe.seed, verbose=False
        )
        if table.init == "calibrated":
            self._calibrate(student)
        self.directory.write("plan.json", student.transfer_plan.to_json())
        return student

    def align(self) -> Any:
        """Stage 1; writes ``align/model``."""
        model = self.directory.path / "align" / "model"
        if not model.exists():
            teacher = self.load_teacher()
            check_data(self, teacher.config)
            student = self.convert()
            self._train("align", ha.align, (student, teacher), self.recipe.align, self.directory.folder("align"))
            self._save(student, model)
        return self._load(model)

    def choose(self) -> Choice:
        """Scores layers and chooses; writes ``score/`` and ``selection.json``."""
        found = self.directory.read("selection.json")
        if found is not None:
            return Choice.from_json(found)
        choice = self.chooser().choose(self.recipe.select)
        self.directory.write("selection.json", choice.to_json())
        return choice

    def chooser(self) -> LayerChooser:
        return LayerChooser(self, self.align())

    def match(self, layers: list[int], folder: Path) -> Any:
        """Stage 2 of the hybrid that keeps `layers`; writes ``match/model`` under `folder`."""
        return self._distil("match", self.recipe.match, folder, lambda: self.hybrid(layers))

    def finetune(self, layers: list[int], folder: Path) -> Any:
        """Stage 3, from stage 2's result, where the recipe has one."""
        if self.recipe.finetune is None:
            return self.match(layers, folder)
        return self._distil("finetune", self.recipe.finetune, folder, lambda: self.match(layers, folder))

    def hybrid(self, layers: list[int]) -> Any:
        """Aligned mixers, with the teacher's softmax attention in `layers`."""
        return ha.keep_softmax(self.align(), self.load_teacher(), layers)

    def evaluate(self) -> dict[str, Any]:
        """Measures teacher, hybrid and rivals; writes ``eval.json``."""
        found = self.directory.read("eval.json")
        if found is not None:
            return found
        teacher, choice = self.load_teacher(), self.choose()
        result: dict[str, Any] = {
            "name": self.recipe.name,
            "teacher": Path(self.recipe.teacher).name,
            "mixer": self.recipe.convert.mixer,
            "num_layers": len(hf.decoder_layers(teacher)),
            "models": self.directory.read("eval.partial.json") or {},
        }
        models = result["models"]
        plans = {"hybrid": choice.layers} | self.chooser().rivals(self.recipe.compare.plans)
        for name, layers in {"teacher": None, **plans}.items():
            if name in models:
                continue
            same = next((row for row in models.values() if row["layers"] == layers), None)
            if same is None:
                model = teacher if layers is None else self.finetune(layers, self.folder_of(name))
                self.progress(f"eval  {name}")
                same = self.suite().measure(model, teacher, self._line(f"eval  {name}")) | {"layers": layers}
                del model
                gc.collect()
            models[name] = same
            self.directory.write("eval.partial.json", models)
        if self.recipe.eval.cost_lengths:
            result["cost"] = self.directory.once("cost.json", lambda: self._cost(choice.layers))
        self.directory.write("eval.json", result)
        (self.directory.path / "eval.partial.json").unlink(missing_ok=True)
        return result

    def suite(self) -> Suite:
        """What every model of this run is measured on: ``[eval]``'s recall tasks and held-out sequences."""
        if self._suite is None:
            table = self.recipe.eval
            held_out = self.data().held_out(table.held_out_sequences, table.batch_size)
            tasks = [
                build_task(
                    name, self.tokenizer, table.recall_length, table.recall_depths, table.recall_items, self.recipe.seed
                )
                for name in table.recall
            ]
            self._suite = Suite(self.tokenizer, tasks, held_out, table.scoring, table.batch_size)
        return self._suite

    def _cost(self, layers: list[int]) -> dict[str, Any]:
        models = {"teacher": self.load_teacher(), "hybrid": self.finetune(layers, self.directory.path)}
        return measure_cost(models, self.recipe.eval.cost_lengths, progress=self._line("cost"))

    def report(self) -> Path:
        """Writes ``info.json`` and ``report.html``."""
        from hybridattn.report import write_report

        facts = collect().to_dict()
        flat = {name: value for name, value in facts.items() if not isinstance(value, (dict, list))}
        flat |= {name: ", ".join(value) for name, value in facts.items() if isinstance(value, list) and value}
        self.directory.write("info.json", flat | {f"{k} version": v for k, v in facts["versions"].items()})
        return write_report(self.directory.path)

    def run(self) -> Path:
        """Everything; returns the report's path."""
        _C.core.keep_freed_memory()
        choice = self.choose()
        self.finetune(choice.layers, self.directory.path)
        self.evaluate()
        return self.report()

    # ---- inside ----

    def _calibrate(self, student: Any) -> None:
        count, started = self.recipe.convert.calibration_sequences, time.monotonic()
        self.progress(f"calibrate  {count} sequences")
        ha.calibrate(student, self.load_teacher(), self.data(), count, self.recipe.seed)
        self.account("calibrate", *self._calibration_cost(), time.monotonic() - started)

    def _calibration_cost(self) -> tuple[int, float]:
        """Tokens and operations: a forward pass of the teacher."""
        tokens = self.recipe.convert.calibration_sequences * self.recipe.data.seq_len
        return tokens, 2.0 * tokens * matrix_weights(self.load_teacher(), head=False)

    def folder_of(self, plan: str) -> Path:
        return self.directory.path if plan == "hybrid" else self.directory.folder("compare", plan)

    def _distil(self, name: str, table: StageTable, folder: Path, start: Callable[[], Any]) -> Any:
        stage_folder = folder / name
        stage_folder.mkdir(parents=True, exist_ok=True)
        if not (stage_folder / "model").exists():
            model = start()
            step = ha.finetune if name == "finetune" else ha.match
            models = (model,) if name == "finetune" else (model, self.load_teacher())
            self._train(name, step, models, table, stage_folder)
            self._save(model, stage_folder / "model")
        return self._load(stage_folder / "model")

    def _train(
        self, name: str, step: Callable[..., Any], models: tuple[Any, ...], table: StageTable, folder: Path
    ) -> None:
        stage = self.stage(name, table)
        started = time.monotonic()
        label = self._label(name, folder)
        result = step(*models, self.data(stage.seq_len), stage, run_dir=folder, progress=self._line(label))
        self.account(label, result.tokens, result.flops, time.monotonic() - started)

    def _label(self, name: str, folder: Path) -> str:
        """Of a stage in the ledger, told by its folder."""
        return name if folder.parent == self.directory.path else f"{folder.parent.name} {name}"

    def _line(self, label: str) -> Callable[[Any], None]:
        return lambda event: self.progress(f"{label}  {event}")

    def _save(self, model: Any, path: Path) -> None:
        """Model and tokenizer in folder `path`, all of it or nothing."""
        temporary = path.with_name(path.name + ".partial")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            model.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
            for file in (*temporary.iterdir(), temporary):
                sync(file)
            temporary.rename(path)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(
                f"cannot write {path}: {error}; free some space and run the same command again, it goes on from the "
                "last checkpoint"
            ) from error

    def _load(self, path: Path) -> Any:
        return hf.HybridForCausalLM.from_pretrained(path, dtype=torch.float32)
