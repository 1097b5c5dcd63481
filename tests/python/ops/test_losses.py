"""Losses from hidden states against plain torch in fp64: values, gradients, and independence of the chunks."""

import pytest
import torch
import torch.nn.functional as F

from hybridattn import ops
from tolerances import assert_close


@pytest.fixture(params=[11, 299])
def models(request, implementation):
    vocabulary = request.param
    student, teacher = torch.randn(3, 7, 5, dtype=torch.float64), torch.randn(3, 7, 6, dtype=torch.float64)
    student_head, teacher_head = (torch.randn(vocabulary, d, dtype=torch.float64) for d in (5, 6))
    return student.requires_grad_(), student_head.requires_grad_(), teacher, teacher_head


def divergence(student, student_head, teacher, teacher_head, kind, temperature, beta):
    log_q = F.log_softmax(student @ student_head.T / temperature, -1)
    log_p = F.log_softmax(teacher @ teacher_head.T / temperature, -1)
    p, q = log_p.exp(), log_q.exp()
    log_m = (beta * p + (1 - beta) * q).log()
    values = {
        "forward": (p * (log_p - log_q)).sum(-1),
        "reverse": (q * (log_q - log_p)).sum(-1),
        "jsd": beta * (p * (log_p - log_m)).sum(-1) + (1 - beta) * (q * (log_q - log_m)).sum(-1),
    }
    return values[kind] * temperature**2


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("chunk_size", [0, 1, 4, 21])
def test_divergence_matches_torch(models, kind, chunk_size):
    weights = torch.rand(3, 7, dtype=torch.float64)
    weights[0, :2] = 0
    options = {"kind": kind, "temperature": 1.7, "jsd_beta": 0.3}
    per_token = divergence(*models, kind, 1.7, 0.3)
    expected = (per_token * weights).sum() / weights.sum()
    actual = ops.linear_kl_divergence(*models, weights=weights, chunk_size=chunk_size, **options)
    assert_close(actual, expected)
    for a, e in zip(torch.autograd.grad(actual, models[:2]), torch.autograd.grad(expected, models[:2]), strict=True):
        assert_close(a, e, "gradient")
    scores = ops.linear_kl_divergence(*models, reduction="none", chunk_size=chunk_size, **options)
    assert_close(scores, per_token)
    assert not scores.requires_grad


def test_equal_models_have_divergence_exactly_zero(models):
    student, head, *_ = models
    assert ops.linear_kl_divergence(student, head, student.detach(), head.detach()).item() == 0


@pytest.mark.parametrize("kind", ["forward", "reverse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergence_in_narrower_dtypes(models, kind, dtype):
    """The softmax is in fp32 even where everything else is bf16: only the inputs' and gradients' rounding shows."""
    narrow = [x.detach().to(dtype).requires_grad_(x.requires_grad) for x in models]
    wide = [x.detach().double().requires_grad_(x.requires_grad) for x in narrow]
    actual, expected = ops.linear_kl_divergence(*narrow, kind=kind), ops.linear_kl_divergence(*wide, kind=kind)
    assert_close(actual, expected.float())
    grads = zip(torch.autograd.grad(actual, narrow[:2]), torch.autograd.grad(expected, wide[:2]), strict=True)
    for a, e in grads:
        assert_close(a.double(), e, "gradient", dtype=dtype)


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_entries_without_probability_on_both_sides_count_nothing(kind, implementation):
    student, teacher, head = torch.randn(4, 3), torch.randn(4, 3), torch.randn(20, 3)
    padded = torch.cat([head, torch.full((5, 3), -1e30)])
    student, teacher = student.abs().requires_grad_(), teacher.abs()
    actual = ops.linear_kl_divergence(student, padded, teacher, padded, kind=kind)
    expected = ops.linear_kl_divergence(student, head, teacher, head, kind=kind)
    assert_close(actual, expected)
    assert_close(torch.autograd.grad(actual, student)[0], torch.autograd.grad(expected, student)[0])


def test_logits_that_are_not_numbers_are_not_hidden(implementation):
    student, head = torch.randn(4, 3), torch.randn(20, 3)
    student[2, 1] = torch.nan
    scores = ops.linear_kl_divergence(student, head, torch.randn(4, 3), head, reduction="none")
    assert scores.isnan().tolist() == [False, False, True, False]


def test_gradcheck_opcheck_and_compile(models):
    student, head, teacher, teacher_head = models

    def call(student, head):
        return ops.linear_kl_divergence(student, head, teacher, teacher_head, chunk_size=5)

    assert torch.autograd.gradcheck(call, (student, head))
    assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(student, head), call(student, head))
    op = torch.ops.hybridattn.linear_kl_divergence.default
    torch.library.opcheck(op, (student.detach(), head.detach(), teacher, teacher_head, None, 1.0, "forward", 0.5, 5))


def test_a_kept_graph_gives_the_same_gradient_again(models):
    total = 3 * ops.linear_kl_divergence(*models)
    first = [grad.clone() for grad in torch.autograd.grad(total, models[:2], retain_graph=True)]
    for again, expected in zip(torch.autograd.grad(total, models[:2]), first, strict=True):
        torch.testing.assert_close(again, expected, rtol=0, atol=0)


def test_cross_entropy_matches_torch(models):
    student, head, *_ = models
    labels = torch.randint(0, 11, (3, 7))
    labels[0, :3] = -100
    expected = F.cross_entropy((student @ head.T).flatten(0, 1), labels.flatten())
    for chunk_size in (0, 1, 5):
        actual = ops.linear_cross_entropy(student, head, labels, chunk_size=chunk_size)
        assert_close(actual, expected)
        gradients = zip(
            torch.autograd.grad(actual, (student, head)),
            torch.autograd.grad(expected, (student, head), retain_graph=True),
            strict=True,
        )
        for a, e in gradients:
            assert_close(a, e, "gradient")


def alignment_formula(prediction, target, kind):
    return {
        "l2_norm": (target - prediction).norm(dim=-1) * prediction.shape[-1] ** -0.5,
        "squared": (target - prediction).square().mean(-1),
        "cosine": 1 - F.cosine_similarity(prediction, target, dim=-1),
    }[kind]


@pytest.mark.parametrize("kind", ["l2_norm", "squared", "cosine"])
@pytest.mark.parametrize("size", [1, 8, 37])
@pytest.mark.parametrize(
    "dtypes",
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
    ids=lambda dtypes: f"{dtypes[0]}, {dtypes[1]}",
)
def test_alignment_loss(implementation, kind, size, dtypes):
    leaves = [torch.randn(2, 150, size).to(dtype).requires_grad_() for dtype in dtypes]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    mask = torch.rand(2, 150) > 0.3
    loss = ops.alignment_loss(*leaves, mask=mask, kind=kind)
    expected = alignment_formula(*exact, kind)[mask].mean()
    assert loss.dtype == (torch.float64 if dtypes[0] == torch.float64 else torch.float32)
    assert_close(loss, expected)
    if kind == "cosine" and size == 1:
        return  # constant
    for leaf, grad, wanted in zip(
        leaves, torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, exact), strict=True
    ):
        assert grad.dtype == leaf.dtype
        assert_close(grad, wanted, "gradient")
    wider = torch.full((2, 150, 2 * size + 1), torch.nan, dtype=dtypes[0])
    strided = wider[..., 1::2].copy_(leaves[0].detach())
    assert_close(ops.alignment_loss(strided, leaves[1], kind=kind), ops.alignment_loss(*leaves, kind=kind).detach())


def test_gradcheck_opcheck_and_the_compiler_of_the_alignment_loss(implementation):
    x, y = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *given: ops.alignment_loss(*given, reduction="none"), (x, y))
    if implementation != "aten":
        torch.library.opcheck(torch.ops.hybridattn.native_squared_distance.default, (x, y))
    compiled = torch.compile(ops.alignment_loss, fullgraph=True, backend="aot_eager")
    (grad,) = torch.autograd.grad(compiled(x, y), x)
    (wanted,) = torch.autograd.grad(alignment_formula(x, y, "l2_norm").mean(), x)
    assert_close(grad, wanted, "gradient")
    with pytest.raises(ValueError, match="target must have prediction's"):
        ops.alignment_loss(x, y[:2])


def test_a_perfect_prediction_has_a_finite_gradient():
    prediction = torch.randn(4, 8, requires_grad=True)
    loss = ops.alignment_loss(prediction, prediction.detach())
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


def test_bad_inputs_are_named(models):
    student, head, teacher, teacher_head = models
    with pytest.raises(ValueError, match=r"student_head has a vocabulary of (\d+), teacher_head of \d+"):
        ops.linear_kl_divergence(student, head, teacher, teacher_head[:10])
    with pytest.raises(ValueError, match="unknown kind 'backward'"):
        ops.linear_kl_divergence(*models, kind="backward")
    with pytest.raises(ValueError, match=rf"labels must be in \[0, {len(head)}\)"):
        ops.linear_cross_entropy(student, head, torch.full((3, 7), len(head)))
