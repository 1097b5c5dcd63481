"""RMSNorm, gated or not, and L2 normalisation on every instruction set, against plain formulas and Transformers."""

import pytest
import torch
import torch.nn.functional as F

from hybridattn import ops
from tolerances import assert_close

pytestmark = pytest.mark.usefixtures("implementation")


def inputs(*shape, dtype=torch.float64):
    """x, gate and weight that all want a gradient."""
    x, gate, weight = torch.randn(shape), torch.randn(shape), torch.rand(shape[-1]) + 0.5
    return tuple(y.to(dtype).requires_grad_() for y in (x, gate, weight))


def plain_rms(x, _, weight):
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


def plain_gated(x, gate, weight):
    return plain_rms(x, gate, weight) * F.silu(gate)


def plain_l2(x):
    x = F.silu(x)
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (2, 70, 3, 33), (300, 128), (5, 1000)])
def test_values_and_gradients(shape, dtype):
    """More rows than a task takes, sizes that fit no vector; inputs are rounded first, so that only arithmetic counts."""
    tensors = inputs(*shape, dtype=dtype)
    wide = tuple(y.detach().double().requires_grad_() for y in tensors)
    for op, plain, names in (
        (lambda x, gate, weight: ops.gated_rms_norm(x, gate, weight, 1e-5), plain_gated, ("x", "gate", "weight")),
        (lambda x, _, weight: ops.rms_norm(x, weight, 1e-5), plain_rms, ("x", "weight")),
        (lambda x, *_: ops.l2_normalize(x, activation="silu"), lambda x, *_: plain_l2(x), ("x",)),
    ):
        out, expected = op(*tensors), plain(*wide)
        assert out.dtype == dtype
        assert_close(out.double(), expected, dtype=dtype)
        direction = torch.randn(shape).to(dtype)
        used = [("x", "gate", "weight").index(name) for name in names]
        actual = torch.autograd.grad(out, [tensors[i] for i in used], direction)
        gradients = torch.autograd.grad(expected, [wide[i] for i in used], direction.double())
        for a, e in zip(actual, gradients, strict=True):
            assert a.dtype == dtype
            if shape != (1, 1):  # one number alone, normed, has a gradient that is a difference of equal ones
                assert_close(a.double(), e, "gradient", dtype=dtype)


def test_registered_op_is_whole(implementation):
    x, gate, weight = inputs(4, 6)
    backend = "aten" if implementation == "aten" else "native"
    for arguments in ((x, weight, gate, 1e-5, True, False, backend), (x, None, None, 1e-6, False, True, backend)):
        torch.library.opcheck(torch.ops.hybridattn.row_norm.default, arguments)
    assert torch.autograd.gradcheck(lambda *y: ops.gated_rms_norm(y[0], y[1], y[2], 1e-5), (x, gate, weight))
    assert torch.autograd.gradcheck(lambda y: ops.l2_normalize(y, activation="silu"), (x,))

    def call(x, gate, weight):
        return ops.gated_rms_norm(ops.l2_normalize(x), gate, weight, 1e-5)

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, gate, weight), call(x, gate, weight))


def test_against_transformers():
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

    x, gate, weight = inputs(3, 5, 16, dtype=torch.float32)
    theirs = Qwen3NextRMSNormGated(16, 1e-5)
    theirs.weight.data.copy_(weight.detach())
    assert_close(ops.gated_rms_norm(x, gate, weight, 1e-5), theirs(x, gate))


def test_dtypes_may_differ_and_strides_do_not_matter():
    """A bf16 stream under weights that train in fp32, and views of larger arrays."""
    x, gate, weight = inputs(6, 40, dtype=torch.float32)
    out = ops.gated_rms_norm(x.bfloat16(), gate, weight, 1e-5)
    assert out.dtype == torch.bfloat16
    assert_close(out.float(), plain_gated(x.bfloat16().float(), gate, weight), dtype=torch.bfloat16)
    strided = torch.full((6, 80), torch.nan)[:, ::2].copy_(x.detach()).requires_grad_()
    assert_close(ops.l2_normalize(strided), ops.l2_normalize(x))
    (grad,) = torch.autograd.grad(ops.gated_rms_norm(x, gate, weight, 1e-5).sum(), weight)  # a gradient of stride 0
    assert_close(grad, torch.autograd.grad(plain_gated(x, gate, weight).sum(), weight)[0], "gradient")


def test_extremes():
    zero = torch.zeros(2, 5, requires_grad=True)
    ops.l2_normalize(zero, activation="silu").sum().backward()
    assert torch.isfinite(zero.grad).all()
    far = torch.tensor([[-200.0, 200.0, 0.0, -1.0]])
    assert_close(ops.l2_normalize(far, activation="silu"), plain_l2(far))
    assert_close(
        ops.gated_rms_norm(torch.ones(1, 4), far, torch.ones(4), 1e-5), plain_gated(torch.ones(1, 4), far, 1.0)
    )
    assert ops.l2_normalize(torch.empty(0, 3)).shape == (0, 3)


def test_threads_do_not_change_a_bit(implementation):
    tensors = inputs(1000, 24, dtype=torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out = ops.gated_rms_norm(*tensors, 1e-5)
            results.append([out, *torch.autograd.grad(out.sin().sum(), tensors)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, e in zip(other, results[0], strict=True):
            assert_close(a, e, "gradient") if implementation == "aten" else torch.testing.assert_close(
                a, e, rtol=0, atol=0
            )


def test_bad_inputs_are_named():
    x, gate, weight = inputs(2, 4)
    with pytest.raises(ValueError, match=r"row_norm: weight must be \[4\], got \[3\]"):
        ops.gated_rms_norm(x, gate, weight[:3], 1e-5)
    with pytest.raises(ValueError, match=r"gate must have x's shape \[2, 4\], got \[1, 4\]"):
        ops.gated_rms_norm(x, gate[:1], weight, 1e-5)
    with pytest.raises(ValueError, match="activation must be 'none' or 'silu', got 'gelu'"):
        ops.l2_normalize(x, activation="gelu")
    with pytest.raises(ValueError, match="native backend computes on CPU tensors"):
        ops.l2_normalize(x.half(), backend="native")
