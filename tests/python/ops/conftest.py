"""What computes a rule: tests that use the fixture run on each backend, the native one with each instruction set."""

import pytest

from hybridattn import ops


@pytest.fixture(params=["aten", *ops.instruction_sets()])
def implementation(request):
    """What computes the chunked form and the step: ATen ops, or native kernels of one instruction set."""
    if request.param == "aten":
        with ops.use_backend("aten"):
            yield request.param
    else:
        with ops.use_backend("native"), ops.use_instruction_set(request.param):
            yield request.param
