"""States saved at some chunks only: the same results to the bit, as little memory as is said."""

import os
import subprocess
import sys

import pytest
import torch

from hybridattn import ops
from rule_cases import RULES, both, inputs

DOCUMENTS = torch.tensor([0, 0, 5, 69, 69, 230, 237])
"""Empty documents, one of a part of a chunk, one of several groups of chunks that do not divide evenly."""


def results(rule, interval, dtype, cu_seqlens=None, tokens=237):
    torch.manual_seed(0)
    packed = cu_seqlens is not None
    tensors, state = inputs(
        rule, tokens, batch=1 if packed else 2, states=len(cu_seqlens) - 1 if packed else None, dtype=dtype
    )
    with ops.use_state_interval(interval):
        return both(rule, tensors, state, cu_seqlens=cu_seqlens, chunk_size=16)


def assert_equal(interval, reference):
    for x, y in zip(interval, reference, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("interval", [2, 4, 100])
def test_values_and_gradients_are_the_same_to_the_bit(implementation, rule, dtype, interval):
    for cu_seqlens in (None, DOCUMENTS):
        assert_equal(
            results(rule, interval, dtype, cu_seqlens)[1],
            results(rule, 1, dtype, cu_seqlens)[1],
        )


@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_those_of_the_recurrence(implementation, rule):
    naive, chunked = results(rule, 3, torch.float64)
    for expected, found in zip(naive, chunked, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["native", "aten"])
@pytest.mark.parametrize("other", ["native", "aten"])
def test_a_backend_goes_back_from_the_states_that_the_other_saved(backend, other):
    torch.manual_seed(0)
    tensors, state = inputs("gated_delta_rule", 100, dtype=torch.float64)
    given = [tensors.get(name) for name in ("q", "k", "v", "g", "beta", "a", "b")]
    with torch.no_grad():
        forward = torch.ops.hybridattn.chunk_gated_delta_rule
        backward = torch.ops.hybridattn.chunk_gated_delta_rule_backward
        grads = []
        for first, interval in ((backend, 1), (other, 3)):
            out, _, states = forward(*given, 0.3, state, None, 16, True, first, interval)
            grads.append(backward(*given, 0.3, None, 16, states, torch.ones_like(out), None, backend, interval))
    for expected, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("interval", "rows"), [(1, 2 * 7), (2, 2 * 4), (3, 2 * 3), (100, 2)])
def test_so_many_states_are_saved_and_the_meta_kernel_knows(implementation, interval, rows):
    tensors, _ = inputs("kda", 100, dtype=torch.float32)
    op = torch.ops.hybridattn.chunk_kda
    for device in ("cpu", "meta"):
        moved = [
            None if tensors.get(name) is None else tensors[name].detach().to(device)
            for name in ("q", "k", "v", "g", "beta", "a", "b")
        ]
        assert op(*moved, 1.0, None, None, 16, True, "auto", interval)[2].shape == (rows, 4, 10, 6)


def test_the_compiler_keeps_the_interval():
    torch.manual_seed(0)
    tensors, _ = inputs("gated_delta_rule", 100, dtype=torch.float32)

    def loss(**given):
        return ops.chunk_gated_delta_rule(**given, chunk_size=16)[0].square().sum()

    expected = torch.autograd.grad(loss(**tensors), tensors.values())
    with ops.use_state_interval(4):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        found = torch.autograd.grad(compiled(**tensors), tensors.values())
    assert_equal(found, expected)


def test_the_innermost_block_counts_then_the_environment():
    assert ops.state_interval() == 1
    with ops.use_state_interval(8):
        with ops.use_state_interval(2):
            assert ops.state_interval() == 2
        assert ops.state_interval() == 8
    assert ops.state_interval() == 1


@pytest.mark.parametrize("value", ["4", "0", "four"])
def test_the_environment(monkeypatch, value):
    monkeypatch.setenv("HYBRIDATTN_STATE_INTERVAL", value)
    if value == "4":
        assert ops.state_interval() == 4
    else:
        with pytest.raises(ValueError, match=rf"HYBRIDATTN_STATE_INTERVAL: .* 1 or more, got {value}"):
            ops.state_interval()


def test_what_is_no_interval_is_refused():
    with pytest.raises(ValueError, match=r"use_state_interval: .* got 0"), ops.use_state_interval(0):
        pass
    tensors, _ = inputs("lightning", 20)
    given = [tensors.get(name) for name in ("q", "k", "v", "g", "beta", "a", "b")]
    with pytest.raises(ValueError, match="chunk_lightning: state_interval must be positive, got 0"):
        torch.ops.hybridattn.chunk_lightning(*given, 1.0, None, None, 16, False, "auto", 0)


MEMORY = """
import torch
from hybridattn import ops
torch.manual_seed(0)
q, k, v = (torch.randn(1, 4096, 2, 64, requires_grad=True) for _ in range(3))
g = -torch.rand(1, 4096, 2)
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
kept, marks = [], []
with ops.use_state_interval({interval}):
    for _ in range(9):
        kept.append(ops.chunk_lightning(q, k, v, g)[0].mean())
        marks.append(resident())
print((marks[-1] - marks[0]) / 8)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_between_forward_and_backward_is_what_is_said():
    """KiB that one more layer keeps. Its states: 64 chunks x 2 heads x 64 x 64 floats = 2 MiB, at 8 chunks 256 KiB."""

    def kept(interval):
        command = [sys.executable, "-c", MEMORY.format(interval=interval)]
        # Freed blocks go back at once, so that resident memory is memory in use.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
        return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)

    assert kept(1) - kept(8) == pytest.approx(2048 - 256, rel=0.1)
