"""Rotary embedding: every backend gives Transformers' bits; gradients, strides, partial rotation, bad shapes."""

import itertools

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from hybridattn import ops

SHAPES = [
    (2, 7, 3, 8, 8),
    (1, 5, 2, 64, 64),
    (1, 130, 2, 128, 128),
    (2, 3, 1, 20, 12),
    (1, 4, 2, 6, 2),
    (1, 1, 1, 34, 34),
]
"""B, T, H, K, R: halves that fill no vector, whole ones, a part that does not rotate."""

DTYPES = list(itertools.product([torch.float64, torch.float32, torch.bfloat16], [torch.float32, torch.bfloat16]))


def problem(shape, dtype=torch.float32, angle_dtype=torch.float32, batch=None):
    torch.manual_seed(0)
    B, T, H, K, R = shape
    x = torch.randn(B, T, H, K).to(dtype).requires_grad_()
    # Of independent halves: nothing may rely on their being alike.
    cos, sin = (torch.randn(batch or B, T, R).to(angle_dtype) for _ in range(2))
    return x, cos, sin


def composed(x, cos, sin):
    """Written out, after Su et al."""
    R = cos.shape[-1]
    first, second = x[..., : R // 2], x[..., R // 2 : R]
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    turned = x[..., :R] * cos + torch.cat((-second, first), -1) * sin
    return torch.cat((turned.to(x.dtype), x[..., R:]), -1)


def same(x, y):
    torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "angle_dtype"), DTYPES)
def test_the_bits_are_those_of_the_composition(implementation, shape, dtype, angle_dtype):
    x, cos, sin = problem(shape, dtype, angle_dtype)
    same(ops.apply_rotary(x, cos, sin), composed(x, cos, sin))
    if shape[3] == shape[4] and dtype == angle_dtype:
        same(ops.apply_rotary(x, cos, sin), apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)[0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_are_those_of_autograd(implementation, shape, dtype):
    x, cos, sin = problem(shape, dtype)
    weight = torch.randn_like(x)
    (expected,) = torch.autograd.grad(composed(x, cos, sin), x, weight)
    (found,) = torch.autograd.grad(ops.apply_rotary(x, cos, sin), x, weight)
    same(found, expected)


def test_gradients_to_any_order_and_of_the_angles(implementation):
    x, cos, sin = (tensor.double() for tensor in problem((1, 3, 2, 6, 4)))
    x = x.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.apply_rotary(x, cos, sin), (x,))
    assert torch.autograd.gradgradcheck(lambda x: ops.apply_rotary(x, cos, sin).square(), (x,))
    if implementation == "aten" or implementation == ops.instruction_sets()[-1]:
        leaves = x, cos.requires_grad_(), sin.requires_grad_()
        assert torch.autograd.gradcheck(ops.apply_rotary, leaves)


def test_strided_inputs_and_angles_for_the_whole_batch(implementation):
    x, cos, sin = problem((2, 9, 3, 16, 16), batch=1)
    expected = composed(x, cos, sin)
    heads_first = x.detach().transpose(1, 2).contiguous().transpose(1, 2)
    channels = torch.stack((x.detach(), x.detach() + 1), -1)[..., 0]
    expanded = x.detach()[:, :1].expand(2, 9, 3, 16)
    same(ops.apply_rotary(heads_first, cos, sin), expected.detach())
    same(ops.apply_rotary(channels, cos, sin), expected.detach())
    same(ops.apply_rotary(expanded, cos, sin), composed(expanded, cos, sin))
    wide = torch.cat((cos, sin), -1)
    same(ops.apply_rotary(x, wide[..., :16], wide[..., 16:]), expected)


def test_nothing_to_rotate(implementation):
    x, cos, sin = problem((2, 0, 3, 8, 8))
    assert ops.apply_rotary(x, cos, sin).shape == (2, 0, 3, 8)
    x, cos, sin = problem((2, 4, 3, 8, 0))
    same(ops.apply_rotary(x, cos, sin), x)


def test_not_a_number_stays_where_it_is(implementation):
    x, cos, sin = problem((1, 2, 2, 8, 4), torch.bfloat16, torch.bfloat16)
    x = x.detach()
    x[0, 1, 0, 0] = float("nan")
    found = ops.apply_rotary(x, cos, sin).isnan()
    assert found.nonzero().tolist() == [[0, 1, 0, 0], [0, 1, 0, 2]]


def test_opcheck_and_the_compiler():
    x, cos, sin = problem((2, 5, 2, 12, 8))
    for backend in ("native", "aten"):
        torch.library.opcheck(torch.ops.hybridattn.apply_rotary, (x, cos, sin, False, backend))
    compiled = torch.compile(
        lambda x: ops.apply_rotary(x, cos, sin).square().sum(), fullgraph=True, backend="aot_eager"
    )
    same(torch.autograd.grad(compiled(x), x), torch.autograd.grad(composed(x, cos, sin).square().sum(), x))


@pytest.mark.parametrize(
    ("cos", "sin"),
    [
        ((2, 7, 6), (2, 7, 8)),
        ((2, 6, 8), (2, 6, 8)),
        ((2, 7, 10), (2, 7, 10)),
        ((2, 7, 5), (2, 7, 5)),
        ((3, 7, 8), (3, 7, 8)),
    ],
)
def test_shapes_that_do_not_fit(cos, sin):
    with pytest.raises(ValueError, match=r"apply_rotary: x must be .* with an even R <= K, got \[2, 7, 3, 8\]"):
        ops.apply_rotary(torch.randn(2, 7, 3, 8), torch.randn(cos), torch.randn(sin))
