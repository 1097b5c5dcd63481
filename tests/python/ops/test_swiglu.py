"""The gated unit against its formula in fp64: values, gradients, strides, the compiler."""

import pytest
import torch
import torch.nn.functional as F

from hybridattn import ops
from tolerances import assert_close


def formula(x, y):
    return F.silu(x) * y


@pytest.mark.parametrize("shape", [(3, 5), (2, 7, 33), (1, 1500), (40, 1024), (0, 4), ()])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_fp64(implementation, shape, dtype):
    leaves = [(4 * torch.randn(shape)).to(dtype).requires_grad_() for _ in range(2)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    out, expected = ops.swiglu(*leaves), formula(*exact)
    assert out.dtype == dtype
    assert_close(out, expected, dtype=dtype)
    weight = torch.randn(shape).to(dtype)
    for grad, wanted in zip(
        torch.autograd.grad(out, leaves, weight), torch.autograd.grad(expected, exact, weight.double()), strict=True
    ):
        assert grad.dtype == dtype
        assert_close(grad, wanted, "gradient", dtype=dtype)


def test_extreme_inputs(implementation):
    x = torch.tensor([-torch.inf, -1e4, -90.0, 0.0, 90.0, 1e4, torch.inf, torch.nan], requires_grad=True)
    out = ops.swiglu(x, torch.ones(8))
    assert out[[0, 7]].isnan().all()  # -inf * 0
    assert_close(out[1:6], F.silu(x[1:6]))
    assert out[6] == torch.inf
    (grad,) = torch.autograd.grad(out[1:6].sum(), x)
    assert_close(grad[1:6], torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]), "gradient")


def test_strided_inputs(implementation):
    wide = torch.randn(6, 50, 4)
    x, y = wide[::2, :, 1], wide[1::2, :, 2]
    assert_close(ops.swiglu(x, y), formula(x, y))
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(ops.swiglu(leaf, y), leaf, torch.ones(()).expand(3, 50))
    (wanted,) = torch.autograd.grad(formula(leaf, y).sum(), leaf)
    assert_close(grad, wanted, "gradient")


def test_gradcheck_opcheck_and_the_compiler(implementation):
    x, y = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(ops.swiglu, (x, y))
    backend = "aten" if implementation == "aten" else "native"
    torch.library.opcheck(torch.ops.hybridattn.swiglu.default, (x, y, backend))
    compiled = torch.compile(lambda *given: ops.swiglu(*given).square().sum(), fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(formula(x, y).square().sum(), (x, y))
    for grad, wanted in zip(torch.autograd.grad(compiled(x, y), (x, y)), expected, strict=True):
        assert_close(grad, wanted, "gradient")


def test_what_does_not_fit():
    x = torch.randn(3, 4)
    with pytest.raises(
        ValueError, match=r"x and y must have one shape and dtype, got Float \[3, 4\] and Float \[3, 3\]"
    ):
        ops.swiglu(x, x[:, :3])
    with pytest.raises(ValueError, match="and Double"):
        ops.swiglu(x, x.double())
