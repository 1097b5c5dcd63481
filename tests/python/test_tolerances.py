"""The measure that the other tests trust: it sees what it must see."""

import pytest
import torch

from tolerances import assert_close, relative_error


def test_error_is_relative_to_the_size_of_the_expected_values() -> None:
    expected = torch.tensor([3.0, -4.0])
    assert relative_error(expected * 1.01, expected) == pytest.approx(0.01, rel=1e-4)
    assert relative_error(expected * 1.01e6, expected * 1e6) == pytest.approx(0.01, rel=1e-4)


def test_zero_expected_values_leave_the_absolute_difference() -> None:
    assert relative_error(torch.full((4,), 0.5), torch.zeros(4)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        (torch.tensor([1.0, 2.0, 3.0]), "shape"),
        (torch.tensor([1.0, float("nan")]), "non-finite"),
        (torch.tensor([1.0, 2.001]), "relative error"),
    ],
)
def test_differences_fail(actual: torch.Tensor, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_close(actual, torch.tensor([1.0, 2.0]))


def test_equal_values_pass() -> None:
    assert_close(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
    assert_close(torch.empty(0), torch.empty(0))
