"""A folder with a recipe, a corpus, a recall task and a tiny random teacher."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
strategy = "ranking"
[match]
tokens = 64
batch_size = 2
[eval]
held_out_sequences = 8
recall = ["recall.jsonl"]
cost_lengths = [8, 16]
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
    asked = [{"text": "w1 w2 w1 w2", "answers": [[9, 11]], "depth": depth} for depth in (0, 1)]
    (tmp_path / "recall.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path
