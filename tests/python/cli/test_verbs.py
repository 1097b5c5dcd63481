"""The command line as people use it: help, messages, exit codes. What verbs compute is tested in tests/python/run."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from hybridattn.cli.app import app, main
from hybridattn.distill import NonFiniteLoss

VERBS = ["run", "convert", "align", "score", "select", "match", "finetune", "eval", "report", "estimate", "info"]


def test_help_lists_every_verb_with_what_it_does():
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for verb in VERBS:
        assert verb in result.output
    assert "Choose the layers that keep softmax" in result.output


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb):
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_info_names_versions_and_instruction_sets():
    result = CliRunner().invoke(app, ["info"])
    assert result.exit_code == 0
    for word in ("torch", "transformers", "hybridattn"):
        assert word in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "absent.toml"], "absent.toml"),
        (["run", "{folder}/recipe.toml"], "unknown key 'algin'"),
        (["report", "{folder}/good.toml", "--run-dir", "{folder}/new"], "selection.json is missing"),
        (["finetune", "{folder}/good.toml", "--run-dir", "{folder}/other"], "no [finetune] table"),
        (["align", "{folder}/good.toml", "--run-dir", "{folder}/third"], "teacher 't' cannot be loaded"),
        (["score", "{folder}/good.toml", "--mode", "jacard", "--run-dir", "{folder}/fifth"], "score.mode"),
        (["select", "{folder}/good.toml", "--mode", "jacard", "--run-dir", "{folder}/sixth"], "score.mode"),
        (
            ["score", "{folder}/good.toml", "--jaccard-threshold", "2", "--run-dir", "{folder}/7"],
            "score.jaccard_threshold",
        ),
        (["score", "{folder}/good.toml", "--jaccard-window", "0", "--run-dir", "{folder}/8"], "score.jaccard_window"),
        (["run", "{folder}/good.toml", "--set", "select"], "expected KEY=VALUE"),
        (["select", "{folder}/good.toml", "--finalists", "-1", "--run-dir", "{folder}/fourth"], "select.finalists"),
        (["run", "{folder}/good.toml", "--run-dir", "{folder}/full"], "holds no recipe"),
    ],
)
def test_errors_are_one_message_and_status_2(tmp_path, capsys, monkeypatch, arguments, message):
    good = 'name = "x"\nteacher = "t"\n[data]\nsources = ["a.txt"]\n[select]\nkeep = 1\n'
    (tmp_path / "good.toml").write_text(good)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    (tmp_path / "recipe.toml").write_text(good + "[algin]\ntokens = 3\n")
    monkeypatch.setattr(sys, "argv", ["hybridattn", *(word.format(folder=tmp_path) for word in arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    written = " ".join(capsys.readouterr().err.split())
    assert message in written
    assert "Traceback" not in written
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("error", [NonFiniteLoss("the loss is nan"), OSError(28, "No space left on device")])
def test_a_stage_that_stops_ends_with_its_message(monkeypatch, capsys, error):
    def fail():
        raise error

    monkeypatch.setattr("hybridattn.cli.app.app", fail)
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert str(error) in " ".join(capsys.readouterr().err.split())


def test_the_command_is_installed():
    done = subprocess.run([sys.executable, "-m", "hybridattn", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
