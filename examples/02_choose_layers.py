"""Which layers should keep softmax? Selectors side by side on one aligned student, all measured on the same sequences.

Run:  python examples/02_choose_layers.py <aligned student> <teacher> <tokens.safetensors>

After `make demo`:
  python examples/02_choose_layers.py runs/tiny-teacher/align/model examples/tiny_teacher/teacher \
      build/tiny_teacher/tokens.safetensors
"""

import sys
from statistics import fmean

from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import hybridattn as ha
from hybridattn import select
from hybridattn.data import Batch

student, teacher = (AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval() for path in sys.argv[1:3])
held_out = load_file(sys.argv[3])["held_out"]
evaluator = select.CandidateEvaluator(student, teacher, [Batch(rows) for rows in held_out.split(8)])
layers, keep = evaluator.num_layers, 2

removal = select.race_layers(evaluator, select.ScoreOptions("removal"), keep=keep)
addition = select.race_layers(evaluator, select.ScoreOptions("addition"), keep=keep)
plans = {
    "removal": removal.top(k=keep),
    "addition": addition.top(k=keep),
    "sequential addition": select.sequential_addition(evaluator, keep).layers,
    "uniform": list(select.uniform_plan(layers, keep)),
    "random": list(select.random_plan(layers, keep, seed=0)),
}
plans["uniform, then exchanges"] = select.swap_refinement(evaluator, plans["uniform"]).layers
for name, kept in plans.items():
    (losses,) = evaluator.losses([kept])
    print(f"{name:24s} {kept!s:12s} KL {fmean(losses):.4f} nats/token before any further training")
print(f"hybridattn {ha.__version__}: {evaluator.tokens} tokens read, {evaluator.flops / 1e12:.2f} TFLOP")
