"""The examples run as their first lines say."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[3] / "examples"


def output_of(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_mixer_in_a_model_of_ones_own_learns_to_recall():
    recall = float(output_of("03_train_by_hand.py").split()[-1])
    assert recall > 0.9


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
    table = output_of("02_choose_layers.py", tmp_path / "student", teacher, tmp_path / "data" / "tokens.safetensors")
    assert "sequential addition" in table
