"""The estimate of a run against the ledger of the same run, finished, half finished and not begun."""

import json
import sys
import tempfile

import pytest
import torch

from hybridattn.cli.app import main
from hybridattn.run import Pipeline, estimate, load_recipe
from hybridattn.run.probe import saved_for_backward

CHANGES = [
    "select={keep=1, strategy='ranking', refine='none'}",
    "finetune={tokens=64, batch_size=2, seq_len=32}",
    "compare={plans=['uniform:1', 'all_linear', 'act_mse', 'lm_ppl', 'avg_s1', 'trained'], "
    "scores={trained={criterion='addition', max_steps=4, steps_per_round=2, stage={batch_size=2}}}}",
]


def files(folder):
    return {path: path.stat().st_mtime_ns if path.is_file() else 0 for path in folder.rglob("*")}


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The system's folder for temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_tokens_and_operations_are_those_of_the_ledger(folder, temporary):
    recipe, run = load_recipe(folder / "recipe.toml", CHANGES), folder / "run"
    before = files(folder)
    found = estimate(recipe, run)
    assert files(folder) == before  # neither the run directory nor a temporary file
    Pipeline(recipe, run).run()
    ledger = {row["step"]: row for row in json.loads((run / "ledger.json").read_text())["entries"]}
    steps = {step.step: step for step in found.steps}
    assert {"align", "match", "finetune", "score (removal)", "score (trained)", "all_linear finetune"} <= ledger.keys()
    assert ledger.keys() <= steps.keys()
    for name, row in ledger.items():
        assert steps[name].tokens == row["tokens"], name
        assert steps[name].flops == pytest.approx(row["flops"], rel=1e-9), name
        assert steps[name].bound == "", name
    # Every model is evaluated; scored rivals are trained unless they turn out to be another plan.
    models = json.loads((run / "eval.json").read_text())["models"]
    assert [name for name in steps if name.startswith("eval ")] == [f"eval {name}" for name in models]
    assert all(step.seconds > 0 for step in found.steps)
    assert found.to_json()["total"]["flops"] == pytest.approx(sum(step.flops for step in found.steps))

    before = files(folder)
    assert estimate(recipe, run).steps == []
    assert files(folder) == before


def test_what_is_finished_is_not_counted(folder):
    """Align is over, match was interrupted after the first of two steps."""
    recipe = load_recipe(folder / "recipe.toml", ["match.checkpoint_every=1"])
    run = folder / "run"
    whole = {step.step: step for step in estimate(recipe, run, measure=False).steps}
    pipeline = Pipeline(recipe, run)
    choice = pipeline.choose()
    checkpoint = run / "match" / "checkpoint" / "step-00000001"
    checkpoint.mkdir(parents=True)
    left = {step.step: step for step in estimate(recipe, run, measure=False).steps}
    assert not [name for name in left if name == "align" or name.startswith("select")]
    assert left["match"].tokens == whole["match"].tokens - 32
    assert left["all_linear match"] == whole["all_linear match"]
    assert Pipeline(recipe, run).choose() == choice
    with pytest.raises(ValueError, match="belongs to another recipe"):
        estimate(load_recipe(folder / "recipe.toml", ["seed=1"]), run)


def test_without_measuring_there_are_no_times(folder):
    recipe = load_recipe(folder / "recipe.toml", CHANGES)
    found = estimate(recipe, folder / "run", measure=False)
    assert found.seconds is None
    assert all(step.seconds is None for step in found.steps)
    steps = {step.step: step for step in found.steps}
    memory, teacher = steps["match"].memory, steps["eval teacher"].memory.parameters
    assert memory.gradients > teacher  # mixers have more weights than attention
    assert memory.optimizer == 2 * memory.gradients
    assert memory.parameters == teacher + memory.gradients
    twice = load_recipe(folder / "recipe.toml", [*CHANGES, "match.batch_size=4"])
    more = {step.step: step for step in estimate(twice, folder / "run", measure=False).steps}
    assert more["match"].memory.activations == 2 * memory.activations > 0
    assert found.disk > 2 * memory.gradients


@pytest.mark.parametrize("mode", ["racing", "jaccard"])
def test_a_race_is_counted_to_its_end(folder, mode):
    changes = [f"score={{criterion='addition', mode='{mode}', held_out_sequences=16, max_steps=4, steps_per_round=1}}"]
    changes += ["score.jaccard_window=1"]
    changes += ["score.stage={batch_size=2}", "select={keep=1, strategy='ranking', refine='none'}"]
    recipe = load_recipe(folder / "recipe.toml", changes)
    steps = {step.step: step for step in estimate(recipe, folder / "run", measure=False).steps}
    pipeline = Pipeline(recipe, folder / "run")
    spent = pipeline.chooser().scores()["cost"]
    assert steps["score (addition)"].bound == "at most"
    assert 0 < spent["tokens"] <= steps["score (addition)"].tokens == 3 * (4 * 32 + 4 * 16 * 16)
    assert steps["score (addition)"].disk_while > 0  # candidates that wait for their turn


@pytest.mark.parametrize("loss", ["kl", "recall_kl"])
def test_finalists_are_counted_to_the_end_of_their_training(folder, loss):
    """Two close finalists are trained to the end, so the estimate's most is what they cost."""
    changes = ["select={keep=1, strategy='auto', finalists=2, rounds=2, frontier=false, stage={tokens=128}}"]
    changes += ["score={held_out_sequences=16, stage={batch_size=2}}", "compare.plans=[]"]
    changes += [f"select.loss={loss}"]
    recipe = load_recipe(folder / "recipe.toml", changes)
    steps = {step.step: step for step in estimate(recipe, folder / "run").steps}
    pipeline = Pipeline(recipe, folder / "run")
    pipeline.choose()
    ledger = {row["step"]: row for row in pipeline.directory.read("ledger.json")["entries"]}
    found = steps["select (finalists)"]
    assert found.bound == "at most"
    assert found.tokens == ledger["select (finalists)"]["tokens"] == 2 * (128 + 2 * 16 * 16)
    assert found.flops == pytest.approx(ledger["select (finalists)"]["flops"], rel=1e-9)
    assert found.seconds > 0
    assert found.disk_while > 0  # the finalist that waits for its turn
    assert "select (finalists)" not in {step.step for step in estimate(recipe, folder / "run", measure=False).steps}


def test_saved_tensors_are_counted_once_and_without_weights():
    layer = torch.nn.Linear(8, 4, bias=False)
    x = torch.randn(3, 8)
    with saved_for_backward([layer]) as peak:
        hidden = layer(x).exp()
        (hidden * hidden.view(3, 4)).sum().backward()
    assert peak() == x.nbytes + hidden.nbytes


def test_the_verb_prints_steps_and_finds_faults_first(folder, monkeypatch, capsys):
    arguments = [
        "hybridattn",
        "estimate",
        str(folder / "recipe.toml"),
        "--run-dir",
        str(folder / "run"),
        "--no-measure",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "align" in printed
    assert "models and checkpoints" in printed
    monkeypatch.setattr(sys, "argv", [*arguments, "--set", "match.tokns=5"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "the nearest is 'tokens'" in " ".join(capsys.readouterr().err.split())
    assert not (folder / "run").exists()
