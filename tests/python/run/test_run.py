"""A whole run on a tiny random teacher from recipe to report; recipes and run directories that do not fit."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hybridattn.run import Pipeline, RunDirectory, load_recipe

RECIPE = """
name = "small"
teacher = "teacher"
[data]
sources = ["corpus.jsonl"]
seq_len = 16
held_out = 0.3
[align]
tokens = 64
batch_size = 2
[score]
held_out_sequences = 8
[select]
keep = 1
[match]
tokens = 64
batch_size = 2
[eval]
held_out_sequences = 8
recall = ["recall.jsonl"]
[compare]
plans = ["uniform:1", "all_linear", "addition"]
"""


@pytest.fixture
def folder(tmp_path):
    words = {f"w{i}": i + 1 for i in range(30)} | {"</s>": 0}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(tmp_path / "teacher")
    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, eos_token_id=0, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "teacher")
    generator = torch.Generator().manual_seed(0)
    rows = [" ".join(f"w{i}" for i in torch.randint(0, 30, (22,), generator=generator).tolist()) for _ in range(60)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (tmp_path / "recall.jsonl").write_text(json.dumps({"text": "w1 w2 w1 w2", "answers": [[9, 11]]}) + "\n")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def test_a_run_from_recipe_to_report(folder):
    recipe = load_recipe(folder / "recipe.toml")
    report = Pipeline(recipe, folder / "run").run()
    page = report.read_text()
    assert "<svg" in page
    assert "Which layers keep softmax" in page
    assert "http" not in page.split("</style>")[0]
    result = json.loads((folder / "run" / "eval.json").read_text())
    assert list(result["models"]) == ["teacher", "hybrid", "uniform-1", "all_linear", "addition"]
    assert result["models"]["teacher"]["kl"] == pytest.approx(0, abs=1e-6)
    assert len(result["models"]["hybrid"]["layers"]) == 1
    ledger = (folder / "run" / "ledger.json").read_text()
    # A second run has nothing to do and spends nothing.
    assert Pipeline(recipe, folder / "run").run() == report
    assert (folder / "run" / "ledger.json").read_text() == ledger


def test_trained_candidates_are_scored(folder):
    changes = ["score.max_steps=2", "score.steps_per_round=1", "score.criterion=addition", "select.refine=none"]
    changes += ["score.stage={batch_size=2, lr=1e-3, mixer_lr=1e-3}"]
    pipeline = Pipeline(load_recipe(folder / "recipe.toml", changes), folder / "run2")
    scores = pipeline.chooser().scores()
    assert [row["steps"] for row in scores["layers"]] == [2, 2, 2]
    assert pipeline.choose().layers == scores["kept"]


def test_unknown_and_wrong_keys_are_named(folder):
    with pytest.raises(ValueError, match=r"unknown key 'select.kepe', did you mean 'keep'"):
        load_recipe(folder / "recipe.toml", ["select.kepe=2"])
    with pytest.raises(ValueError, match="exactly one of `keep`"):
        load_recipe(folder / "recipe.toml", ["select.fraction=0.5"])
    with pytest.raises(ValueError, match="expected KEY=VALUE"):
        load_recipe(folder / "recipe.toml", ["select.keep"])


def test_a_directory_belongs_to_one_recipe(folder):
    RunDirectory(folder / "run", load_recipe(folder / "recipe.toml"))
    before = (folder / "run" / "recipe.toml").read_text()
    with pytest.raises(ValueError, match=r"select.keep: 1 there, 2 now"):
        RunDirectory(folder / "run", load_recipe(folder / "recipe.toml", ["select.keep=2"]))
    assert (folder / "run" / "recipe.toml").read_text() == before
    with pytest.raises(ValueError, match="holds no recipe"):
        RunDirectory(folder / "teacher", load_recipe(folder / "recipe.toml"))


def test_keep_out_of_range_is_named(folder):
    pipeline = Pipeline(load_recipe(folder / "recipe.toml", ["select.keep=7"]), folder / "run3")
    with pytest.raises(ValueError, match="the teacher has 3 layers"):
        pipeline.choose()
