"""Every tolerance of the Python tests, by kind of comparison and dtype. Loosening one needs a reason, beside it.

The measure is relative: the RMS of the difference over the RMS of the expected values, so it does not depend on scale,
and no single element near zero decides.
"""

import torch
from torch import Tensor

TOLERANCES: dict[str, dict[torch.dtype, float]] = {
    # The same values by another order of operations: rounding of the dtype, grown over a few hundred terms.
    "value": {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2},
    # Gradients pass through twice as many operations as values.
    "gradient": {torch.float64: 1e-9, torch.float32: 5e-5, torch.bfloat16: 2e-2},
    # A whole model's logits against another implementation of it.
    "logits": {torch.float32: 1e-4, torch.bfloat16: 3e-2},
    # One training step after another in two languages.
    "loss_curve": {torch.float32: 1e-5},
}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """RMS(actual - expected) / RMS(expected) in fp64; the plain RMS of the difference where expected is all zero."""
    actual, expected = actual.detach().double(), expected.detach().double()
    difference = (actual - expected).square().mean().sqrt().item()
    size = expected.square().mean().sqrt().item()
    return difference / size if size > 0 else difference


def assert_close(actual: Tensor, expected: Tensor, kind: str = "value", *, dtype: torch.dtype | None = None) -> None:
    """Fail unless shapes agree and the relative error is within row `kind` for `dtype` (default: actual's)."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert torch.isfinite(actual).all(), "non-finite values"
    if actual.numel() == 0:
        return
    allowed = TOLERANCES[kind][dtype or actual.dtype]
    error = relative_error(actual, expected)
    assert error <= allowed, f"{kind}: relative error {error:.3g}, allowed {allowed:.3g}"
