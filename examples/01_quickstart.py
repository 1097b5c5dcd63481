"""From a pretrained teacher to a saved hybrid in a minute: convert, align, score, keep, match, evaluate.

Run:  python examples/01_quickstart.py [output folder]

The teacher is the tiny Llama beside this file; with your own checkpoint and text only the first lines change.
"""

import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import hybridattn as ha

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "tiny_teacher"))
from prepare import prepare  # noqa: E402

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="quickstart-"))
prepare(out / "data", documents=1000, questions=8)

teacher = AutoModelForCausalLM.from_pretrained(HERE / "tiny_teacher" / "teacher", dtype="float32").eval()
tokenizer = AutoTokenizer.from_pretrained(HERE / "tiny_teacher" / "teacher")
data = ha.TokenData.from_files([out / "data" / "corpus.jsonl"], tokenizer, seq_len=256, cache_dir=out / "cache")

student = ha.convert(teacher, mixer="gated_deltanet", verbose=False)  # every layer linear
align = ha.presets.align("paper", tokens=40 * 8 * 256, batch_size=8, seq_len=256, lr=2e-3, mixer_lr=2e-3)
ha.align(student, teacher, data, align, progress=print)

scores = ha.score_layers(student, teacher, data, ha.select.ScoreOptions("removal", held_out_sequences=16), keep=2)
print("softmax stays in layers", scores.top(k=2))

hybrid = ha.keep_softmax(student, teacher, scores.top(k=2))
match = ha.presets.match("paper", tokens=20 * 8 * 256, batch_size=8, seq_len=256, lr=1e-4, mixer_lr=1e-3)
ha.match(hybrid, teacher, data, match, progress=print)

recall = ha.evaluate.load_task(out / "data" / "recall.jsonl")
for name, model in (("teacher", teacher), ("hybrid", hybrid)):
    print(f"recall of the {name}: {ha.evaluate.score_recall(model, tokenizer, recall).accuracy:.3f}")

hybrid.save_pretrained(out / "hybrid")
again = AutoModelForCausalLM.from_pretrained(out / "hybrid")  # anywhere after `import hybridattn`
prompt = tokenizer("<k5><v9><k7><v3><k5>", return_tensors="pt").input_ids
print("after <k5><v9><k7><v3><k5>:", tokenizer.decode(again.generate(prompt, max_new_tokens=1)[0, -1:]))
