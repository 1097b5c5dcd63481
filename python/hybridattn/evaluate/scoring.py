"""Scores recall: by the model's own greedy generation, or teacher-forced, in one forward pass per text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from hybridattn import hf
from hybridattn.data import Batch
from hybridattn.evaluate.recall import RecallItem, RecallResult, RecallTask

Scoring = Literal["generate", "forced"]
"""``generate`` compares what the model writes after the true text; ``forced`` asks at each token of the true answer
whether it is the most likely one."""

_SLACK = 4
"""Tokens by which a response may be longer than the expected one: a text has several spellings in tokens."""


@dataclass(frozen=True)
class Encoded:
    """A text in tokens.

    Attributes:
        ids: token ids of the text.
        spans: per answer, the positions of the tokens that overlap it.
        answers: the answers' own texts.
    """

    ids: list[int]
    spans: list[list[int]]
    answers: list[str]


def encode_task(task: RecallTask, tokenizer: Any, vocab_size: int) -> list[Encoded]:
    """The task in tokens; none is added, as in the data that models are distilled on.

    Args:
        tokenizer: a fast tokenizer (character offsets are needed).

    Raises:
        ValueError: naming task and item, when an answer has no token or only one for what is unknown, begins with
            the text's first token (nothing stands before it), or a token is outside the vocabulary.
    """
    return [_encode(item, tokenizer, vocab_size, f"{task.name}, item {n}") for n, item in enumerate(task.items, 1)]


def _encode(item: RecallItem, tokenizer: Any, vocab_size: int, where: str) -> Encoded:
    encoded = tokenizer(item.text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    ids = encoded["input_ids"]
    spans = [
        [i for i, (first, last) in enumerate(encoded["offset_mapping"]) if first < end and last > start]
        for start, end in item.answers
    ]
    for (start, end), places in zip(item.answers, spans, strict=True):
        if not places:
            why = "has no token"
        elif places[0] == 0:
            why = "is the text's first token, which nothing stands before"
        elif _plain(item.text[start:end]) not in _plain(read := tokenizer.decode([ids[place] for place in places])):
            why = f"is unknown to the tokenizer, which reads {read!r}; write a .jsonl task in words that it has"
        else:
            continue
        raise ValueError(f"recall task {where}: the answer {item.text[start:end]!r} at [{start}, {end}] {why}")
    if max(ids) >= vocab_size:
        raise ValueError(
            f"recall task {where}: token id {max(ids)} is outside the model's vocabulary of {vocab_size}; "
            "use the teacher's own tokenizer"
        )
    return Encoded(ids, spans, [item.text[start:end] for start, end in item.answers])


def _plain(text: str) -> str:
    """Without spaces and case, which tokenizers change."""
    return "".join(text.split()).casefold()


@torch.no_grad()
@hf.native_layers()
def score_recall(
    model: nn.Module,
    tokenizer: Any,
    task: RecallTask,
    batch_size: int = 8,
    scoring: Scoring = "generate",
    progress: Callable[[str], None] = lambda line: None,
) -> RecallResult:
    """Counts right answers, on the device where the model is.

    ``generate``: the model writes greedily, with its cache, after the true text up to the answer, in left-padded batches.
    An answer is right when the writing begins with it; in a joint response (`RecallTask.joint`), when it stands in the
    writing as a word of its own, wherever that is.

    ``forced``: an answer is right when every token of it is the model's most likely one, given the true tokens before it.
    One forward pass per text, whatever the number of answers. What is right here is right by generation too; the reverse
    fails where a model answers in another order or spelling.

    Args:
        model: a plain Transformers decoder or a hybrid.
        tokenizer: a fast tokenizer (character offsets are needed).
        progress: called with a line of text after each batch.

    Raises:
        ValueError: an unknown `scoring`; and as `encode_task`.
    """
    if scoring not in get_args(Scoring):
        raise ValueError(f"score_recall: scoring is '{scoring}', expected {' or '.join(get_args(Scoring))}")
    encoded = encode_task(task, tokenizer, hf.head_weight(model).shape[0])
    right: list[list[bool]] = []
    if scoring == "forced":
        for rows in _forced(model, encoded, batch_size):
            right += rows
            progress(f"{task.name}  {len(right)}/{len(encoded)} texts")
        return RecallResult.of(task, right)
    prompts = [prompt for row in encoded for prompt in _prompts(row, task.joint)]
    found: dict[int, list[bool]] = {}
    padding = next((x for x in (tokenizer.pad_token_id, tokenizer.eos_token_id) if x is not None), 0)
    for indices, written in _written(model, prompts, batch_size, padding):
        for index, tokens in zip(indices, written, strict=True):
            text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            found[index] = _right(prompts[index], tokens, text, task.joint)
        progress(f"{task.name}  {len(found)}/{len(prompts)} prompts")
    answers = chain.from_iterable(found[index] for index in range(len(prompts)))
    return RecallResult.of(task, [[next(answers) for _ in row.spans] for row in encoded])


def prompts_and_tokens(task: RecallTask, tokenizer: Any, vocab_size: int, scoring: Scoring) -> tuple[int, int]:
    """How much `score_recall` reads: (prompts, their tokens and those written after them at most).

    Raises:
        ValueError: as `encode_task`.
    """
    encoded = encode_task(task, tokenizer, vocab_size)
    if scoring == "forced":
        return len(encoded), sum(len(row.ids) for row in encoded)
    prompts = [prompt for row in encoded for prompt in _prompts(row, task.joint)]
    return len(prompts), sum(len(prompt.ids) + prompt.budget for prompt in prompts)


# ---- teacher-forced ----


def _forced(model: nn.Module, encoded: list[Encoded], batch_size: int) -> Iterator[list[list[bool]]]:
    for first in range(0, len(encoded), batch_size):
        yield _forced_batch(model, encoded[first : first + batch_size])


def _forced_batch(model: nn.Module, rows: Sequence[Encoded]) -> list[list[bool]]:
    head = hf.head_weight(model)
    length = max(len(row.ids) for row in rows)
    # Padding stands on the right, where a causal model cannot see it from any answer.
    tokens = torch.tensor([row.ids + [0] * (length - len(row.ids)) for row in rows], device=head.device)
    hidden = hf.hidden_states(model, Batch(tokens))
    spans = [(index, span) for index, row in enumerate(rows) for span in row.spans]
    places = [(index, position) for index, span in spans for position in span]
    row_index, position = (torch.tensor(column, device=head.device) for column in zip(*places, strict=True))
    guess: Tensor = (hidden[row_index, position - 1].to(head.dtype) @ head.T).argmax(-1)
    hits = (guess == tokens[row_index, position]).cpu().split([len(span) for _, span in spans])
    right = iter([bool(hit.all()) for hit in hits])
    return [[next(right) for _ in row.spans] for row in rows]


# ---- by generation ----


@dataclass(frozen=True)
class _Prompt:
    """What the model is given, and what it should write.

    Attributes:
        ids: the true text up to the first expected answer.
        answers: texts that it should write.
        written: per answer, the true tokens from the prompt's end to the answer's.
    """

    ids: list[int]
    answers: list[str]
    written: list[list[int]]

    @property
    def budget(self) -> int:
        return max(map(len, self.written)) + _SLACK


def _prompts(row: Encoded, joint: bool) -> Iterator[_Prompt]:
    groups = [row.spans] if joint else [[span] for span in row.spans]
    answers = iter(row.answers)
    for spans in groups:
        start = spans[0][0]
        texts = [next(answers) for _ in spans]
        yield _Prompt(row.ids[:start], texts, [row.ids[start : span[-1] + 1] for span in spans])


def _written(
    model: Any, prompts: list[_Prompt], batch_size: int, padding: int
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Indices of prompts and the tokens written after each, batch by batch; prompts of like length go together."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
    device = hf.head_weight(model).device
    for first in range(0, len(order), batch_size):
        indices = order[first : first + batch_size]
        rows = [prompts[index].ids for index in indices]
        length = max(map(len, rows))
        ids = torch.tensor([[padding] * (length - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
        # A model's own defaults (temperature, penalties on repeating what stands in the context) have no place here.
        output = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max(prompts[index].budget for index in indices),
            do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0, temperature=None, top_p=None,
            top_k=None, pad_token_id=padding, use_cache=True,
        )  # fmt: skip
        yield indices, [row[: prompts[i].budget] for i, row in zip(indices, output[:, length:].tolist(), strict=True)]


def _right(prompt: _Prompt, tokens: list[int], text: str, joint: bool) -> list[bool]:
    """Per answer: written as in the true text, token by token, or in other tokens or another place."""
    finds = _has_word if joint else _begins_with
    return [
        tokens[: len(written)] == written or finds(text, answer)
        for answer, written in zip(prompt.answers, prompt.written, strict=True)
    ]


def _begins_with(text: str, answer: str) -> bool:
    return text.lstrip().startswith(answer.strip())


def _has_word(text: str, word: str) -> bool:
    """Whether `word` stands in `text`, not as a part of a longer word or number."""
    return re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text) is not None
