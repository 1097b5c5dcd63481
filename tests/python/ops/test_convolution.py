"""Short convolution against torch's conv1d in fp64: values, gradients, activation, documents, state, the compiler."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from hybridattn import ops
from tolerances import assert_close

SHAPES = [(2, 7, 5, 4), (1, 40, 16, 4), (3, 1, 33, 3), (1, 2, 8, 5), (1, 130, 300, 2), (2, 9, 4, 1), (1, 0, 3, 4)]
"""B, T, D, W: channels that fill no vector, sequences shorter than the filter, several blocks of channels."""
DOCUMENTS = [0, 1, 3, 3, 20, 24, 37]


def problem(shape, dtype=torch.float32):
    torch.manual_seed(0)
    B, T, D, W = shape
    return [x.to(dtype).requires_grad_() for x in (torch.randn(B, T, D), torch.randn(D, W), torch.randn(D))]


def reference(x, weight, bias, activation):
    D, W = weight.shape
    padded = F.pad(x.transpose(1, 2), (W - 1, 0))
    out = F.conv1d(padded, weight.unsqueeze(1), bias, groups=D).transpose(1, 2) if x.shape[1] else x * 1
    return F.silu(out) if activation == "silu" else out


def assert_same(function, expected_function, leaves):
    """Value and every gradient."""
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    out, expected = function(*leaves), expected_function(*exact)
    dtype = leaves[0].dtype
    assert out.dtype == dtype
    assert_close(out, expected, dtype=dtype)
    weight = torch.randn_like(expected)
    grads = torch.autograd.grad(out, leaves, weight.to(dtype), allow_unused=True)
    wanted = torch.autograd.grad(expected, exact, weight.to(dtype).double(), allow_unused=True)
    for grad, want, leaf in zip(grads, wanted, leaves, strict=True):
        assert grad.dtype == leaf.dtype
        assert_close(grad, torch.zeros_like(leaf) if want is None else want, "gradient", dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_fp64(implementation, shape, activation, dtype):
    assert_same(
        lambda *given: ops.short_convolution(*given, activation=activation),
        lambda *given: reference(*given, activation),
        problem(shape, dtype),
    )


@pytest.mark.parametrize("activation", ["none", "silu"])
def test_documents_are_separate(implementation, activation):
    leaves = problem((1, DOCUMENTS[-1], 20, 4), torch.float64)
    spans = list(itertools.pairwise(DOCUMENTS))
    assert_same(
        lambda *given: ops.short_convolution(*given, cu_seqlens=torch.tensor(DOCUMENTS), activation=activation),
        lambda x, *rest: torch.cat([reference(x[:, a:b], *rest, activation) for a, b in spans if b > a], 1),
        leaves,
    )


def test_a_state_goes_on_where_a_sequence_stopped(implementation):
    x, weight, bias = problem((2, 11, 6, 4), torch.float64)
    whole = ops.short_convolution(x, weight, bias, activation="silu")
    for cut in (3, 7, 10):
        state = x[:, cut - 3 : cut].transpose(1, 2)
        rest = ops.short_convolution(x[:, cut:], weight, bias, state=state, activation="silu")
        assert_close(rest, whole[:, cut:])
    state = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, state: ops.short_convolution(x, weight, bias, state=state),
        (x[:, :2].detach().requires_grad_(), state),
    )


def test_strided_inputs(implementation):
    x, weight, bias = (leaf.detach() for leaf in problem((2, 9, 12, 3)))
    expected = reference(x, weight, bias, "none")
    channels_first = x.transpose(1, 2).contiguous().transpose(1, 2)
    part_of_wider = torch.cat((x, x), -1)[..., :12]
    for given in (channels_first, part_of_wider):
        assert_close(ops.short_convolution(given, weight.t().contiguous().t(), bias), expected)
    leaf = x.clone().requires_grad_()
    out = ops.short_convolution(leaf, weight, bias)
    (grad,) = torch.autograd.grad(out, leaf, torch.ones(1, 1, 1).expand_as(out))
    (wanted,) = torch.autograd.grad(reference(leaf, weight, bias, "none").sum(), leaf)
    assert_close(grad, wanted, "gradient")


def test_threads_change_no_bit():
    leaves = problem((1, 50, 700, 4))
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            out = ops.short_convolution(*leaves, activation="silu")
            found.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_gradcheck_opcheck_and_the_compiler(implementation):
    leaves = problem((2, 6, 4, 3), torch.float64)
    assert torch.autograd.gradcheck(lambda *given: ops.short_convolution(*given, activation="silu"), leaves)
    documents = torch.tensor([0, 2, 6])
    packed = [leaf.detach()[:1] if leaf.dim() == 3 else leaf.detach() for leaf in leaves]
    backend = "aten" if implementation == "aten" else "native"
    torch.library.opcheck(torch.ops.hybridattn.causal_convolution.default, (*leaves, None, True, backend))
    torch.library.opcheck(torch.ops.hybridattn.causal_convolution.default, (*packed, documents, False, backend))
    call = torch.compile(
        lambda *given: ops.short_convolution(*given).square().sum(), fullgraph=True, backend="aot_eager"
    )
    expected = torch.autograd.grad(reference(*leaves, "none").square().sum(), leaves)
    for grad, wanted in zip(torch.autograd.grad(call(*leaves), leaves), expected, strict=True):
        assert_close(grad, wanted, "gradient")


def test_what_does_not_fit():
    x, weight, bias = problem((2, 6, 4, 3))
    with pytest.raises(
        ValueError, match=r"x must be \[B, T, D\], weight \[D, W\] and bias \[D\], got \[2, 6, 4\], \[3, 3\]"
    ):
        ops.short_convolution(x, weight[1:])
    with pytest.raises(ValueError, match=r"and a bias of \[3\]"):
        ops.short_convolution(x, weight, bias[1:])
    with pytest.raises(ValueError, match=r"state must be \[B, D, W - 1\] = \[2, 4, 2\], got \[2, 4, 3\]"):
        ops.short_convolution(x, weight, state=torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match="cu_seqlens needs a batch of 1, got 2"):
        ops.short_convolution(x, weight, cu_seqlens=torch.tensor([0, 6]))
    with pytest.raises(ValueError, match="cannot be given together"):
        ops.short_convolution(x[:1], weight, state=torch.zeros(1, 4, 2), cu_seqlens=torch.tensor([0, 6]))
    with pytest.raises(ValueError, match="cu_seqlens must run from 0 to the number of tokens 6"):
        ops.short_convolution(x[:1], weight, cu_seqlens=torch.tensor([0, 5]), backend="native")
    with pytest.raises(ValueError, match="activation must be 'none' or 'silu', got 'gelu'"):
        ops.short_convolution(x, weight, activation="gelu")
