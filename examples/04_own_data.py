"""Your own text: files and folders into packed sequences, held-out documents, recall questions of your own, a short run.

Run:  python examples/04_own_data.py [files or folders ...]

Without arguments the text is this repository's own pages, and the teacher is the tiny Llama beside this file.
"""

import json
import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import hybridattn as ha

HERE = Path(__file__).resolve().parent
logging.disable_progress_bar()
sources = sys.argv[1:] or [HERE.parent / "docs", HERE.parent / "README.md"]
cache = Path(tempfile.mkdtemp(prefix="own-data-"))

teacher = AutoModelForCausalLM.from_pretrained(HERE / "tiny_teacher" / "teacher", dtype="float32").eval()
tokenizer = AutoTokenizer.from_pretrained(HERE / "tiny_teacher" / "teacher")

# txt, jsonl, parquet, folders and hub datasets; tokenised once, memory-mapped afterwards. The split is by document.
data = ha.TokenData.from_files(sources, tokenizer, seq_len=256, held_out=0.2, cache_dir=cache)
data.check_vocabulary(teacher.config.vocab_size)
print(data)
batch = next(data.train_batches(batch_size=4, seed=0))  # the same for the same (seed, step), so runs can resume
print(f"a batch of {batch.num_tokens} tokens from {', '.join(batch.document_ids)}")

# Questions of your own: a text, and the spans in it that can be known only from what stands before them.
text = "<k5><v9><k7><v3><k1><v4><k7><v3>"
(cache / "mine.jsonl").write_text(json.dumps({"text": text, "answers": [[len(text) - 4, len(text)]]}) + "\n")
task = ha.evaluate.load_task(cache / "mine.jsonl")

student = ha.convert(teacher, verbose=False)
align = ha.presets.align("paper", tokens=30 * 4 * 256, batch_size=4, seq_len=256, lr=2e-3, mixer_lr=2e-3)
ha.align(student, teacher, data, align)
hybrid = ha.keep_softmax(student, teacher, [2, 3])

held_out = data.held_out(4)  # the same sequences every time
for name, model in (("teacher", teacher), ("hybrid", hybrid)):
    divergence = ha.evaluate.kl(model, teacher, held_out).mean()
    score = ha.evaluate.score_recall(model, tokenizer, task)
    print(
        f"{name:8s} KL {divergence:.3f} nats/token, perplexity {ha.evaluate.perplexity(model, held_out):.2f},", end=" "
    )
    print(f"{score.correct} of {score.answers} questions right")
