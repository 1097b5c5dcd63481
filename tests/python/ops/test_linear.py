"""Linear layers against torch.nn.functional: values, gradients to any order, strides, threads."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from hybridattn import ops
from tolerances import assert_close

SHAPES = [((), 5, 3), ((7,), 16, 9), ((2, 33), 70, 40), ((300,), 520, 65), ((0,), 8, 4), ((4,), 8, 0)]
"""Dimensions of x before its last, features in, features out."""


def problem(shape, dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    rows, features_in, features_out = shape
    leaves = [torch.randn(*rows, features_in), torch.randn(features_out, features_in)]
    leaves += [torch.randn(features_out)] if bias else []
    return [leaf.to(dtype).requires_grad_() for leaf in leaves]


@pytest.mark.parametrize(("shape", "bias"), list(itertools.product(SHAPES, (True, False))))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_are_those_of_fp64(implementation, shape, dtype, bias):
    leaves = problem(shape, dtype, bias)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    out, expected = ops.linear(*leaves), F.linear(*exact)
    assert_close(out, expected, dtype=dtype)
    weight = torch.randn_like(expected)
    grads = torch.autograd.grad(out, leaves, weight.to(dtype))
    for grad, wanted, leaf in zip(grads, torch.autograd.grad(expected, exact, weight), leaves, strict=True):
        assert grad.shape == leaf.shape
        assert grad.dtype == dtype
        assert_close(grad, wanted, "gradient", dtype=dtype)


def test_gradients_to_any_order(implementation):
    leaves = problem(((3,), 6, 4), torch.float64)
    assert torch.autograd.gradcheck(ops.linear, leaves)
    assert torch.autograd.gradgradcheck(lambda *given: ops.linear(*given).square(), leaves)


def test_strided_and_transposed_inputs(implementation):
    x, weight = (leaf.detach() for leaf in problem(((24,), 40, 18), bias=False))
    expected = F.linear(x.double(), weight.double())
    by_columns = torch.stack((x, x + 1), -1)[..., 0]
    wide = torch.cat((weight, weight), 1)[:, :40]
    for given in ((x.t().contiguous().t(), weight), (x, weight.t().contiguous().t()), (by_columns, wide)):
        assert_close(ops.linear(*given), expected, dtype=torch.float32)
    assert_close(ops.linear(x[:1].expand(24, 40), weight), expected[:1].expand(24, 18), dtype=torch.float32)


def test_threads_and_other_rows_change_no_bit():
    x, weight = (leaf.detach() for leaf in problem(((200,), 600, 130), bias=False))
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 3, 4):
            torch.set_num_threads(number)
            found.append(ops.linear(x, weight, backend="native"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert torch.equal(ops.linear(x[57:60], weight, backend="native"), found[0][57:60])


def test_opcheck_and_the_compiler():
    x, weight, bias = problem(((2, 5), 12, 8))
    for backend in ("native", "aten"):
        torch.library.opcheck(torch.ops.hybridattn.linear.default, (x, weight, bias, backend))
    call = torch.compile(
        lambda *given: ops.linear(*given, backend="native").square().sum(), fullgraph=True, backend="aot_eager"
    )
    expected = torch.autograd.grad(F.linear(x, weight, bias).square().sum(), (x, weight, bias))
    for grad, wanted in zip(torch.autograd.grad(call(x, weight, bias), (x, weight, bias)), expected, strict=True):
        assert_close(grad, wanted, "gradient")


def test_what_does_not_fit():
    x, weight, bias = problem(((2, 5), 12, 8))
    with pytest.raises(
        ValueError, match=r"x must be \[\.\.\., K\], weight \[N, K\] and bias \[N\], got \[2, 5, 12\], \[8, 11\]"
    ):
        ops.linear(x, weight[:, 1:])
    with pytest.raises(ValueError, match=r"and a bias of \[7\]"):
        ops.linear(x, weight, bias[1:])
    with pytest.raises(ValueError, match="native backend computes on CPU tensors of float64 or float32, both the same"):
        ops.linear(x.bfloat16(), weight.bfloat16(), backend="native")
    with pytest.raises(ValueError, match="unknown backend 'fast'"):
        ops.linear(x, weight, backend="fast")
