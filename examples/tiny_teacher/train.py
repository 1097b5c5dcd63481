r"""Trains a tiny teacher: a Llama of 8 layers and 1.6 M parameters, or of more, that recalls key-value pairs.

Run:  python examples/tiny_teacher/train.py --out examples/tiny_teacher/teacher
      python examples/tiny_teacher/train.py --out examples/tiny_teacher/teachers/induction-1-4-of-8 --circuit 1 4 --seed 1
      python examples/tiny_teacher/train.py --out examples/tiny_teacher/teachers/induction-4-7-of-12 --layers 12 \
          --circuit 4 7 --seed 2

Writes a Hugging Face folder (fp16 safetensors, config, tokenizer) and ``training_log.csv`` (step, tokens, loss, share of
repeated symbols copied, recall at 16 and at 112 pairs, seconds). About an hour on one core.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import time
from pathlib import Path

import numpy as np
import symbols
import torch
from transformers import LlamaConfig, LlamaForCausalLM

UNPREDICTABLE_WEIGHT = 0.1
"""Loss weight of tokens that nothing predicts (fresh keys, first occurrences): enough to keep them calibrated."""


def build_teacher(layers: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=symbols.VOCABULARY,
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=symbols.EOS,
            pad_token_id=symbols.EOS,
            initializer_range=0.04,
            tie_word_embeddings=True,
        )
    )


def batch_of(stream, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, answers = zip(*itertools.islice(stream, size), strict=True)
    return torch.from_numpy(np.stack(tokens)), torch.from_numpy(np.stack(answers))


def accuracy(model: LlamaForCausalLM, documents: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Share of answers that the model's most likely token names, given the true tokens before them."""
    ids, mask = batch_of(iter(documents), len(documents))
    guess = model(ids).logits[:, :-1].argmax(-1)
    return (guess == ids[:, 1:])[mask[:, 1:]].float().mean().item()


@torch.no_grad()
def recall(model: LlamaForCausalLM, pairs: int, sequences: int = 32, seed: int = 10_000) -> float:
    """Share of asked values that the model's most likely token names, on sequences it was not trained on."""
    rng = np.random.default_rng(seed)
    return accuracy(model, [symbols.recall_document(rng, pairs) for _ in range(sequences)])


def guidance(
    ids: torch.Tensor, answers: torch.Tensor, attentions: tuple[torch.Tensor, ...], circuit: tuple[int, int]
) -> torch.Tensor:
    """How far two heads are from an induction circuit: mean -log of the attention that falls where it should.

    Left alone, a model of this size spends ten million tokens on a plateau before the circuit appears (two heads that
    are useless one without the other); led to it for the first steps, it recalls within two million and keeps doing so.

    Args:
        ids, answers: ``[B, T]``.
        attentions: probabilities per layer ``[B, heads, T, T]``.
        circuit: the two layers that recall is led to: a head of the first looks at the previous token, a head of the
            second at what followed.
    """
    previous_layer, induction_layer = circuit
    previous = attentions[previous_layer][:, 0].diagonal(offset=-1, dim1=1, dim2=2)
    # Position p - 1 should look at every j < p - 1 that holds p's token after the token of p - 1.
    same = ids[:, :, None] == ids[:, None, :]
    follows = same.clone()
    follows[:, 1:, 1:] &= same[:, :-1, :-1]
    follows = follows.tril(-2) & answers[:, :, None]
    follows[:, :, 0] = False
    mass = (attentions[induction_layer][:, 0, :-1] * follows[:, 1:]).sum(-1)[follows[:, 1:].any(-1)]
    return -(previous + 1e-6).log().mean() - (mass + 1e-6).log().mean()


@torch.no_grad()
def copying(model: LlamaForCausalLM, sequences: int = 32, seed: int = 10_000) -> float:
    """Share of repeated symbols that the model's most likely token names."""
    rng = np.random.default_rng(seed)
    return accuracy(model, [symbols.copy_document(rng) for _ in range(sequences)])


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def train(
    out: Path,
    layers: int,
    circuit: tuple[int, int],
    steps: int,
    guided_steps: int,
    batch: int,
    peak: float,
    seed: int,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = build_teacher(layers)
    with torch.no_grad():
        # A common component of all embeddings changes no prediction (they are tied) and gives attention a handle on
        # positions alone.
        model.model.embed_tokens.weight += 0.06 * torch.randn(model.config.hidden_size)
    decayed = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.95),
    )
    stream = symbols.documents(seed)
    started = time.time()
    with open(out / "training_log.csv", "w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["step", "tokens", "loss", "copying", "recall_16", "recall_112", "seconds"])
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, peak)
            ids, answers = batch_of(stream, batch)
            guided = max(0.0, 1 - step / guided_steps)
            model.set_attn_implementation("eager" if guided else "sdpa")
            with torch.autocast("cpu", torch.bfloat16):
                output = model(ids, use_cache=False, output_attentions=guided > 0)
            logits = output.logits[:, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            weights = torch.where(answers[:, 1:].flatten(), 1.0, UNPREDICTABLE_WEIGHT)
            loss = (losses * weights).sum() / weights.sum()
            objective = loss + guided * guidance(ids, answers, output.attentions, circuit) if guided else loss
            optimizer.zero_grad(set_to_none=True)
            objective.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if (step + 1) % 50 == 0 or step + 1 == steps:
                row = [step + 1, (step + 1) * ids.numel(), f"{loss.item():.4f}"]
                row += [f"{v:.4f}" for v in (copying(model), recall(model, 16), recall(model, 112))]
                row += [f"{time.time() - started:.0f}"]
                log.writerow(row)
                file.flush()
                print(*row, flush=True)
            if (step + 1) % 500 == 0:
                model.half().save_pretrained(out)
                model.float()
    model.half().save_pretrained(out)
    symbols.tokenizer().save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument(
        "--circuit",
        type=int,
        nargs=2,
        default=(2, 3),
        metavar=("PREVIOUS", "INDUCTION"),
        help="layers (from 0, the first before the second) whose heads recall is led to",
    )
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--guided-steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16, help="documents of 256 tokens per step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    circuit = tuple(options.circuit)
    if not 0 <= circuit[0] < circuit[1] < options.layers:
        parser.error(
            f"argument --circuit: expected 0 <= PREVIOUS < INDUCTION < {options.layers} (--layers), got {circuit}"
        )
    train(
        options.out,
        options.layers,
        circuit,
        options.steps,
        options.guided_steps,
        options.batch,
        options.learning_rate,
        options.seed,
    )
