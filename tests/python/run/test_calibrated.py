"""`[convert] init = "calibrated"`: in the run, its plan and ledger, in what an estimate counts, and on the command line."""

import json
import sys

import pytest
import torch

from hybridattn.cli.app import main
from hybridattn.run import Pipeline, estimate, load_recipe

CALIBRATED = ["convert.init=calibrated", "convert.calibration_sequences=3"]


@pytest.mark.parametrize("measure", [True, False])
def test_a_calibrated_run_starts_elsewhere_and_costs_what_was_estimated(folder, measure):
    recipe, plain = (load_recipe(folder / "recipe.toml", changes) for changes in (CALIBRATED, []))
    found = {step.step: step for step in estimate(recipe, folder / "run", measure=measure).steps}
    assert "calibrate" not in {step.step for step in estimate(plain, folder / "other", measure=False).steps}
    pipeline = Pipeline(recipe, folder / "run")
    student = pipeline.convert()
    default = Pipeline(plain, folder / "other").convert()
    assert not torch.equal(student.mixers()[0].A_log, default.mixers()[0].A_log)
    plan = json.loads((folder / "run" / "plan.json").read_text())
    assert {entry["target"] for entry in plan if entry["action"] == "calibrated" and entry["layer"] == 1} == {
        "A_log", "b_proj.weight", "g_proj.weight", "q_proj.weight", "k_proj.weight",
    }  # fmt: skip
    row = json.loads((folder / "run" / "ledger.json").read_text())["entries"][0]
    assert (row["step"], row["tokens"], row["flops"]) == ("calibrate", 3 * 16, found["calibrate"].flops)
    assert (found["calibrate"].seconds is not None) == measure
    assert found["calibrate"].tokens == 3 * 16
    assert found["calibrate"].bound == ""
    again = Pipeline(load_recipe(folder / "recipe.toml", CALIBRATED), folder / "again").convert()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, student.state_dict()[name]), name


def test_the_verb_prints_what_was_calibrated(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["hybridattn", "convert", "recipe.toml", "--init", "calibrated"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 0
    assert "calibrated   - -> A_log" in capsys.readouterr().out


def test_a_mixer_without_gates_is_an_error_before_anything_is_trained(folder):
    changes = [*CALIBRATED, "convert.mixer=sliding_window", "convert.options={window=4}"]
    pipeline = Pipeline(load_recipe(folder / "recipe.toml", changes), folder / "run")
    with pytest.raises(ValueError, match="sliding_window in layer 0 has no gates; leave calibration out"):
        pipeline.align()
    assert not (folder / "run" / "align").exists()
