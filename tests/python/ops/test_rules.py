"""Linear-attention rules: every form against the recurrence in fp64, and against Transformers' own reference.

Every test runs on each backend, the native one with each instruction set of this machine.
"""

import itertools

import pytest
import torch

from hybridattn import ops
from rule_cases import PER_CHANNEL, RULES, both, inputs
from tolerances import assert_close, relative_error

NARROW_PRODUCTS = ("avx512_bf16", "amx")
"""Instruction sets that round factors to bf16 where inputs are bf16, unless the decay is per channel."""
OP_INPUTS = ("q", "k", "v", "g", "beta", "a", "b")
"""Order of the registered ops' arguments."""

pytestmark = pytest.mark.usefixtures("implementation")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tokens", [1, 15, 63, 64, 65, 75, 200])
def test_chunks_match_the_recurrence(rule, tokens):
    tensors, state = inputs(rule, tokens)
    expected, actual = both(rule, tensors, state)
    for position, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(a, e, "value" if position < 2 else "gradient")


@pytest.mark.parametrize("rule", RULES)
def test_fp32_stays_near_fp64(rule):
    tensors, state = inputs(rule, 130, key_dim=60, value_dim=100)
    expected = both(rule, tensors, state)[0]
    narrow = {name: x.detach().float().requires_grad_() for name, x in tensors.items()}
    out, final = getattr(ops, f"chunk_{rule}")(**narrow, initial_state=state.detach().float(), output_final_state=True)
    assert_close(out, expected[0].float())
    assert_close(final, expected[1].float())


@pytest.mark.parametrize("rule", RULES)
def test_bf16_inputs_keep_an_fp32_state(rule, implementation):
    tensors, _ = inputs(rule, 100, key_dim=32, value_dim=32, dtype=torch.bfloat16)
    out, final = getattr(ops, f"chunk_{rule}")(**tensors, output_final_state=True)
    wide = {name: x.detach().double() for name, x in tensors.items()}
    expected, state = getattr(ops, f"naive_{rule}")(**wide, output_final_state=True)
    assert out.dtype == torch.bfloat16
    assert final.dtype == torch.float32
    assert_close(out, expected.bfloat16())
    narrow_products = implementation in NARROW_PRODUCTS and rule not in PER_CHANNEL
    assert_close(final, state.float(), dtype=torch.bfloat16 if narrow_products else None)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("heads", [2, 4])
def test_gradients_of_bf16_inputs_are_rounded_once(rule, heads, implementation):
    """Those of 4 value heads that share 2 heads of queries and keys after their sum."""
    tensors, _ = inputs(rule, 100, heads=heads, key_dim=20, value_dim=36, dtype=torch.bfloat16)
    wide = {name: x.detach().float().requires_grad_() for name, x in tensors.items()}
    weight = torch.randn(tensors["v"].shape).bfloat16()

    def gradients(given):
        out, _ = getattr(ops, f"chunk_{rule}")(**given)
        return torch.autograd.grad(out, [*given.values()], weight.to(out.dtype))

    narrow_products = implementation in NARROW_PRODUCTS and rule not in PER_CHANNEL
    for grad, expected in zip(gradients(tensors), gradients(wide), strict=True):
        assert grad.dtype == torch.bfloat16
        if narrow_products:
            assert_close(grad, expected, "gradient", dtype=torch.bfloat16)
        else:
            assert torch.equal(grad, expected.bfloat16())


@pytest.mark.parametrize("head_dim", [16, 40, 64, 128])
def test_products_of_bf16_numbers_stay_within_their_error(head_dim, implementation):
    """The published bounds of kernels with bf16 factors and fp32 sums are 6e-3 (values) and 1e-2 (gradients) of an fp64
    result on the same inputs."""
    tensors, state = inputs("gated_delta_rule", 200, key_dim=head_dim, value_dim=head_dim, dtype=torch.bfloat16)
    state = state.detach().float().requires_grad_()
    wide = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
    expected = both("gated_delta_rule", wide, state.detach().double().requires_grad_())[0]
    actual = both("gated_delta_rule", tensors, state)[1]
    errors = [relative_error(a, e) for a, e in zip(actual, expected, strict=True)]
    assert errors[0] <= (6e-3 if implementation in NARROW_PRODUCTS else 3e-3)
    assert max(errors[2:]) <= 1e-2


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("borders", [[0, 77], [0, 1, 50, 50, 77], [0, 16, 32, 77]])
def test_packed_documents_are_separate(rule, borders):
    tensors, state = inputs(rule, 77, batch=1, states=len(borders) - 1)
    cu_seqlens = torch.tensor(borders)
    expected, actual = both(rule, tensors, state, cu_seqlens=cu_seqlens, chunk_size=16)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, "gradient")
    for number, (begin, end) in enumerate(itertools.pairwise(borders)):
        alone = {name: x[:, begin:end] for name, x in tensors.items()}
        out, final = getattr(ops, f"chunk_{rule}")(
            **alone, initial_state=state[number : number + 1], output_final_state=True
        )
        assert_close(actual[0][:, begin:end], out)
        assert_close(actual[1][number], final[0])


@pytest.mark.parametrize("rule", RULES)
def test_steps_continue_a_prefill(rule):
    tensors, _ = inputs(rule, 70)
    tensors = {name: x.detach() for name, x in tensors.items()}
    expected, last = getattr(ops, f"naive_{rule}")(**tensors, output_final_state=True)
    for split in (1, 63, 64, 65):
        head = {name: x[:, :split] for name, x in tensors.items()}
        out, state = getattr(ops, f"chunk_{rule}")(**head, output_final_state=True)
        outputs = [out]
        for t in range(split, 70):
            token = {name: x[:, t : t + 1] for name, x in tensors.items()}
            outputs.append(getattr(ops, f"step_{rule}")(**token, state=state))
        assert_close(torch.cat(outputs, 1), expected)
        assert_close(state, last)


SHAPES = [(16, 16), (60, 100), (64, 33), (1, 1), (130, 7), (256, 128)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("key_dim", "value_dim"), SHAPES)
def test_any_head_dimensions(rule, key_dim, value_dim):
    tensors, state = inputs(rule, 70, heads=1, value_heads=2, key_dim=key_dim, value_dim=value_dim, batch=1)
    expected, actual = both(rule, tensors, state)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, "gradient")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("chunk_size", [1, 5, 16, 64, 100])
def test_the_chunk_size_changes_nothing(rule, chunk_size):
    tensors, state = inputs(rule, 107)
    expected, actual = both(rule, tensors, state, chunk_size=chunk_size)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, "gradient")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_in_narrower_dtypes(rule, dtype):
    """Inputs are rounded first, so that only the arithmetic is compared."""
    tensors, state = inputs(rule, 130, key_dim=32, value_dim=48, dtype=dtype)
    state = state.detach().float().requires_grad_()
    wide = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
    expected = both(rule, wide, state.detach().double().requires_grad_())[0]
    actual = both(rule, tensors, state)[1]
    for a, e in zip(actual, expected, strict=True):
        assert_close(a.double(), e, "gradient", dtype=dtype)


@pytest.mark.parametrize("rule", RULES)
def test_only_rows_and_columns_that_exist_are_touched(rule):
    """Inputs are windows of larger arrays full of NaN, and the last dimension has a stride of 2."""
    tensors, state = inputs(rule, 37, key_dim=10, value_dim=13)
    expected, _ = both(rule, tensors, state)

    def window(x):
        outer = torch.full(
            (x.shape[0] + 1, x.shape[1] + 3, x.shape[2] + 1, *(2 * n + 5 for n in x.shape[3:])), torch.nan
        )
        inner = outer.to(x.dtype)[1:, 1:-2, 1:]
        inner = inner[..., 3 : 3 + 2 * x.shape[3] : 2] if x.dim() == 4 else inner
        inner.copy_(x.detach())
        return inner.requires_grad_()

    actual = both(rule, {name: window(x) for name, x in tensors.items()}, state)[1]
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, "gradient")


@pytest.mark.parametrize("rule", RULES)
def test_backends_understand_each_others_states(rule):
    """The states that forward saves have one layout: a graph may be saved by one backend and run back by the other."""
    tensors, state = inputs(rule, 77, batch=1, states=3)
    cu_seqlens = torch.tensor([0, 20, 20, 77])
    arguments = [x.detach() if x is not None else None for x in map(tensors.get, OP_INPUTS)]
    forward = getattr(torch.ops.hybridattn, f"chunk_{rule}")
    backward = getattr(torch.ops.hybridattn, f"chunk_{rule}_backward")
    states = [forward(*arguments, 0.3, state.detach(), cu_seqlens, 16, True, name)[2] for name in ("native", "aten")]
    assert_close(*states)
    grad_out = torch.randn_like(arguments[2])
    native, aten = (
        backward(*arguments, 0.3, cu_seqlens, 16, saved, grad_out, state.detach(), name)
        for saved, name in zip(states, ("aten", "native"), strict=True)
    )
    for a, e in zip(native, aten, strict=True):
        assert_close(a, e, "gradient")


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes_strides_packings_and_gates(seed):
    draw = torch.Generator().manual_seed(seed)

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (1,), generator=draw))]

    torch.manual_seed(seed)
    rule, heads, groups = pick(*RULES), pick(1, 2, 3), pick(1, 2, 4)
    documents = [*(pick(0, 1, 5, 63, 64, 65, 90) for _ in range(pick(0, 1, 3))), pick(1, 77, 128)]
    tensors, state = inputs(
        rule,
        sum(documents),
        heads=heads,
        value_heads=heads * groups,
        key_dim=pick(3, 16, 31, 64),
        value_dim=pick(2, 16, 33, 80),
        batch=1,
        states=len(documents),
    )
    with torch.no_grad():
        if "g" in tensors:
            tensors["g"].mul_(pick(0.01, 1.0, 10.0))
            tensors["g"][torch.rand(tensors["g"].shape) < 0.05] = pick(0.0, -20.0, -1000.0, -torch.inf)
        if "beta" in tensors:
            tensors["beta"].mul_(pick(0.0, 1.0, 2.0))
    if pick(False, True):
        tensors = {
            name: x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
            for name, x in tensors.items()
        }
    cu_seqlens = torch.tensor([0, *itertools.accumulate(documents)])
    expected, actual = both(rule, tensors, state, cu_seqlens=cu_seqlens, chunk_size=pick(16, 48, 64))
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, "gradient")


@pytest.mark.parametrize("gate", [0.0, -20.0, -1000.0, -torch.inf])
def test_extreme_gates_are_finite_and_exact(gate):
    tensors, _ = inputs("gated_delta_rule", 80)
    with torch.no_grad():
        tensors["g"][:, 30] = gate
        tensors["g"][:, 64] = gate
    state = torch.zeros(2, 4, 10, 6, dtype=torch.float64, requires_grad=True)
    expected, actual = both("gated_delta_rule", tensors, state)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, "gradient")


def test_repeated_keys_do_not_overflow():
    tensors, _ = inputs("gated_delta_rule", 128, key_dim=32, value_dim=32, dtype=torch.float32)
    with torch.no_grad():
        tensors["k"].copy_(tensors["k"][:, :1].expand_as(tensors["k"]))
        tensors["g"].fill_(-1e-3)
        tensors["beta"].fill_(0.95)
    out, _ = ops.chunk_gated_delta_rule(**tensors)
    wide = {name: x.detach().double() for name, x in tensors.items()}
    assert_close(out, ops.naive_gated_delta_rule(**wide)[0].float())


def test_against_transformers():
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    tensors, _ = inputs("gated_delta_rule", 150, heads=4, key_dim=32, value_dim=32, dtype=torch.float32)
    expected = torch_chunk_gated_delta_rule(*tensors.values(), output_final_state=True)
    out, state = ops.chunk_gated_delta_rule(**tensors, output_final_state=True)
    assert_close(out, expected[0])
    assert_close(state, expected[1].to(state.dtype))


def test_non_contiguous_inputs():
    tensors, state = inputs("gated_delta_rule", 40)
    strided = {name: x.detach().transpose(1, 2).contiguous().transpose(1, 2) for name, x in tensors.items()}
    assert not strided["v"].is_contiguous()
    out, _ = ops.chunk_gated_delta_rule(**strided, initial_state=state.detach())
    assert_close(out, ops.chunk_gated_delta_rule(**tensors, initial_state=state)[0])


@pytest.mark.parametrize("rule", RULES)
def test_gradcheck_opcheck_and_compile(rule, implementation):
    tensors, state = inputs(rule, 9, heads=1, value_heads=2, key_dim=3, value_dim=2, batch=1)
    names = list(tensors)

    def call(state, *values):
        return getattr(ops, f"chunk_{rule}")(
            **dict(zip(names, values, strict=True)), initial_state=state, output_final_state=True, chunk_size=4
        )

    assert torch.autograd.gradcheck(call, (state, *tensors.values()))
    arguments = (
        *map(tensors.get, OP_INPUTS),
        0.5,
        state,
        None,
        4,
        False,
        "aten" if implementation == "aten" else "native",
    )
    torch.library.opcheck(getattr(torch.ops.hybridattn, f"chunk_{rule}").default, arguments)
    # Every rule and set compiles the one function above anew; its recompilations are limited per process.
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_close(compiled(state, *tensors.values())[0], call(state, *tensors.values())[0])


@pytest.mark.parametrize("heads", [1, 3])
def test_threads_do_not_change_a_bit(heads, implementation):
    """Neither when there are fewer heads than threads: a head's value columns are then computed apart."""
    tensors, state = inputs(
        "gated_delta_rule", 200, heads=heads, value_heads=heads, value_dim=100, batch=1, dtype=torch.float32
    )
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(both("gated_delta_rule", tensors, state)[1])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, e in zip(other, results[0], strict=True):
            assert_close(a, e) if implementation == "aten" else torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_bad_inputs_are_named():
    tensors, _ = inputs("gated_delta_rule", 8)
    with pytest.raises(ValueError, match="chunk_gated_delta_rule: k has head dimension 9, q has 10"):
        ops.chunk_gated_delta_rule(**(tensors | {"k": tensors["k"][..., :9]}))
    with pytest.raises(ValueError, match="beta must be"):
        ops.chunk_gated_delta_rule(**(tensors | {"beta": tensors["beta"][:, :4]}))
    with pytest.raises(ValueError, match="batch of 1, got batch 2"):
        ops.chunk_gated_delta_rule(**tensors, cu_seqlens=torch.tensor([0, 8]))
    half = {name: x.half() for name, x in tensors.items()}
    with pytest.raises(
        ValueError, match="native backend computes on CPU tensors of float64, float32 or bfloat16, got Half"
    ):
        ops.chunk_gated_delta_rule(**half, backend="native")
    with pytest.raises(
        ValueError, match="instruction set 'sse9' is unknown or not on this machine, which has portable"
    ):
        ops.use_instruction_set("sse9").__enter__()
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        ops.chunk_gated_delta_rule(**tensors, backend="cuda")


def test_a_forced_backend_runs_and_is_reported(implementation):
    tensors, _ = inputs("delta_rule", 8)
    chosen = "aten" if implementation == "aten" else "native"
    with_default = ops.backend_report().get("chunk_delta_rule", {}).get(chosen, 0)
    ops.chunk_delta_rule(**tensors)
    assert ops.backend_report()["chunk_delta_rule"][chosen] == with_default + 1
    before = ops.backend_report().get("chunk_delta_rule", {}).get("naive", 0)
    with ops.use_backend("naive"):
        ops.chunk_delta_rule(**tensors)
    assert ops.backend_report()["chunk_delta_rule"]["naive"] == before + 1


@pytest.mark.parametrize("form", ["naive", "chunk", "step"])
@pytest.mark.parametrize("rule", RULES)
def test_autocast_narrows_nothing_inside(rule, form):
    """A surrounding autocast changes no bit: the state's arithmetic stays in fp32, forward and backward."""
    tensors, state = inputs(rule, 1 if form == "step" else 70, dtype=torch.float32)
    op = getattr(ops, f"{form}_{rule}")

    def results():
        leaves = {name: x.detach().clone().requires_grad_(form != "step") for name, x in tensors.items()}
        if form == "step":
            after = state.detach().clone()
            with torch.no_grad():
                return [op(**leaves, state=after), after]
        out, final = op(**leaves, initial_state=state.detach(), output_final_state=True)
        if form == "naive":  # its gradient is PyTorch's own, which autocast may narrow
            return [out, final]
        return [out, final, *torch.autograd.grad(out.square().sum() + final.sum(), leaves.values())]

    expected = results()
    with torch.autocast("cpu", torch.bfloat16):
        actual = results()
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
