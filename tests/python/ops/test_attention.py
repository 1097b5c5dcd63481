"""Softmax attention against the formula in fp64, PyTorch's SDPA and itself: values, gradients, what is visible."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from hybridattn import ops
from hybridattn.evaluate import cost
from tolerances import assert_close

CASES = {
    "within a block": {"T": 50, "H": 6, "HKV": 2},
    "several blocks": {"T": 300, "H": 2, "HKV": 1},
    "a whole block": {"T": 128, "H": 2, "HKV": 2},
    "one token": {"T": 1, "H": 2, "HKV": 2, "Tk": 1},
    "one query of grouped heads": {"T": 1, "H": 6, "HKV": 2, "Tk": 140},
    "the last queries": {"T": 37, "H": 4, "HKV": 2, "Tk": 290},
    "wide, K != V": {"T": 40, "H": 2, "HKV": 2, "K": 70, "V": 33},
    "narrow": {"T": 33, "H": 3, "HKV": 1, "K": 1, "V": 3},
    "not causal": {"T": 45, "H": 2, "HKV": 1, "Tk": 150, "causal": False},
    "window": {"T": 300, "H": 2, "HKV": 2, "window": 40},
    "window and sinks": {"T": 300, "H": 4, "HKV": 2, "window": 150, "sinks": 5},
    "many sinks": {"T": 420, "H": 1, "HKV": 1, "window": 20, "sinks": 200},
    "window of one": {"T": 150, "H": 1, "HKV": 1, "window": 1},
    "one query, window": {"T": 1, "H": 4, "HKV": 2, "Tk": 300, "window": 30, "sinks": 2},
    "no token": {"T": 0, "H": 2, "HKV": 1},
}


def problem(T, H, HKV, Tk=None, K=20, V=20, dtype=torch.float32, batch=2, **options):
    torch.manual_seed(0)
    Tk = T if Tk is None else Tk
    shapes = (batch, T, H, K), (batch, Tk, HKV, K), (batch, Tk, HKV, V)
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes], options


def reference(q, k, v, *, scale=None, causal=True, window=0, sinks=0, padding_mask=None):
    """All scores at once."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    j = torch.arange(k.shape[1])
    i = j[len(j) - q.shape[1] :, None]
    visible = (j <= i if causal else (j <= i) | True).expand(len(k), 1, -1, -1)
    first = torch.zeros(len(k), 1, 1, 1) if padding_mask is None else padding_mask.long().argmax(1).view(-1, 1, 1, 1)
    if window:
        visible = visible & ((j > i - window) | (j < first + sinks))
    if padding_mask is not None:
        visible = (visible & padding_mask[:, None, None]) | (j == i)
    return torch.einsum("bhij,bjhd->bihd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v)


def assert_same(function, expected_function, leaves):
    """Value and every gradient."""
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    dtype = leaves[0].dtype
    out, expected = function(*leaves), expected_function(*exact)
    assert out.dtype == dtype
    assert_close(out, expected, dtype=dtype)
    weight = torch.randn(expected.shape).to(dtype)
    grads = torch.autograd.grad(out, leaves, weight)
    wanted = torch.autograd.grad(expected, exact, weight.double())
    for grad, want, leaf in zip(grads, wanted, leaves, strict=True):
        assert grad.dtype == leaf.dtype
        if out.shape[1:2] == leaf.shape[1:2] == (1,) and want.abs().max() < 1e-12:
            continue  # the only weight of a softmax has no gradient: rounding is all there is to compare
        assert_close(grad, want, "gradient", dtype=dtype)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_fp64(implementation, case, dtype):
    leaves, options = problem(**CASES[case], dtype=dtype)
    assert_same(
        lambda *given: ops.softmax_attention(*given, **options), lambda *given: reference(*given, **options), leaves
    )


@pytest.mark.parametrize("scores", [1e-3, 30.0, 1000.0])
def test_scores_of_any_size(implementation, scores):
    leaves, _ = problem(T=200, H=2, HKV=1, dtype=torch.float64)
    assert_same(
        lambda *given: ops.softmax_attention(*given, scale=scores),
        lambda *given: reference(*given, scale=scores),
        leaves,
    )


@pytest.mark.parametrize("options", [{}, {"window": 40, "sinks": 3}, {"window": 140}], ids=str)
def test_documents_are_separate(implementation, options):
    borders = [0, 13, 13, 14, 150, 290]
    leaves, _ = problem(T=borders[-1], H=4, HKV=2, batch=1, dtype=torch.float64)
    parts = [slice(*span) for span in itertools.pairwise(borders)]
    assert_same(
        lambda *given: ops.softmax_attention(*given, cu_seqlens=torch.tensor(borders), **options),
        lambda *given: torch.cat([reference(*(x[:, part] for x in given), **options) for part in parts], 1),
        leaves,
    )


@pytest.mark.parametrize("options", [{}, {"window": 40, "sinks": 3}, {"causal": False}], ids=str)
@pytest.mark.parametrize("queries", [290, 30, 1])
def test_padding_is_seen_by_nobody_but_itself(implementation, options, queries):
    leaves, _ = problem(T=queries, H=4, HKV=2, Tk=290, batch=3, dtype=torch.float64)
    mask = torch.ones(3, 290, dtype=torch.bool)
    mask[0, :137] = False
    mask[1, 280:] = False
    assert_same(
        lambda *given: ops.softmax_attention(*given, padding_mask=mask, **options),
        lambda *given: reference(*given, padding_mask=mask, **options),
        leaves,
    )
    with torch.no_grad():
        whole = ops.softmax_attention(*leaves, padding_mask=torch.ones_like(mask), **options)
        assert_close(whole, ops.softmax_attention(*leaves, **options))


def test_torchs_own_attention_agrees(implementation):
    leaves, _ = problem(T=260, H=6, HKV=2, K=32, V=32)
    assert_same(
        lambda *given: ops.softmax_attention(*given),
        lambda *given: F.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in given), is_causal=True, enable_gqa=True
        ).transpose(1, 2),
        leaves,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_windows_of_larger_arrays_full_of_nan(implementation, dtype):
    leaves, options = problem(T=140, H=4, HKV=2, dtype=dtype, window=30, sinks=2)

    def surrounded(x):
        B, T, H, D = x.shape
        larger = torch.full((B + 1, T + 3, H + 1, 2 * D + 2), torch.nan, dtype=dtype)
        part = larger[1:, 2 : T + 2, :H, 1 : 2 * D + 1 : 2]
        return part.copy_(x.detach()).requires_grad_()

    inside = [surrounded(leaf) for leaf in leaves]
    assert not any(x.is_contiguous() for x in inside)
    assert_same(
        lambda *given: ops.softmax_attention(*given, **options), lambda *given: reference(*given, **options), inside
    )
    heads_first = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in leaves]
    out = ops.softmax_attention(*heads_first, **options)
    expanded = torch.ones((), dtype=dtype).expand_as(out)
    for grad, want in zip(
        torch.autograd.grad(out, heads_first, expanded),
        torch.autograd.grad(ops.softmax_attention(*leaves, **options), leaves, expanded.contiguous()),
        strict=True,
    ):
        assert_close(grad, want, "gradient")


@pytest.mark.parametrize("case", ["several blocks", "many sinks", "one query of grouped heads", "not causal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_no_bit(case, dtype):
    """Heads are fewer than threads or more."""
    leaves, options = problem(**CASES[case], dtype=dtype, batch=1)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3, 16):
            torch.set_num_threads(number)
            out = ops.softmax_attention(*leaves, backend="native", **options)
            found.append((out, *torch.autograd.grad(out.float().square().sum(), leaves)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@torch.no_grad()
def test_a_future_token_changes_no_past_bit(implementation):
    (q, k, v), _ = problem(T=200, H=2, HKV=1, batch=1)
    out = ops.softmax_attention(q, k, v)
    for now in (1, 7, 31, 64, 127, 128, 150):
        changed = [x.clone() for x in (q, k, v)]
        for x in changed:
            x[:, now:] = 100 * torch.randn_like(x[:, now:])
        assert torch.equal(ops.softmax_attention(*changed)[:, :now], out[:, :now])


def test_gradcheck_opcheck_and_the_compiler(implementation):
    leaves, _ = problem(T=5, H=2, HKV=1, K=3, V=2, dtype=torch.float64, batch=1)
    mask = torch.tensor([[False, True, True, True, True]])
    documents = torch.tensor([0, 2, 5])
    assert torch.autograd.gradcheck(lambda *x: ops.softmax_attention(*x, window=3, sinks=1), leaves)
    assert torch.autograd.gradcheck(lambda *x: ops.softmax_attention(*x, padding_mask=mask), leaves)
    if implementation != "aten":
        op = torch.ops.hybridattn.native_attention.default
        torch.library.opcheck(op, (*leaves, None, True, 0, 0, None, None))
        torch.library.opcheck(op, (*leaves, 0.5, True, 3, 1, documents, None))
        torch.library.opcheck(op, (*leaves, 0.5, False, 0, 0, None, mask))
    compiled = torch.compile(
        lambda *x: ops.softmax_attention(*x, window=3, sinks=1).square().sum(), fullgraph=True, backend="aot_eager"
    )
    expected = torch.autograd.grad(reference(*leaves, window=3, sinks=1).square().sum(), leaves)
    for grad, wanted in zip(torch.autograd.grad(compiled(*leaves), leaves), expected, strict=True):
        assert_close(grad, wanted, "gradient")


def test_a_second_derivative_is_refused():
    leaves, _ = problem(T=5, H=2, HKV=1)
    (grad,) = torch.autograd.grad(
        ops.softmax_attention(*leaves, backend="native").square().sum(), leaves[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="native_attention_backward"):
        grad.sum().backward()


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_autocast_narrows_what_it_narrows_for_sdpa(implementation, given):
    (q, k, v), _ = problem(T=30, H=2, HKV=1)
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.softmax_attention(q, k, v.to(given))
    assert out.dtype == torch.bfloat16
    (grad,) = torch.autograd.grad(out.sum(), q)
    assert grad.dtype == torch.float32
    assert_close(out, reference(*(x.bfloat16().double() for x in (q, k, v))), dtype=torch.bfloat16)


def test_memory_is_linear():
    if cost._resident("VmHWM") is None:
        pytest.skip("the system does not tell the process's peak memory")
    (q, k, v), _ = problem(T=4096, H=1, HKV=1, K=16, V=16, batch=1)

    def step():
        torch.autograd.grad(ops.softmax_attention(q, k, v, backend="native").sum(), (q, k, v))

    step()
    peak = cost._PeakMemory(torch.device("cpu"))
    step()
    assert peak.read() < 4096 * 4096 * 4 / 8, "scores alone would take 64 MiB"


def test_what_does_not_fit():
    (q, k, v), _ = problem(T=6, H=4, HKV=2)
    for arguments, message in (
        ((q[0], k, v), r"q, k, v must be \[B, T, H, D\]"),
        ((q, k[:1], v), "q, k, v have batches of 2, 1 and 2"),
        ((q, k[..., :3], v), "k has head dimension 3, q has 20"),
        ((q, k, v[:, :5]), "v must have k's tokens and heads"),
        ((q[:, :, :3], k, v), "q's heads 3 must be a multiple of k's 2"),
        ((q, k[:, :5], v[:, :5]), "6 queries but only 5 keys"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.softmax_attention(*arguments)
    with pytest.raises(ValueError, match="cu_seqlens needs a batch of 1"):
        ops.softmax_attention(q, k, v, cu_seqlens=torch.tensor([0, 6]))
    with pytest.raises(ValueError, match=r"padding_mask must be \[2, 6\], got \[2, 5\]"):
        ops.softmax_attention(q, k, v, padding_mask=torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="must not be negative"):
        ops.softmax_attention(q, k, v, window=-1)
    with pytest.raises(
        ValueError, match="needs q, k and v of one dtype, got Float, Float and Double; choose backend aten"
    ):
        ops.softmax_attention(q, k, v.double(), backend="native")
    with pytest.raises(ValueError, match="computes on CPU tensors"):
        ops.softmax_attention(q.half(), k.half(), v.half(), backend="native")
