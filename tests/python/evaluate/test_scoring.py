"""Scoring by generation and teacher-forced: on models whose answers are known, and on the tiny teacher."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import hybridattn as ha
from hybridattn.data import Batch
from hybridattn.evaluate import FAMILIES, RecallItem, RecallResult, RecallTask, Suite, build_task, score_recall

TEACHER = Path(__file__).parents[3] / "examples" / "tiny_teacher" / "teacher"
BOTH = pytest.mark.parametrize("scoring", ["generate", "forced"])


@BOTH
def test_whole_answers_count(oracle, characters, scoring):
    items = (RecallItem("abcab", ((1, 3), (4, 5)), 5), RecallItem("xyxz", ((1, 2), (3, 4)), 4))
    model = oracle(["abcab", "xyxy"])
    task = RecallTask("t", items)
    result = score_recall(model, characters, task, 1, scoring)
    assert (result.answers, result.correct) == (4, 3), "y after x is right, z after x is not"
    assert [(cell.length, cell.answers, cell.correct) for cell in result.cells] == [(5, 2, 2), (4, 2, 1)]
    assert score_recall(model, characters, task, 8, scoring) == result, "padding changes nothing"
    half = RecallTask("t", (RecallItem("abx", ((1, 3),)),))
    assert score_recall(oracle(["aby"]), characters, half, 8, scoring).correct == 0, "half an answer is none"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_that_is_right_is_right_in_both_ways(oracle, characters, name):
    task = build_task(name, characters, [700], items=2)
    model = oracle(item.text for item in task.items)
    for scoring in ("generate", "forced"):
        result = score_recall(model, characters, task, 3, scoring)
        assert result.correct == result.answers == sum(len(item.answers) for item in task.items)

    # Wrong in the last character of the last answer of the first item.
    end = task.items[0].answers[-1][1]
    model.texts[0] = task.items[0].text[: end - 1] + "!"
    for scoring in ("generate", "forced"):
        assert score_recall(model, characters, task, 3, scoring).correct == result.answers - 1


def test_parts_of_one_response_may_stand_in_any_order(oracle, characters):
    text = "Which are they? They are 12, 34, 56"
    task = RecallTask("t", (RecallItem(text, ((25, 27), (29, 31), (33, 35))),), joint=True)
    for written, correct in (
        (" 56, 12, 34", 3),
        (" 34, 12 and 99", 2),
        (" 134, 12", 1),
        (" 345, 12", 1),
        (" 34", 1),
        ("", 0),
    ):
        model = oracle(["Which are they? They are" + written])
        assert score_recall(model, characters, task, 8, "generate").correct == correct, written


def test_a_response_is_as_long_as_its_answer_allows(oracle, characters):
    """No model gets right by listing everything there is."""
    task = RecallTask("t", (RecallItem("They are 12, 34", ((9, 11), (13, 15))),), joint=True)
    model = oracle(["They are " + ", ".join(map(str, [99, 98, 97, 12, 34]))])
    assert score_recall(model, characters, task, 8, "generate").correct == 0
    longer = RecallItem("Then " + 30 * "x", ((5, 35),))
    both = RecallTask("t", (*task.items, longer), joint=True)
    model.texts.append(longer.text)
    assert score_recall(model, characters, both, 8, "generate").correct == 1, "nor by what its neighbour has room for"


def test_a_model_s_own_generation_defaults_change_nothing(oracle, characters):
    task = RecallTask("t", (RecallItem("aaaa aaaa", ((5, 9),)),))
    model = oracle(["aaaa aaaa"])
    model.generation_config.update(do_sample=True, temperature=50.0, repetition_penalty=1e6, no_repeat_ngram_size=1)
    assert score_recall(model, characters, task, 8, "generate").correct == 1


def pairs_task(lengths, items=3):
    """Key-value pairs in the tiny teacher's symbols, the asked one in the middle."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for length in lengths:
        for _ in range(items):
            keys = torch.randperm(128, generator=generator)[:length].tolist()
            values = torch.randint(0, 128, (length,), generator=generator).tolist()
            text = "".join(f"<k{key}><v{value}>" for key, value in zip(keys, values, strict=True))
            spans = []
            for i in (length // 3, length // 2):
                text += f"<k{keys[i]}>"
                spans.append((len(text), len(text) + len(f"<v{values[i]}>")))
                text += f"<v{values[i]}>"
            found.append(RecallItem(text, tuple(spans), length))
    return RecallTask("pairs", tuple(found))


def test_generation_and_forced_scoring_agree_on_the_tiny_teacher_and_a_hybrid():
    """Left padding, keys and values, and linear states of real models: lengths differ within a batch."""
    teacher = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    hybrid = ha.keep_softmax(ha.convert(teacher, verbose=False), teacher, [0, 2, 3])
    query = hybrid.layers[3].self_attn.q_proj.weight
    with torch.no_grad():
        query += 3 * query.std() * torch.randn(query.shape, generator=torch.Generator().manual_seed(0))
    shares = []
    for model in (teacher, hybrid):
        right = [
            score_recall(model.eval(), tokenizer, pairs_task([3, 8, 17]), 5, how) for how in ("generate", "forced")
        ]
        assert right[0] == right[1]
        shares.append(right[0].accuracy)
    assert shares[0] > 0.9, "the teacher recalls"
    assert 0.2 < shares[1] < 0.95, "a disturbed hybrid recalls some, so agreement says something"


def test_intervals_hold_the_share():
    low, high = RecallResult("t", 20, 20).interval
    assert high == pytest.approx(1)
    assert low == pytest.approx(0.8389, abs=1e-4)  # Wilson's interval for 20 of 20
    low, high = RecallResult("t", 10, 5).interval
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (RecallItem("ab", ((0, 1),)), r"t, item 1: the answer 'a' at \[0, 1\] is the text's first token"),
        (RecallItem("a\U0001f600b", ((2, 3),)), "token id 128 is outside the model's vocabulary of 128"),
        (RecallItem("a\u20ac", ((1, 2),)), r"the answer '\u20ac' at \[1, 2\] is unknown to the tokenizer"),
    ],
)
@BOTH
def test_answers_that_cannot_be_asked_are_named(oracle, characters, item, message, scoring):
    characters = PreTrainedTokenizerFast(tokenizer_object=characters._tokenizer, unk_token="\1")
    characters.add_tokens(["\U0001f600"])
    with pytest.raises(ValueError, match=message):
        score_recall(oracle([]), characters, RecallTask("t", (item,)), scoring=scoring)


def test_an_answer_without_a_token_is_not_counted_as_right(oracle):
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    with pytest.raises(ValueError, match=r"the answer ' ' at \[1, 2\] has no token"):
        score_recall(oracle([]), tokenizer, RecallTask("t", (RecallItem("a b", ((1, 2),)),)))


def test_an_unknown_scoring_is_named(oracle, characters):
    with pytest.raises(ValueError, match="scoring is 'guess', expected generate or forced"):
        score_recall(oracle([]), characters, RecallTask("t", (RecallItem("ab", ((1, 2),)),)), scoring="guess")


def test_a_suite_measures_what_it_holds(small_model):
    model, teacher = small_model(), small_model()
    batches = [Batch(torch.randint(0, 29, (2, 12))) for _ in range(2)]
    row = Suite(None, held_out=batches).measure(model, teacher)
    assert len(row["kl_sequences"]) == 4
    assert row["kl"] == pytest.approx(sum(row["kl_sequences"]) / 4)
    assert row["kl_interval"][0] < row["kl"] < row["kl_interval"][1]
    assert set(Suite(None, held_out=batches).measure(model)) == {"perplexity", "recall"}


def test_a_suite_s_recall_is_that_of_its_tasks(oracle, characters):
    task = RecallTask("t", (RecallItem("ab", ((1, 2),), 2, 0.5), RecallItem("xy", ((1, 2),), 2, 1.0)))
    row = Suite(characters, [task]).measure(oracle(["ab"]))["recall"]["t"]
    assert (row["accuracy"], row["answers"]) == (0.5, 2)
    assert [(cell["length"], cell["depth"], cell["accuracy"]) for cell in row["cells"]] == [(2, 0.5, 1), (2, 1.0, 0)]
    with pytest.raises(ValueError, match="outside the model's vocabulary of 99"):
        Suite(characters, [task]).check(99)
