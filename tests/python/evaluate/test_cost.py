"""Cost against context length: cache sizes by arithmetic, memory and time as far as they can be known beforehand."""

import time

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hybridattn as ha
from hybridattn.evaluate import cache_bytes, cost, measure_cost

LAYERS, KV_HEADS, HEAD = 3, 2, 8


@pytest.fixture(scope="module")
def models():
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=KV_HEADS, head_dim=HEAD,
    )  # fmt: skip
    teacher = LlamaForCausalLM(config).eval()
    return {"teacher": teacher, "hybrid": ha.keep_softmax(ha.convert(teacher, verbose=False), teacher, [1])}


def keys_and_values(layers, length, batch=1):
    return layers * 2 * batch * KV_HEADS * HEAD * length * 4


def test_caches_are_as_large_as_arithmetic_says(models):
    measured = measure_cost(models, [40, 16, 40], batch_size=2, decode_tokens=2, repeats=2)
    teacher, hybrid = (measured["models"][name]["points"] for name in ("teacher", "hybrid"))
    assert [point["length"] for point in teacher] == [16, 40]
    assert [point["cache_bytes"] for point in teacher] == [keys_and_values(LAYERS, n, 2) for n in (16, 40)]
    # Two of three layers keep a state of constant size: K x V floats per head and sequence.
    state = 2 * 2 * 4 * HEAD * HEAD * 4
    assert [point["cache_bytes"] for point in hybrid] == [state + keys_and_values(1, n, 2) for n in (16, 40)]
    for point in teacher + hybrid:
        assert point["prefill_tokens_per_second"] == pytest.approx(2 * point["length"] / point["prefill_seconds"])
        assert point["decode_tokens_per_second"] == pytest.approx(2 / point["decode_seconds"])
        assert point["prefill_seconds"] > 0
    assert measured["machine"]["threads"] == torch.get_num_threads()
    assert measured["machine"]["dtype"] == "float32"
    weights = sum(p.nbytes for p in models["teacher"].parameters())
    assert measured["models"]["teacher"]["parameter_bytes"] == weights


def test_what_is_timed_is_prefill_and_single_tokens(models, monkeypatch):
    """Every token takes 10 ms here: the context costs its length, a step one token, whatever the machine does."""
    teacher = models["teacher"]
    calls = []

    def clocked(**arguments):
        tokens = arguments["input_ids"].shape[1]
        calls.append(tokens)
        clock.now += 0.01 * tokens
        return forward(**arguments)

    class clock:
        now = 0.0

    forward = teacher.forward
    monkeypatch.setattr(teacher, "forward", clocked)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    (point,) = measure_cost({"teacher": teacher}, [12], decode_tokens=3, repeats=2)["models"]["teacher"]["points"]
    assert point["prefill_seconds"] == pytest.approx(0.12)
    assert point["decode_seconds"] == pytest.approx(0.01)
    assert calls == [12, 1, 1, 1] * 4, "one round to warm up, two that count, one for memory"


def test_peak_memory_sees_what_was_freed_again():
    if cost._resident("VmHWM") is None:
        pytest.skip("the system does not tell the process's peak memory")
    peak = cost._PeakMemory(torch.device("cpu"))
    torch.ones(2**24)  # 64 MiB
    first, second = peak.read(), peak.read()
    # The kernel counts in batches of pages.
    assert 0.9 * 2**26 <= first < 2**27
    assert second < 2**24, "each reading starts anew"


def test_every_tensor_of_a_cache_counts_once():
    class Layer:
        def __init__(self):
            self.keys = torch.zeros(4)
            self.same = self.keys
            self.states = {0: torch.zeros(2, dtype=torch.float64), 1: [torch.zeros(1)]}
            self.name = "layer"

    cache = type("Cache", (), {"layers": [Layer(), Layer()]})()
    assert cache_bytes(cache) == 2 * (16 + 16 + 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": []}, "give at least one length"),
        ({"lengths": [8, 0]}, "lengths must be at least 1, got 0"),
        ({"lengths": [8], "repeats": 0}, "repeats must be at least 1, got 0"),
        ({"lengths": [8], "decode_tokens": 0}, "decode_tokens must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_measured_is_named(models, arguments, message):
    with pytest.raises(ValueError, match=message):
        measure_cost(models, **arguments)
    with pytest.raises(ValueError, match="no model"):
        measure_cost({}, [8])
