"""The examples run as their first lines say."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hybridattn.evaluate import load_task

EXAMPLES = Path(__file__).parents[3] / "examples"


def output_of(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_mixer_in_a_model_of_ones_own_learns_to_recall():
    recall = float(output_of("03_train_by_hand.py").split()[-1])
    assert recall > 0.9


def test_own_text_and_own_questions(tmp_path):
    for number in range(6):
        (tmp_path / f"page{number}.txt").write_text(f"Page {number} of a story. " * 200)
    printed = output_of("04_own_data.py", tmp_path)
    assert "TokenData(6 documents" in printed
    assert "teacher  KL 0.000 nats/token" in printed
    assert printed.count("1 of 1 questions right") == 2


@pytest.mark.timeout(900)  # trains for a minute; three on a busy machine
def test_quickstart_and_the_selectors_side_by_side(tmp_path):
    quickstart = output_of("01_quickstart.py", tmp_path)
    assert "softmax stays in layers [2, 3]" in quickstart
    assert (tmp_path / "hybrid" / "config.json").exists()
    teacher = EXAMPLES / "tiny_teacher" / "teacher"
    # The finished hybrid lacks mixers in two layers, so the selectors are shown on a fresh student.
    from transformers import AutoModelForCausalLM

    import hybridattn as ha

    model = AutoModelForCausalLM.from_pretrained(teacher, dtype="float32")
    ha.convert(model, verbose=False).save_pretrained(tmp_path / "student")
    held_out = load_file(tmp_path / "data" / "tokens.safetensors")["held_out"][:6]
    save_file({"held_out": held_out}, tmp_path / "few.safetensors")
    table = output_of("02_choose_layers.py", tmp_path / "student", teacher, tmp_path / "few.safetensors")
    assert "sequential addition" in table


def test_the_tiny_teacher_is_asked_at_every_length_and_depth(tmp_path):
    output_of("tiny_teacher/prepare.py", "--out", tmp_path, "--documents", 40, "--questions", 8)
    task = load_task(tmp_path / "depth.jsonl")
    assert len({(item.length, item.depth) for item in task.items}) == 20
    for item in task.items:
        symbols = item.text.replace(">", "> ").split()
        assert len(symbols) == item.length
        ((start, end),) = item.answers
        asked, answer = symbols[-2:]
        assert item.text[start:end] == answer
        place = symbols.index(asked)
        assert symbols[place + 1] == answer
        assert round(item.depth * (item.length // 2 - 2)) == place // 2
