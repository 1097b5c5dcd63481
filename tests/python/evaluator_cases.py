"""A small teacher and student, their data, and a race between candidates that train: what tests of measurements share."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hybridattn as ha
from hybridattn.data import Batch, TokenData
from hybridattn.distill import Stage
from hybridattn.select import AutoOptions, CandidateEvaluator, ScoreOptions, race_layers, select_layers

LAYERS = 5
STAGE = Stage(tokens=6 * 2 * 12, seq_len=12, batch_size=2, lr=1e-3, mixer_lr=1e-2, checkpoint_every=2)


def models(mixer="gated_deltanet", **options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    teacher = LlamaForCausalLM(config).eval().requires_grad_(False)
    return ha.convert(teacher, mixer, options, verbose=False), teacher


def data() -> TokenData:
    generator = torch.Generator().manual_seed(1)
    return TokenData.from_tokens(torch.randint(0, 31, (100, 12), generator=generator), held_out=0.2)


def held_out() -> list[Batch]:
    return [Batch(torch.randint(0, 31, (rows, 12), generator=torch.Generator().manual_seed(rows))) for rows in (5, 7)]


def race(run_dir: Path, progress=lambda line: None, mode="racing"):
    student, teacher = models()
    evaluator = CandidateEvaluator(student, teacher, held_out(), run_dir)
    options = ScoreOptions("removal", mode, steps_per_round=2, max_steps=6, confidence=0.97, min_rounds=2)
    return race_layers(evaluator, options, keep=2, stage=STAGE, data=data(), progress=progress)


def finalists(run_dir: Path | None, progress=lambda line: None, count=3, rounds=3):
    """The default selector with trained finalists, and its evaluator."""
    student, teacher = models()
    evaluator = CandidateEvaluator(student, teacher, held_out(), run_dir)
    options = AutoOptions(finalists=count, rounds=rounds)
    return select_layers(evaluator, 2, options, stage=STAGE, data=data(), progress=progress), evaluator


def events(run_dir: Path) -> list[dict]:
    """Lines of the journal without their times."""
    lines = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


_KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import evaluator_cases
left = {lines}
def line(text):
    global left
    left -= {word!r} in text
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
evaluator_cases.{call}
"""


def kill(call: str, lines: int, word: str = "") -> None:
    """Runs a `call` of this module in a process that is killed when it shows its `lines`-th line with `word` in it."""
    code = _KILLED.format(tests=str(Path(__file__).parent), call=call, lines=lines, word=word)
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
