"""Stages: exact zeros, independence of how a step is split, resuming to the same bits, errors that name things."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hybridattn as ha
from hybridattn.data import TokenData
from hybridattn.distill import NonFiniteLoss


def small_teacher(layers=3):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def corpus(length=16):
    generator = torch.Generator().manual_seed(1)
    return TokenData.from_tokens(torch.randint(0, 31, (40, length), generator=generator))


def stage(name, **fields):
    values = {"tokens": 8 * 4 * 16, "seq_len": 16, "batch_size": 4, "lr": 1e-3, "mixer_lr": 1e-2} | fields
    return getattr(ha.presets, name)("paper", **values)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def run_stage(name, model, teacher, **options):
    fields = options.pop("fields", {})
    models = (model,) if name == "finetune" else (model, teacher)
    return getattr(ha, name)(*models, corpus(), stage(name, **fields), **options)


def student_for(name, teacher):
    student = ha.convert(teacher, verbose=False)
    return student if name == "align" else ha.keep_softmax(student, teacher, [1])


@pytest.mark.parametrize("name", ["align", "match"])
def test_the_teachers_own_attention_has_loss_exactly_zero(name):
    teacher = small_teacher()
    student = ha.convert(teacher, mixer="softmax_attention", verbose=False)
    result = run_stage(name, student, teacher, fields={"tokens": 64, "lr": 0.0, "mixer_lr": 0.0})
    assert result.losses == [0.0]


@pytest.mark.parametrize("name", ["align", "match", "finetune"])
def test_the_loss_falls(name):
    teacher = small_teacher()
    result = run_stage(name, student_for(name, teacher), teacher, fields={"tokens": 40 * 64})
    assert sum(result.losses[-5:]) < 0.98 * sum(result.losses[:5])


@pytest.mark.parametrize("name", ["align", "match", "finetune"])
def test_micro_batches_do_not_change_the_step(name):
    teacher = small_teacher()
    results = []
    for size in (4, 1, 3):
        model = student_for(name, teacher)
        result = run_stage(name, model, teacher, fields={"micro_batch_size": size, "tokens": 3 * 64})
        results.append((result.losses, weights(model)))
    for losses, state in results[1:]:
        # A KL this small is a difference of log-probabilities around 4, each rounded by 2e-7, averaged over tokens.
        assert losses == pytest.approx(results[0][0], rel=1e-5, abs=5e-8)
        for key, tensor in state.items():
            torch.testing.assert_close(tensor, results[0][1][key], rtol=1e-3, atol=1e-4)


def test_only_mixers_train_in_align():
    teacher = small_teacher()
    student = ha.convert(teacher, verbose=False)
    before = weights(student)
    run_stage("align", student, teacher)
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(".self_attn." in name for name in changed)


def test_gradient_checkpointing_keeps_the_gradients():
    teacher = small_teacher()
    results = []
    for checkpointing in (False, True):
        model = student_for("match", teacher)
        run_stage("match", model, teacher, fields={"gradient_checkpointing": checkpointing, "tokens": 128})
        results.append(weights(model))
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]), name


def test_embeddings_are_tied_again():
    teacher = small_teacher()
    model = student_for("match", teacher)
    run_stage("match", model, teacher, fields={"untie_embeddings": True, "retie_embeddings": True})
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("name", ["align", "match", "finetune"])
def test_a_killed_stage_resumes_to_the_same_bits(name, tmp_path):
    script = textwrap.dedent("""
        import os, signal, sys, torch
        sys.path.insert(0, os.path.dirname(sys.argv[1]))
        from test_stages import run_stage, small_teacher, student_for
        name, folder = sys.argv[2:4]
        def kill(progress):
            if progress.step == 5:
                os.kill(os.getpid(), signal.SIGKILL)
        teacher = small_teacher()
        fields = {"checkpoint_every": 2, "log_every": 1}
        run_stage(name, student_for(name, teacher), teacher, run_dir=folder, progress=kill, fields=fields)
    """)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", script, __file__, name, str(tmp_path / "run")], env=environment)
    assert killed.returncode == -signal.SIGKILL
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        teacher = small_teacher()
        fields = {"checkpoint_every": 2, "log_every": 1}
        resumed, whole = student_for(name, teacher), student_for(name, teacher)
        first = run_stage(name, resumed, teacher, run_dir=tmp_path / "run", fields=fields)
        second = run_stage(name, whole, teacher, fields=fields)
    finally:
        torch.set_num_threads(threads)
    assert first.losses == second.losses
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    teacher = small_teacher()
    run_stage("align", ha.convert(teacher, verbose=False), teacher, run_dir=tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="mixer_lr"):
        run_stage("align", ha.convert(teacher, verbose=False), teacher, run_dir=tmp_path, fields={"mixer_lr": 5e-3})
    assert {path: path.read_bytes() for path in files} == files


def test_a_non_finite_loss_names_the_step_and_the_layer():
    teacher = small_teacher()
    student = ha.convert(teacher, verbose=False)
    with torch.no_grad():
        student.mixers()[1].q_proj.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteLoss, match="layer 1"):
        run_stage("align", student, teacher)


def test_unknown_fields_and_shared_parameters_are_named():
    with pytest.raises(ValueError, match="mixer_lr"):
        ha.presets.align("paper", mixer_rl=1e-3)
    teacher = small_teacher()
    with pytest.raises(ValueError, match="share"):
        ha.match(teacher, teacher, corpus(), stage("match"))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    """The disk fills up at the second checkpoint; the first one is whole, and the stage goes on from it later."""
    teacher = small_teacher()
    fields = {"checkpoint_every": 3}
    from hybridattn.distill import checkpoint

    write, calls = checkpoint.save_file, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) == 2:
            write(tensors, path)
            os.truncate(path, 100)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"cannot write .*step-00000006.*No space left.*earlier checkpoint is intact"):
        run_stage("align", ha.convert(teacher, verbose=False), teacher, run_dir=tmp_path, fields=fields)
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-00000003"]
    whole = run_stage("align", ha.convert(teacher, verbose=False), teacher, fields=fields)
    resumed = run_stage("align", ha.convert(teacher, verbose=False), teacher, run_dir=tmp_path, fields=fields)
    assert resumed.losses == whole.losses


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "sums.json"])
def test_a_damaged_checkpoint_is_named(tmp_path, name):
    teacher = small_teacher()
    run_stage("align", ha.convert(teacher, verbose=False), teacher, run_dir=tmp_path)
    (path,) = tmp_path.rglob(name)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=rf"{name} is damaged .*remove .*step-00000008 to start the stage again"):
        run_stage("align", ha.convert(teacher, verbose=False), teacher, run_dir=tmp_path)
