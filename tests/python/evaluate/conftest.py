"""A tokenizer of characters, and models whose answers are known."""

from itertools import takewhile
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import GenerationMixin, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel


@pytest.fixture
def small_model():
    def build() -> LlamaForCausalLM:
        config = LlamaConfig(
            vocab_size=29, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        )
        return LlamaForCausalLM(config).eval()

    return build


@pytest.fixture(scope="session")
def characters() -> PreTrainedTokenizerFast:
    """Every ASCII character is a token of its own code."""
    words = Tokenizer(models.WordLevel({chr(i): i for i in range(128)}, unk_token="\1"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="\0", unk_token="\1")


class Oracle(PreTrainedModel, GenerationMixin):
    """Continues texts that it knows, and says EOS after anything else. Token = ASCII code."""

    config_class = LlamaConfig

    def __init__(self, texts) -> None:
        super().__init__(LlamaConfig(vocab_size=128, hidden_size=128, eos_token_id=0, bos_token_id=None))
        self.texts = list(texts)
        self.head = nn.Linear(128, 128, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(128))

    def model(self, input_ids, attention_mask=None, **kwargs):
        rows = []
        for index, row in enumerate(input_ids.tolist()):
            start = 0 if attention_mask is None else len(row) - int(attention_mask[index].sum())
            given = "".join(map(chr, row[start:]))
            following = [0] * len(row)
            for text in self.texts:
                known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text[:-1], given, strict=False)))
                following[start : start + known] = map(ord, text[1 : known + 1])
            rows.append(nn.functional.one_hot(torch.tensor(following), 128).float())
        return SimpleNamespace(last_hidden_state=torch.stack(rows))

    def forward(self, input_ids, attention_mask, **kwargs):
        hidden = self.model(input_ids, attention_mask).last_hidden_state[:, -1:]
        return CausalLMOutputWithPast(logits=self.head(hidden))

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def get_output_embeddings(self):
        return self.head


@pytest.fixture
def oracle():
    return Oracle
