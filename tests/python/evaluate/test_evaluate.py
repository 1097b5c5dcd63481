"""Quality and recall on models whose numbers are known."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hybridattn import evaluate
from hybridattn.data import Batch
from hybridattn.evaluate import RecallItem, RecallTask


def small_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=29, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def character_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({chr(i): i for i in range(128)}, unk_token="\1"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="\0")


class Parrot(nn.Module):
    """A model whose most likely next token is always the one that it was told to say after the current one."""

    def __init__(self, says: dict[str, str]) -> None:
        super().__init__()
        self.table = nn.Embedding(128, 128)
        self.head = nn.Linear(128, 128, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(128))
            self.table.weight.zero_()
            for current, following in says.items():
                self.table.weight[ord(current), ord(following)] = 1.0

    def model(self, input_ids, **kwargs):
        return SimpleNamespace(last_hidden_state=self.table(input_ids))

    def get_output_embeddings(self):
        return self.head


def test_a_model_has_no_divergence_from_itself():
    model = small_model()
    batch = Batch(torch.randint(0, 29, (3, 12)))
    assert evaluate.kl(model, model, [batch]).tolist() == [0.0] * 3
    other = evaluate.kl(small_model(), model, [batch, batch])
    assert (other > 0).all()
    assert torch.equal(other[:3], other[3:])


def test_divergence_is_that_of_the_definition_over_counted_tokens():
    student, teacher = small_model(), small_model()
    mask = torch.rand(3, 12) < 0.5
    mask[:, 0] = True
    batch = Batch(torch.randint(0, 29, (3, 12)), loss_mask=mask)
    p, q = (model(batch.input_ids).logits.double().log_softmax(-1) for model in (teacher, student))
    per_token = (p.exp() * (p - q)).sum(-1)
    expected = [(row[keep]).mean().item() for row, keep in zip(per_token, mask, strict=True)]
    assert evaluate.kl(student, teacher, [batch]).tolist() == pytest.approx(expected, rel=1e-4)


def test_perplexity_is_transformers_loss():
    model = small_model()
    ids = torch.randint(0, 29, (3, 12))
    assert math.log(evaluate.perplexity(model, [Batch(ids)])) == pytest.approx(
        model(ids, labels=ids).loss.item(), rel=1e-5
    )


def test_perplexity_does_not_predict_across_documents():
    model = small_model()
    ids = torch.randint(0, 29, (1, 12))
    positions = torch.tensor([[*range(5), *range(7)]])
    packed = evaluate.perplexity(model, [Batch(ids, positions, torch.tensor([0, 5, 12]))])
    parts = [model(part, labels=part).loss.item() for part in (ids[:, :5], ids[:, 5:])]
    assert math.log(packed) == pytest.approx((4 * parts[0] + 6 * parts[1]) / 10, rel=1e-5)
    with pytest.raises(ValueError, match="no token with a next token"):
        evaluate.perplexity(model, [Batch(ids[:, :1])])


def test_recall_counts_whole_answers():
    model = Parrot({"a": "b", "b": "c", "c": "a", "x": "y"})
    task = RecallTask("t", (RecallItem("abcab", ((1, 3), (4, 5))), RecallItem("xyxz", ((1, 2), (3, 4)))))
    result = evaluate.score_recall(model, character_tokenizer(), task, batch_size=1)
    assert (result.answers, result.correct) == (4, 3), "y after x is right, z after x is not"
    wrong = RecallTask("t", (RecallItem("abx", ((1, 3),)),))
    assert evaluate.score_recall(model, character_tokenizer(), wrong).correct == 0, "half an answer is none"
    batched = evaluate.score_recall(model, character_tokenizer(), task, batch_size=8)
    assert batched == result, "padding changes nothing"


def test_intervals_hold_the_share():
    low, high = evaluate.RecallResult("t", 20, 20).interval
    assert high == pytest.approx(1)
    assert low == pytest.approx(0.8389, abs=1e-4)  # Wilson's interval for 20 of 20
    low, high = evaluate.RecallResult("t", 10, 5).interval
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)


@pytest.mark.parametrize("name", ["needle", "key_value"])
def test_tasks_ask_for_what_they_told(name):
    tokenizer = character_tokenizer()
    task = evaluate.build_task(name, tokenizer, 600, 5, seed=3)
    assert task == evaluate.build_task(name, tokenizer, 600, 5, seed=3)
    assert task != evaluate.build_task(name, tokenizer, 600, 5, seed=4)
    for item in task.items:
        assert len(item.text) <= 600
        for start, end in item.answers:
            answer = item.text[start:end]
            assert answer in item.text[:start], "the answer stands in the context"
    with pytest.raises(ValueError, match=name):
        evaluate.build_task(name, tokenizer, 20, 5, seed=3)


def test_files_of_tasks_are_checked(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"text": "w1 w2", "answers": [[3, 5]]}) + "\n")
    assert evaluate.load_task(path) == RecallTask("mine", (RecallItem("w1 w2", ((3, 5),)),))
    for line, message in (
        ('{"text": "abc", "answers": [[1, 9]]}', "line 2: each answer needs"),
        ('{"text": "abc"}', "line 2: expected"),
        ("not json", "line 2: expected"),
    ):
        path.write_text('{"text": "abc", "answers": [[1, 2]]}\n' + line + "\n")
        with pytest.raises(ValueError, match=message):
            evaluate.load_task(path)
    path.write_text("")
    with pytest.raises(ValueError, match="has no line"):
        evaluate.load_task(path)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (RecallItem("ab", ((0, 1),)), r"t, item 1: the answer 'a' at \[0, 1\] is the text's first token"),
        (RecallItem("a\U0001f600b", ((1, 2),)), "token id 128 is outside the model's vocabulary of 128"),
    ],
)
def test_answers_that_cannot_be_asked_are_named(item, message):
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(["\U0001f600"])
    with pytest.raises(ValueError, match=message):
        evaluate.score_recall(Parrot({}), tokenizer, RecallTask("t", (item,)))


def test_an_answer_without_a_token_is_not_counted_as_right():
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    with pytest.raises(ValueError, match=r"the answer ' ' at \[1, 2\] has no token"):
        evaluate.score_recall(Parrot({}), tokenizer, RecallTask("t", (RecallItem("a b", ((1, 2),)),)))
