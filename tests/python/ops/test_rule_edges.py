"""Where linear-attention rules have gone wrong in other libraries: causality, borders, extreme gates, hard keys."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from hybridattn import ops
from rule_cases import PER_CHANNEL, RULES, both, inputs
from tolerances import assert_close

pytestmark = pytest.mark.usefixtures("implementation")

DELTA = ("gated_delta_rule", "delta_rule", "kda")


def assert_all_close(actual, expected):
    for position, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(a, e, "value" if position < 2 else "gradient")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_future_token_changes_no_past_bit(rule, dtype):
    """An anchor in a sub-chunk's middle would let rounding of later gates into earlier tokens."""
    tensors, state = inputs(rule, 100, key_dim=24, value_dim=24, dtype=dtype)
    options = {"initial_state": state.float(), "chunk_size": 64}
    out, _ = getattr(ops, f"chunk_{rule}")(**tensors, **options)
    for now in (1, 7, 8, 15, 17, 31, 33, 63, 64, 65, 90):
        changed = {name: x.clone() for name, x in tensors.items()}
        for name, x in changed.items():
            x[:, now:] = -20 * torch.rand_like(x[:, now:]) if name == "g" else torch.randn_like(x[:, now:])
            if name == "g":
                x[:, now + 2 :: 5] = -torch.inf
        other, _ = getattr(ops, f"chunk_{rule}")(**changed, **options)
        assert torch.equal(other[:, :now], out[:, :now]), now


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_a_prefill_of_any_length_hands_its_state_over(rule):
    tensors, _ = inputs(rule, 66, heads=1, value_heads=1, key_dim=5, value_dim=4, batch=1)
    chunk, step = getattr(ops, f"chunk_{rule}"), getattr(ops, f"step_{rule}")
    expected, _ = getattr(ops, f"naive_{rule}")(**tensors)
    for split in range(1, 65):
        _, state = chunk(**{name: x[:, :split] for name, x in tensors.items()}, output_final_state=True)
        copied = state.clone()
        token = step(**{name: x[:, split : split + 1] for name, x in tensors.items()}, state=state)
        assert_close(token, expected[:, split : split + 1])
        rest, _ = chunk(**{name: x[:, split:] for name, x in tensors.items()}, initial_state=copied)
        assert_close(rest, expected[:, split:])


@pytest.mark.parametrize("rule", ["gated_delta_rule", "kda", "gla", "dplr_delta_rule"])
@pytest.mark.parametrize(
    "borders", [[0, 15], [0, 256, 500, 1000], [0, 1, 100, 300, 1200, 2048], [0, 0, 70, 70, 71, 71]], ids=str
)
def test_packed_documents_are_computed_as_alone(rule, borders):
    tensors, state = inputs(rule, borders[-1], heads=1, value_heads=2, batch=1, states=len(borders) - 1)
    chunk = getattr(ops, f"chunk_{rule}")
    leaves = [*tensors.values(), state]

    def with_gradients(out, final):
        return [out, final, *torch.autograd.grad(out.square().sum() + final.square().sum(), leaves)]

    packed = with_gradients(
        *chunk(**tensors, initial_state=state, output_final_state=True, cu_seqlens=torch.tensor(borders))
    )
    parts = []
    for number, (begin, end) in enumerate(itertools.pairwise(borders)):
        document = {name: x[:, begin:end] for name, x in tensors.items()}
        own = state[number : number + 1]
        parts.append(
            chunk(**document, initial_state=own, output_final_state=True) if end > begin else (document["v"], own)
        )
    assert_all_close(
        packed, with_gradients(*(torch.cat(x, dim) for x, dim in zip(zip(*parts, strict=True), (1, 0), strict=True)))
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("heads", "groups"), [(1, 8), (2, 3), (3, 1)])
def test_value_heads_share_keys_and_add_up_their_gradients(rule, heads, groups):
    tensors, state = inputs(rule, 66, heads=heads, value_heads=heads * groups, batch=1)
    expected, actual = both(rule, tensors, state)
    assert_all_close(actual, expected)


@pytest.mark.parametrize("rule", DELTA)
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_write_strengths_at_their_borders(rule, beta):
    tensors, state = inputs(rule, 80)
    with torch.no_grad():
        tensors["beta"].fill_(beta)
    expected, actual = both(rule, tensors, state)
    assert_all_close(actual, expected)
    if beta == 0 and rule == "delta_rule":
        assert torch.equal(actual[1], state), "nothing is written, nothing is forgotten"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("share", [0.5, 1.0])
@torch.no_grad()
def test_masked_tokens_leave_the_state_alone(rule, share):
    """A mixer masks a token by zero keys, values and gates; the others must not notice."""
    tensors, state = inputs(rule, 90, batch=1)
    masked = torch.rand(90) < share
    hidden = {name: x.masked_fill(masked.view(1, -1, *[1] * (x.dim() - 2)), 0) for name, x in tensors.items()}
    chunk = getattr(ops, f"chunk_{rule}")
    out, final = chunk(**hidden, initial_state=state, output_final_state=True)
    kept = {name: x[:, ~masked] for name, x in tensors.items()}
    alone = chunk(**kept, initial_state=state, output_final_state=True) if share < 1 else (out[:, :0], state)
    assert_close(out[:, ~masked], alone[0])
    assert_close(final, alone[1])


@pytest.mark.parametrize("rule", ["gated_delta_rule", "kda", "dplr_delta_rule"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_keys_have_finite_gradients(rule, dtype):
    """What a left-padded row looks like before its keys are normalised."""
    tensors, _ = inputs(rule, 40, dtype=dtype)
    raw = tensors["k"].detach().clone()
    raw[:, :25] = 0
    raw.requires_grad_()
    normed = {"k": ops.l2_normalize(raw)}
    if rule == "dplr_delta_rule":
        normed |= {"a": -normed["k"], "b": 0.5 * normed["k"]}
    out, _ = getattr(ops, f"chunk_{rule}")(**(tensors | normed))
    out.float().square().sum().backward()
    assert torch.isfinite(raw.grad).all()
    assert raw.grad[:, 30:].abs().sum() > 0


@pytest.mark.parametrize("rule", ["gated_delta_rule", "kda"])
@pytest.mark.parametrize("beta", [0.835, 1.0])
def test_identical_keys_and_hardly_any_decay(rule, beta):
    tensors, state = inputs(rule, 150, heads=1, value_heads=1, key_dim=32, value_dim=32, batch=1, dtype=torch.float32)
    with torch.no_grad():
        tensors["k"].copy_(tensors["k"][:, :1].expand_as(tensors["k"]))
        tensors["g"].fill_(-1e-3)
        tensors["beta"].uniform_(beta, 1.0)
    wide = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
    expected = both(rule, wide, state.detach().double().requires_grad_())[0]
    actual = both(rule, tensors, state)[1]
    assert_all_close(actual, [x.float() for x in expected])


@pytest.mark.parametrize("rule", ["gated_delta_rule", "kda"])
@torch.no_grad()
def test_8192_tokens_that_hardly_forget(rule):
    """Decay and write strength in [0.99, 1]: what fp32 loses must not pile up."""
    tensors, _ = inputs(rule, 8192, heads=1, value_heads=1, key_dim=16, value_dim=16, batch=1, dtype=torch.float32)
    for name, x in (("g", tensors["g"]), ("beta", tensors["beta"])):
        x.uniform_(0.99, 1.0)
        x.log_() if name == "g" else x
    chunk = getattr(ops, f"chunk_{rule}")
    out, state = chunk(**tensors, output_final_state=True)
    exact, last = chunk(**{name: x.double() for name, x in tensors.items()}, output_final_state=True)
    assert_close(out, exact.float())
    assert_close(state, last.float())


@pytest.mark.parametrize("rule", [rule for rule in RULES if "g" in RULES[rule]])
@pytest.mark.parametrize("normalizer", [0.01, 10.0])
def test_gates_from_nothing_to_everything(rule, normalizer):
    """Mamba-2's fastest rate, A_log = log 16, and GLA's normalisers from .01 to 10: decays down to e^-500 per token."""
    tensors, state = inputs(rule, 100)
    rates = torch.linspace(0.0, math.log(16.0), tensors["g"].shape[2], dtype=torch.float64).exp()
    with torch.no_grad():
        steps = F.softplus(3 * torch.randn_like(tensors["g"])) / normalizer
        tensors["g"].copy_(-rates.view(-1, *[1] * (steps.dim() - 3)) * steps)
    assert tensors["g"].min() < (-500 if normalizer < 1 else -2)
    expected, actual = both(rule, tensors, state)
    assert_all_close(actual, expected)


@pytest.mark.parametrize("rule", PER_CHANNEL)
@pytest.mark.parametrize("gate", [0.0, -20.0, -1000.0, -torch.inf])
def test_extreme_gates_of_single_channels(rule, gate):
    tensors, state = inputs(rule, 80)
    with torch.no_grad():
        tensors["g"][:, 30, :, 2] = gate
        tensors["g"][:, 64] = gate
        tensors["g"][:, 71:, :, ::2] = gate
    expected, actual = both(rule, tensors, state)
    assert_all_close(actual, expected)
