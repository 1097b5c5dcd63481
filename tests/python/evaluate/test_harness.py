"""lm-eval on a hybrid: its own machinery where the package is installed, a clear message where it is not."""

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import hybridattn as ha

TEACHER = Path(__file__).parents[3] / "examples" / "tiny_teacher" / "teacher"


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"lm-eval is not installed here.*pip install 'hybridattn\[lm-eval\]'"
    ):
        ha.evaluate.lm_eval_scores(None, None, ["niah_single_1"])


@pytest.fixture(scope="module")
def models():
    teacher = AutoModelForCausalLM.from_pretrained(TEACHER, dtype="float32")
    hybrid = ha.keep_softmax(ha.convert(teacher, verbose=False), teacher, [0, 2, 3])
    return {"teacher": teacher, "hybrid": hybrid}, AutoTokenizer.from_pretrained(TEACHER)


def test_a_task_of_lm_eval_runs_on_teacher_and_hybrid(tmp_path, models):
    """By generation and by likelihood, on key-value questions as a task of the user's own."""
    pytest.importorskip("lm_eval")
    rows = []
    for n in range(8):
        pairs = [(f"<k{(7 * n + i) % 128}>", f"<v{(5 * n + 3 * i) % 128}>") for i in range(12)]
        asked = pairs[n]
        rows.append({"question": "".join(map("".join, pairs)) + asked[0], "answer": asked[1], "wrong": pairs[n - 1][1]})
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "questions.jsonl")}},
        "test_split": "test", "doc_to_text": "{{question}}", "target_delimiter": "",
    }  # fmt: skip
    generation = common | {
        "task": "pairs_generation", "output_type": "generate_until", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"max_gen_toks": 1, "do_sample": False, "until": ["\n"]},
        "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    choice = common | {
        "task": "pairs_choice", "output_type": "multiple_choice", "doc_to_choice": "{{[wrong, answer]}}",
        "doc_to_target": 1, "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    for task in (generation, choice):
        (tmp_path / f"{task['task']}.yaml").write_text(json.dumps(task))  # JSON is YAML
    found, tokenizer = models
    for model in found.values():
        scores = ha.evaluate.lm_eval_scores(
            model, tokenizer, ["pairs_generation", "pairs_choice"], include_path=tmp_path, batch_size=3
        )
        assert scores["pairs_generation"]["exact_match"] >= 0.75
        assert scores["pairs_choice"]["acc"] == 1
    with pytest.raises(ValueError, match="lm-eval has no task 'pears'"):
        ha.evaluate.lm_eval_scores(found["teacher"], tokenizer, ["pears"], include_path=tmp_path)
