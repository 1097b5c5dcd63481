"""A whole run on a tiny random teacher from recipe to report; recipes and run directories that do not fit."""

import errno
import io
import json
import os

import pytest
import torch
from rich.console import Console

from hybridattn.cli.tables import print_scores
from hybridattn.distill import NonFiniteLoss
from hybridattn.distill.loop import Trainer
from hybridattn.run import Pipeline, RunDirectory, load_recipe
from hybridattn.run.choice import finalist_stage
from hybridattn.run.directory import write_atomically


def test_a_run_from_recipe_to_report(folder):
    recipe = load_recipe(folder / "recipe.toml")
    report = Pipeline(recipe, folder / "run").run()
    page = report.read_text()
    assert "<svg" in page
    for heading in (
        "Which layers keep softmax",
        "What other choices cost",
        "Where in the context",
        "What it costs to run",
    ):
        assert heading in page
    assert "8 held-out sequences of 16 tokens" in page
    assert "http" not in page.split("</style>")[0]
    result = json.loads((folder / "run" / "eval.json").read_text())
    assert list(result["models"]) == ["teacher", "hybrid", "uniform-1", "all_linear", "addition"]
    assert result["models"]["teacher"]["kl"] == pytest.approx(0, abs=1e-6)
    assert len(result["models"]["hybrid"]["layers"]) == 1
    assert len(result["models"]["hybrid"]["kl_sequences"]) == 8
    assert [point["length"] for point in result["cost"]["models"]["hybrid"]["points"]] == [8, 16]
    ledger = (folder / "run" / "ledger.json").read_text()
    # A second run has nothing to do and spends nothing.
    assert Pipeline(recipe, folder / "run").run() == report
    assert (folder / "run" / "ledger.json").read_text() == ledger


def test_the_default_selector_from_a_budget_of_recall_or_memory_to_the_report(folder):
    auto = ["select.strategy=auto", "select.context=32", "compare.plans=[]"]
    recipe = load_recipe(folder / "recipe.toml", [*auto, "select.recall_drop=0"], ["select.keep"])
    pipeline = Pipeline(recipe, folder / "recall")
    choice = pipeline.choose()
    budget = pipeline.directory.read("select/budget.json")
    assert len(choice.layers) == budget["keep"]
    assert "a drop of recall by 0 needs softmax in" in choice.explanation
    entries = [entry["step"] for entry in pipeline.directory.read("ledger.json")["entries"]]
    assert entries == ["align", "select (recall budget)", "select (auto)", "select (frontier)"]
    frontier = pipeline.directory.read("select/frontier.json")
    assert [point["keep"] for point in frontier["points"]] == [0, 1, 2, 3]
    assert frontier["points"][-1]["loss"] == pytest.approx(0, abs=1e-6)
    costs = pipeline.directory.read("select/costs.json")
    assert frontier["points"][-1]["cache_bytes"] == costs["softmax_bytes"]
    assert "What a softmax layer more buys" in pipeline.run().read_text()

    room = (costs["linear_bytes"] + 2.5 * (costs["softmax_bytes"] - costs["linear_bytes"]) / 3) / 2**20
    recipe = load_recipe(folder / "recipe.toml", [*auto, f"select.memory={room}"], ["select.keep"])
    assert len(Pipeline(recipe, folder / "memory").choose().layers) == 2
    recipe = load_recipe(folder / "recipe.toml", [*auto, "select.latency=1e-6"], ["select.keep"])
    with pytest.raises(ValueError, match="a latency of 1e-06 ms per token is out of reach"):
        Pipeline(recipe, folder / "latency").choose()


def test_searches_lower_plain_kl_unless_asked_and_every_text_names_the_loss(folder):
    auto = ["select.strategy=auto", "select.context=32", "compare.plans=[]"]
    plain = load_recipe(folder / "recipe.toml", auto)
    weighted = load_recipe(folder / "recipe.toml", [*auto, "select.loss=recall_kl"])
    for recipe, loss in ((plain, "KL"), (weighted, "recall-weighted KL")):
        pipeline = Pipeline(recipe, folder / loss)
        page = pipeline.run().read_text()
        assert f"where the held-out {loss} rose least" in pipeline.choose().explanation
        assert f"<th>held-out {loss}</th>" in page
        assert f"Held-out {loss} of nested sets" in page
        events = (folder / loss / "score" / "events.jsonl").read_text()
        assert ("recall weights" in events) == (recipe is weighted)
    # A directory's recipe names its loss, so one from a time with another default goes on when asked for its own.
    with pytest.raises(ValueError, match=r"select.loss: 'recall_kl' there, 'kl' now"):
        Pipeline(plain, folder / "recall-weighted KL")
    ledger = (folder / "recall-weighted KL" / "ledger.json").read_text()
    Pipeline(weighted, folder / "recall-weighted KL").run()
    assert (folder / "recall-weighted KL" / "ledger.json").read_text() == ledger


FINALISTS = [
    "select={keep=1, strategy='auto', finalists=2, rounds=2, frontier=false, stage={tokens=128, lr=1e-3}}",
    "score={held_out_sequences=16, stage={batch_size=2}}",
    "compare.plans=[]",
]


def test_finalists_of_the_default_selector_are_trained(folder):
    pipeline = Pipeline(load_recipe(folder / "recipe.toml", FINALISTS), folder / "run")
    choice = pipeline.choose()
    found = pipeline.directory.read("select/finalists.json")
    untrained = pipeline.directory.read("select/auto.json")
    assert (untrained["finalists"], len(found["finalists"])) == ([], 2)
    assert [row["steps"] for row in found["finalists"]] == [4, 4], "128 tokens in steps of 2 sequences of 16"
    assert choice.layers == found["layers"] == found["finalists"][0]["layers"]
    assert choice.history == found["history"] != untrained["history"]
    assert "were trained; this is the best of them" in choice.explanation
    entries = {entry["step"]: entry["tokens"] for entry in pipeline.directory.read("ledger.json")["entries"]}
    assert entries["select (finalists)"] == 2 * (128 + 2 * 16 * 16)
    events = (folder / "run" / "score" / "events.jsonl").read_text()
    (folder / "run" / "selection.json").unlink()
    (folder / "run" / "select" / "finalists.json").unlink()
    again = Pipeline(load_recipe(folder / "recipe.toml", FINALISTS), folder / "run")
    assert again.choose() == choice
    assert (folder / "run" / "score" / "events.jsonl").read_text() == events
    pipeline.evaluate()
    assert "trained finalists" in pipeline.report().read_text()


def test_finalists_last_as_long_as_scored_candidates_where_nothing_else_is_said(folder):
    changes = [*FINALISTS, "select.stage={}", "score.max_steps=3"]
    pipeline = Pipeline(load_recipe(folder / "recipe.toml", changes), folder / "run")
    assert finalist_stage(pipeline).total_steps == 3
    assert finalist_stage(pipeline).batch_size == 2
    recipe = load_recipe(folder / "recipe.toml", ["select.finalists=1", "select.strategy=auto"])
    Pipeline(recipe, folder / "off").choose()
    assert not (folder / "off" / "select" / "finalists.json").exists()


def test_trained_candidates_are_scored(folder):
    changes = ["score.max_steps=2", "score.steps_per_round=1", "score.criterion=addition", "select.refine=none"]
    changes += ["score.stage={batch_size=2, lr=1e-3, mixer_lr=1e-3}"]
    pipeline = Pipeline(load_recipe(folder / "recipe.toml", changes), folder / "run2")
    scores = pipeline.chooser().scores()
    assert [row["steps"] for row in scores["layers"]] == [2, 2, 2]
    assert pipeline.choose().layers == scores["kept"]


def test_any_criterion_may_choose_and_compare(folder):
    changes = ["score.criterion=act_mse", "select.refine=none"]
    changes += ["compare.plans=['uniform:all', 'halo', 'mine', 'smart']"]
    changes += ["compare.scores={mine={criterion='ar', options={task='recall.jsonl'}}}"]
    recipe = load_recipe(folder / "recipe.toml", changes)
    pipeline = Pipeline(recipe, folder / "run")
    assert pipeline.choose().layers == pipeline.chooser().scores()["kept"]
    rivals = pipeline.chooser().rivals(recipe.compare.plans)
    assert list(rivals) == ["uniform-0", "uniform-1", "uniform-2", "halo", "mine", "smart"]
    assert [rivals[f"uniform-{offset}"] for offset in range(3)] == [[0], [1], [2]]
    scores = {path.stem: json.loads(path.read_text()) for path in (folder / "run" / "score").glob("*.json")}
    assert sorted(scores) == ["act_mse", "halo", "mine", "smart"]
    assert "arXiv 2601.22156" in scores["halo"]["source"]
    assert scores["act_mse"]["cost"]["tokens"] == 8 * 16
    assert len(pipeline.chooser().scores("mine")["layers"]) == 3
    console = Console(file=io.StringIO(), width=100)
    print_scores(console, scores["halo"])
    assert "Recall over quality (HALO)" in console.file.getvalue()


def test_unknown_and_wrong_keys_are_named(folder):
    with pytest.raises(ValueError, match=r"unknown key 'select.kepe', did you mean 'keep'"):
        load_recipe(folder / "recipe.toml", ["select.kepe=2"])
    with pytest.raises(ValueError, match="exactly one of `keep`"):
        load_recipe(folder / "recipe.toml", ["select.fraction=0.5"])
    with pytest.raises(ValueError, match="expected KEY=VALUE"):
        load_recipe(folder / "recipe.toml", ["select.keep"])
    with pytest.raises(ValueError, match=r"unknown key 'compare.scores.mine.held_out_sequences'"):
        load_recipe(folder / "recipe.toml", ["compare.scores.mine.held_out_sequences=4"])


def test_a_directory_belongs_to_one_recipe(folder):
    RunDirectory(folder / "run", load_recipe(folder / "recipe.toml")).claim()
    before = (folder / "run" / "recipe.toml").read_text()
    with pytest.raises(ValueError, match=r"select.keep: 1 there, 2 now"):
        RunDirectory(folder / "run", load_recipe(folder / "recipe.toml", ["select.keep=2"]))
    assert (folder / "run" / "recipe.toml").read_text() == before
    with pytest.raises(ValueError, match="holds no recipe"):
        RunDirectory(folder / "teacher", load_recipe(folder / "recipe.toml"))


FAULTS = {
    "keep": (["select.keep=7"], "select.keep is 7, the teacher has 3 layers"),
    "layers": (["select={strategy='explicit', layers=[9]}"], "layer 9 does not exist"),
    "strategy": (["select.strategy=best"], "select.strategy: unknown 'best'; known are auto, ranking"),
    "proposal": (
        ["select.strategy=auto", "select.proposals=['gaets']"],
        "select.proposals: unknown 'gaets'; known are",
    ),
    "window": (
        ["select.strategy=auto", "select.window=16"],
        "select.window is 16, expected fewer tokens than the 16 of",
    ),
    "finalists": (
        ["select.strategy=auto", "select.finalists=3"],
        r"\[select\]: select.finalists is 3, which trains candidates: give `tokens` in \[select.stage\]",
    ),
    "finalists' stage": (
        ["select={keep=1, strategy='auto', finalists=3, stage={tokns=3}}"],
        r"\[select\]: .*unknown field 'tokns'",
    ),
    "finalists' sequences": (
        ["select={keep=1, strategy='auto', finalists=3, confidence=0.999999, stage={tokens=999, batch_size=2}}"],
        r"\[select\]: Race: 8 held-out sequences were scored; the verdicts of this race",
    ),
    "plan": (["compare.plans=['best']"], "compare.plans: unknown 'best'"),
    "plan argument": (["compare.plans=['random:x']"], "expected uniform:OFFSET or random:SEED"),
    "stage field": (["match.tokns=5"], r"\[match\]: Stage: unknown field 'tokns', the nearest is 'tokens'"),
    "stage preset": (["align.preset=mine"], r"\[align\]: preset: name is 'mine'"),
    "stage loss": (["match.loss=l2_norm"], r"\[match\]: Stage: loss is 'l2_norm', expected one of forward"),
    "candidates": (["score.max_steps=1", "score.stage={tokns=3}"], r"\[score.stage\]: .*unknown field 'tokns'"),
    "mixer": (["convert.mixer=mamba"], "unknown mixer 'mamba'"),
    "option": (["convert.options={short_conv=3}"], "unknown option short_conv"),
    "criterion": (
        ["score.criterion=hallo"],
        r"\[score\]: criterion is 'hallo', the nearest is 'halo'; known are addition",
    ),
    "criterion's option": (["score.options={steps=2}"], r"\[score\]: criterion 'removal': unknown key 'steps'"),
    "criterion's task": (
        ["score.criterion=ar", "score.options={task='nedle'}"],
        r"\[score\]: unknown recall task 'nedle'",
    ),
    "rival's criterion": (
        ["compare.plans=['mine']", "compare.scores={mine={criterion='halo', options={recall='f1'}}}"],
        r"\[compare.scores.mine\]: criterion 'halo': recall: .*'accuracy'",
    ),
    "teacher": (["teacher=nowhere"], "teacher 'nowhere' cannot be loaded"),
    "source": (["data.sources=['no.jsonl']"], "no file or folder 'no.jsonl'"),
    "length": (["data.seq_len=5000"], "one sequence needs 5000"),
    "length of a stage": (["match.seq_len=5000"], "one sequence needs 5000"),
    "held out": (["eval.held_out_sequences=500"], "500 sequences of 16 tokens are needed, the held-out split has 25"),
    "held out for scores": (["score.held_out_sequences=500"], "500 sequences of 16 tokens are needed"),
    "confidence": (
        ["score={mode='racing', held_out_sequences=8, confidence=0.999999999, max_steps=4, steps_per_round=2}"],
        r"\[score\]: Race: 8 held-out sequences were scored; .* confidence 0.999999999 need at least \d\d",
    ),
    "recall": (["eval.recall=['nedle']"], "unknown recall task 'nedle'"),
    "recall length": (["eval.recall=['needle']", "eval.recall_length=16"], "needle: 4 facts and the question need"),
    "recall in words": (["eval.recall=['phonebook']"], "is unknown to the tokenizer"),
    "recall depth": (["eval.recall_depths=[2]"], "eval.recall_depths.0: .* less than or equal to 1"),
    "scoring": (["eval.scoring=guess"], "eval.scoring: Input should be .generate. or .forced."),
    "cost": (["eval.cost_lengths=[0]"], "eval.cost_lengths.0: Input should be greater than 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_recipe_shows_is_found_before_anything_is_trained(folder, fault, monkeypatch):
    changes, message = FAULTS[fault]
    monkeypatch.setattr(Pipeline, "_train", lambda *arguments: pytest.fail("trained"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Pipeline(load_recipe(folder / "recipe.toml", changes), folder / "run").run()
    # The directory is still free for the mended recipe.
    RunDirectory(folder / "run", load_recipe(folder / "recipe.toml", ["seed=1"])).claim()


def test_a_teacher_of_an_unknown_family_is_named(folder):
    config = json.loads((folder / "teacher" / "config.json").read_text())
    (folder / "teacher" / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="family 'gpt2' is not supported; supported are llama"):
        Pipeline(load_recipe(folder / "recipe.toml"), folder / "run").run()


def test_a_tokenizer_that_does_not_fit_the_vocabulary_is_named(folder):
    tokenizer = json.loads((folder / "teacher" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["w3"] = 31
    (folder / "teacher" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"token id 31 in corpus.jsonl:\d+ is outside the model's vocabulary of 31"):
        Pipeline(load_recipe(folder / "recipe.toml"), folder / "run").run()


def test_a_stage_that_diverges_keeps_its_checkpoint_and_can_go_on(folder, monkeypatch):
    """NaN weights in the middle of align: the message, and the same command finishes when the cause is gone."""
    recipe = load_recipe(folder / "recipe.toml", ["align.tokens=128", "align.checkpoint_every=1"])
    step, calls = Trainer._train_on, []

    def broken(trainer, batch):
        calls.append(batch)
        if len(calls) == 3:
            with torch.no_grad():
                next(iter(trainer.parameters.values())).fill_(torch.nan)
        return step(trainer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_on", broken)
        with pytest.raises(NonFiniteLoss, match=r"loss is nan at step 2 in layer 0 .documents corpus.jsonl:\d+"):
            Pipeline(recipe, folder / "run").align()
    assert [path.name for path in (folder / "run" / "align" / "checkpoint").iterdir()] == ["step-00000002"]
    resumed, whole = (Pipeline(recipe, folder / name).align().state_dict() for name in ("run", "whole"))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())


@pytest.mark.parametrize("at", [0, 3])
def test_a_full_disk_leaves_no_half_model(folder, monkeypatch, at):
    """No space for one of the model's files: what was there stays, and the same command goes on afterwards."""
    recipe = load_recipe(folder / "recipe.toml")
    RunDirectory(folder / "run", recipe).claim()
    recipe_file = (folder / "run" / "recipe.toml").read_bytes()
    synced = []

    def full(path):
        synced.append(path)
        if len(synced) == at + 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("hybridattn.run.pipeline.sync", full)
        with pytest.raises(OSError, match=r"cannot write .*align/model: .*No space left.*free some space"):
            Pipeline(recipe, folder / "run").align()
    assert sorted(path.name for path in (folder / "run" / "align").iterdir()) == ["checkpoint", "log.jsonl"]
    assert (folder / "run" / "recipe.toml").read_bytes() == recipe_file
    monkeypatch.setattr(Trainer, "_train_on", lambda *arguments: pytest.fail("trained again"))
    Pipeline(recipe, folder / "run").align()
    assert (folder / "run" / "align" / "model" / "model.safetensors").exists()


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "selection.json"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_that_is_no_table_is_named(folder):
    with pytest.raises(ValueError, match=r"--set name\.x=3: 'name' is a key, not a table"):
        load_recipe(folder / "recipe.toml", ["name.x=3"])
