"""The C++ loop and the Python loop, from the same weights over the same batches, give the same losses and weights."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import hybridattn as ha
from hybridattn.data import Batch
from hybridattn.data.batch import document_marks
from hybridattn.distill import Stage, align, finetune, match
from tolerances import TOLERANCES, assert_close

STEPS, ROWS, TOKENS = 6, 3, 20
FIELDS: dict[str, Any] = {
    "tokens": STEPS * ROWS * TOKENS,
    "seq_len": TOKENS,
    "batch_size": ROWS,
    "micro_batch_size": 2,
    "lr": 1e-3,
    "mixer_lr": 3e-3,
    "schedule": "cosine",
    "warmup_steps": 2,
    "warmup_start": 0.1,
    "weight_decay": 0.1,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "align": ("align", {}),
    "align, squared": ("align", {"loss": "squared", "grad_clip": 0.0}),
    "match": ("match", {}),
    "match, reverse, warm, checkpointed": (
        "match",
        {"loss": "reverse", "temperature": 2.0, "gradient_checkpointing": True},
    ),
    "match, embeddings apart": ("match", {"loss": "jsd", "untie_embeddings": True}),
    "match, embeddings one again": ("match", {"untie_embeddings": True, "retie_embeddings": True}),
    "finetune": ("finetune", {"gradient_checkpointing": True}),
    "match, bf16": ("match", {"dtype": "bfloat16"}),
    "align, bf16": ("align", {"dtype": "bfloat16"}),
    "align, shared values": ("align", {}),
    "match, shared values": ("match", {}),
    "match, shared values, checkpointed": ("match", {"gradient_checkpointing": True}),
}


class Batches:
    """The same packed batches for both loops: documents of uneven length, some tokens that do not count."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.batches = []
        for step in range(STEPS):
            ids = torch.randint(0, 61, (ROWS, TOKENS), generator=generator)
            positions = torch.arange(TOKENS).repeat(ROWS, 1)
            positions[0, 7 + step :] -= 7 + step
            positions, offsets = document_marks(positions)
            mask = torch.rand(ROWS, TOKENS, generator=generator) < 0.8
            self.batches.append(Batch(ids, positions, offsets, mask))

    def train_batches(self, batch_size: int, start_step: int = 0, seed: int = 0) -> Iterator[Batch]:
        yield from self.batches[start_step:]

    def tensors(self) -> dict[str, Tensor]:
        fields = ("input_ids", "position_ids", "cu_seqlens", "loss_mask")
        return {f"{step}.{field}": getattr(batch, field) for step, batch in enumerate(self.batches) for field in fields}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any], Path]:
    """The teacher, its students by the name of their folder, and where all of them are saved."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    teacher = transformers.LlamaForCausalLM(config).eval()
    shared = {"value_residual": True, "token_shift": "ddlerp", "gate_low_rank_dim": 3}
    students = {
        "student": ha.convert(teacher, "gated_deltanet", {"short_convolution": 3}, layers=[0, 2], verbose=False),
        "shared": ha.convert(teacher, "rwkv7", shared, layers=[0, 2], verbose=False),
    }
    with torch.no_grad():
        for mixer in students["shared"].mixers().values():
            mixer.v_scale.fill_(0.7)
            mixer.v_lora.up.weight.normal_()
    folder = tmp_path_factory.mktemp("models")
    teacher.save_pretrained(folder / "teacher")
    for name, student in students.items():
        student.save_pretrained(folder / name)
    return teacher, students, folder


def python_loop(name: str, student: Any, teacher: Any, batches: Batches, stage: Stage) -> Any:
    if name == "finetune":
        return finetune(student, batches, stage)
    return {"align": align, "match": match}[name](student, teacher, batches, stage)


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_loops_agree(cpp: Any, tmp_path: Path, models: tuple[Any, dict[str, Any], Path], variant: str) -> None:
    teacher, students, folder = models
    name, changes = VARIANTS[variant]
    which = "shared" if "shared" in variant else "student"
    original = students[which]
    stage, batches, student = Stage(**(FIELDS | changes)), Batches(), copy.deepcopy(original)
    answer = cpp(
        "stage", batches.tensors(), name=name, student=folder / which, teacher=folder / "teacher",
        stage=stage.model_dump(mode="json"), save=tmp_path / "trained",
    )  # fmt: skip
    result = python_loop(name, student, teacher, batches, stage)
    assert len(result.losses) == STEPS
    narrow = stage.dtype == "bfloat16"
    allowed = TOLERANCES["value"][torch.bfloat16] if narrow else TOLERANCES["loss_curve"][torch.float32]
    assert answer["losses"].tolist() == pytest.approx(result.losses, rel=allowed)
    assert result.losses[-1] != result.losses[0]
    if narrow:
        return
    trained = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    assert trained.config.tie_word_embeddings == student.config.tie_word_embeddings
    expected, before = student.state_dict(), original.state_dict()
    assert trained.state_dict().keys() == expected.keys()
    for key, tensor in trained.state_dict().items():
        moved = (expected[key] - before[key]).norm()
        # AdamW's first steps divide by the gradient's own size, which blows rounding up where a gradient is near 0.
        assert (tensor - expected[key]).norm() <= 2e-3 * moved + 1e-6, key
    assert_close(
        answer["parts"].float(), torch.tensor(list(result.part_losses.values()) or result.losses[-1:]), "gradient"
    )


@pytest.mark.parametrize("name", ["align", "match", "finetune"])
def test_cpp_resumes_where_it_stopped(
    cpp: Any, tmp_path: Path, models: tuple[Any, dict[str, Any], Path], name: str
) -> None:
    """A first process trains some steps of a stage, a second one the rest: the losses are those of one process."""
    _, _, folder = models
    batches = Batches()
    stage = Stage(**(FIELDS | {"checkpoint_every": 2})).model_dump(mode="json")
    fields = {"name": name, "student": folder / "student", "teacher": folder / "teacher", "stage": stage}
    whole = cpp("stage", batches.tensors(), **fields, save=tmp_path / "whole")
    tensors = batches.tensors()
    cut = {key: tensor for key, tensor in tensors.items() if int(key.split(".")[0]) < 5}
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(AssertionError, match=r"has no tensor 5.input_ids"):
        cpp("stage", cut, **fields, checkpoint=checkpoint, save=tmp_path / "cut")
    late = {key: tensor for key, tensor in tensors.items() if int(key.split(".")[0]) >= 4}
    resumed = cpp("stage", late, **fields, checkpoint=checkpoint, save=tmp_path / "resumed")
    assert torch.equal(resumed["losses"], whole["losses"])
    whole_file, resumed_file = (tmp_path / run / "model.safetensors" for run in ("whole", "resumed"))
    assert whole_file.read_bytes() == resumed_file.read_bytes()
    with pytest.raises(AssertionError, match=r"another recipe .lr was 0.001, is 0.01"):
        cpp("stage", late, **(fields | {"stage": stage | {"lr": 0.01}}), checkpoint=checkpoint, save=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_loss_that_is_not_finite_stops_before_the_checkpoint(
    cpp: Any, tmp_path: Path, models: tuple[Any, dict[str, Any], Path]
) -> None:
    _, _, folder = models
    stage = Stage(**(FIELDS | {"lr": 1e30, "mixer_lr": 1e30, "checkpoint_every": 1, "warmup_steps": 0}))
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(
        AssertionError, match=r"match: the (loss|gradient).* at step \d; the weights are those before it"
    ):
        cpp(
            "stage", Batches().tensors(), name="match", student=folder / "student", teacher=folder / "teacher",
            stage=stage.model_dump(mode="json"), checkpoint=checkpoint, save=tmp_path / "x",
        )  # fmt: skip
    assert not (tmp_path / "x").exists()
