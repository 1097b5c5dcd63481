"""`hybridattn eval --model`: a folder measured from the command line."""

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import hybridattn as ha
from hybridattn.cli.app import main

TEACHER = Path(__file__).parents[3] / "examples" / "tiny_teacher" / "teacher"


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid") / "out"
    teacher = AutoModelForCausalLM.from_pretrained(TEACHER, dtype="float32")
    ha.keep_softmax(ha.convert(teacher, verbose=False), teacher, [0, 2, 3]).save_pretrained(folder)
    return folder


def called(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["hybridattn", "eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    return exit_.value.code


def test_a_hybrid_beside_its_teacher(tmp_path, hybrid, monkeypatch, capsys):
    text = "<k5><v9><k7><v3><k1><v4>"
    rows = [
        {"text": f"{text}<k{k}><v{v}>", "answers": [[28, 32]], "length": 8, "depth": d}
        for k, v, d in ((5, 9, 0), (1, 4, 1))
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.txt").write_text("A page of text that nobody trained on. " * 60)
    arguments = [
        "--model", hybrid, "--teacher", TEACHER, "--tasks", f"{tmp_path}/pairs.jsonl,passkey", "--lengths", "200,260",
        "--depths", "0,1", "--items", 1, "--text", tmp_path / "own.txt", "--cost", "--out", tmp_path / "found.json",
    ]  # fmt: skip
    assert called(monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    assert "pairs by length and depth" in printed
    assert "cache MiB" in printed
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["models"]) == ["teacher", "hybrid"]
    assert (found["teacher"], found["mixer"], found["num_layers"]) == ("teacher", "gated_deltanet", 8)
    assert found["models"]["hybrid"]["layers"] == [0, 2, 3]
    assert found["models"]["teacher"]["kl"] == pytest.approx(0, abs=1e-6)
    assert found["models"]["hybrid"]["kl"] > 0
    pairs = found["models"]["teacher"]["recall"]["pairs"]
    assert [(c["length"], c["depth"], c["accuracy"]) for c in pairs["cells"]] == [(8, 0, 1), (8, 1, 1)]
    assert [(c["length"], c["depth"]) for c in found["models"]["hybrid"]["recall"]["passkey"]["cells"]] == [
        (200, 0), (200, 1), (260, 0), (260, 1)
    ]  # fmt: skip
    assert [p["length"] for p in found["cost"]["models"]["hybrid"]["points"]] == [200, 260]


def test_a_plain_model_alone_is_measured_without_a_teacher(tmp_path, monkeypatch, capsys):
    out = tmp_path / "found.json"
    assert (
        called(monkeypatch, "--model", TEACHER, "--tasks", "key_value", "--lengths", 400, "--items", 1, "--out", out)
        == 0
    )
    found = json.loads(out.read_text())
    assert list(found["models"]) == ["model"]
    assert "kl" not in found["models"]["model"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a recipe or --model"),
        (["recipe.toml", "--model", TEACHER], "give either a recipe or --model"),
        (["recipe.toml", "--lm-eval", "piqa"], "--lm-eval goes with --model"),
        (["--model", TEACHER, "--set", "a=1"], "--run-dir and --set go with a recipe"),
        (["--model", TEACHER], "nothing to measure"),
        (["--model", TEACHER, "--tasks", "nedle"], "unknown recall task 'nedle'"),
        (
            ["--model", TEACHER, "--tasks", "needle", "--lengths", "5,x"],
            "--lengths: expected whole numbers with commas",
        ),
        (["--model", TEACHER, "--tasks", "needle", "--lengths", "64"], "needle: 4 facts and the question need"),
        (["--model", TEACHER, "--tasks", "needle", "--depths", "2"], "depth 2.0 is outside 0 to 1"),
        (["--model", TEACHER, "--tasks", "key_value", "--scoring", "x"], "scoring is 'x', expected generate or forced"),
        (["--model", TEACHER, "--cost", "--dtype", "float3"], "unknown dtype 'float3'"),
        (["--model", TEACHER, "--cost", "--out", "{folder}/no/found.json"], "there is no folder"),
        (["--model", "{folder}", "--cost"], "no tokenizer in {folder}"),
        (["--model", "{folder}/untold", "--teacher", TEACHER, "--cost"], "holds no model that Transformers loads"),
    ],
)
def test_what_cannot_be_measured_is_named(tmp_path, monkeypatch, capsys, arguments, message):
    code = called(monkeypatch, *(str(word).format(folder=tmp_path) for word in arguments))
    assert code == 2
    written = "".join(capsys.readouterr().err.split())
    assert "".join(message.format(folder=tmp_path).split()) in written
    assert "Traceback" not in written


def test_a_missing_extra_ends_with_what_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert called(monkeypatch, "--model", TEACHER, "--lm-eval", "piqa") == 2
    assert "pipinstall'hybridattn[lm-eval]'" in "".join(capsys.readouterr().err.split())


def test_another_vocabulary_is_named(tmp_path, hybrid, monkeypatch, capsys):
    config = AutoModelForCausalLM.from_pretrained(TEACHER).config
    config.vocab_size, config.num_hidden_layers = 99, 1
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(TEACHER).save_pretrained(tmp_path / "other")
    assert called(monkeypatch, "--model", hybrid, "--teacher", tmp_path / "other", "--cost") == 2
    assert "isnottheteacherof" in "".join(capsys.readouterr().err.split())
