"""Writes what the demo feeds the tiny teacher: a corpus to distil on and held-out recall questions.

Run:  python examples/tiny_teacher/prepare.py --out build/tiny_teacher

``corpus.jsonl`` holds one document a line, a quarter text, a quarter copying, half recall, as plain strings;
``recall.jsonl`` holds recall documents of 64 to 112 pairs together with the character spans of their answers; ``depth.jsonl``
holds lists of pairs of four lengths with one question each, about the pair at one of five depths. Their random streams
differ from each other's and from the teacher's training stream. ``tokens.safetensors`` holds the corpus once
more as token ids, ``train`` and ``held_out`` [N, 256], for trainers without a tokenizer (examples/cpp_trainer).
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import symbols
from safetensors.numpy import save_file

CORPUS_SEED, RECALL_SEED, DEPTH_SEED = 1_000_003, 2_000_003, 3_000_003
LENGTHS, DEPTHS = (32, 96, 160, 224), (0.0, 0.25, 0.5, 0.75, 1.0)


def recall_item(tokens: np.ndarray, answers: np.ndarray) -> dict:
    """The document as text and where its answers stand in that text."""
    text, spans = "", []
    for token, is_answer in zip(tokens, answers, strict=True):
        if token == symbols.EOS:
            break
        piece = symbols.as_text([token])
        if is_answer:
            spans.append([len(text), len(text) + len(piece)])
        text += piece
    return {"text": text, "answers": spans}


def depth_item(rng: np.random.Generator, length: int, depth: float) -> dict:
    """`length` tokens of pairs ``key value``, then the key at `depth` of the list (0 = the first) and its value."""
    pairs = length // 2 - 1
    keys, values = rng.permutation(symbols.KEYS)[:pairs], rng.integers(0, symbols.KEYS, pairs)
    order = [*range(pairs), round(depth * (pairs - 1))]
    pieces = [symbols.as_text([symbols.FIRST_KEY + keys[i], symbols.FIRST_VALUE + values[i]]) for i in order]
    text = "".join(pieces)
    answer = symbols.symbol(symbols.FIRST_VALUE + values[order[-1]])
    return {"text": text, "answers": [[len(text) - len(answer), len(text)]], "length": length, "depth": depth}


def write_lines(path: Path, rows) -> None:
    temporary = path.with_name(path.name + ".partial")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    temporary.rename(path)


def prepare(out: Path, documents: int, questions: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    corpus = [tokens for tokens, _ in itertools.islice(symbols.documents(CORPUS_SEED), documents)]
    write_lines(out / "corpus.jsonl", ({"text": symbols.as_text(tokens[:-1])} for tokens in corpus))
    rows, held_out = np.stack(corpus), min(48, max(1, documents // 20))
    save_file({"train": rows[held_out:], "held_out": rows[:held_out]}, out / "tokens.safetensors")
    rng = np.random.default_rng(RECALL_SEED)
    items = (recall_item(*symbols.recall_document(rng, int(rng.integers(64, 113)))) for _ in range(questions))
    write_lines(out / "recall.jsonl", items)
    rng = np.random.default_rng(DEPTH_SEED)
    cells = itertools.product(LENGTHS, DEPTHS, range(max(1, questions // 4)))
    write_lines(out / "depth.jsonl", (depth_item(rng, length, depth) for length, depth, _ in cells))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=12_000)
    parser.add_argument("--questions", type=int, default=96)
    options = parser.parse_args()
    prepare(options.out, options.documents, options.questions)
    print(f"corpus.jsonl, recall.jsonl, depth.jsonl, tokens.safetensors -> {options.out}")
