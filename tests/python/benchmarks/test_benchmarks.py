"""Benchmarks: contenders compute the same, times interleave, memory is the call's own, a run writes its files."""

import json
import sys
from pathlib import Path

import pytest
import torch

from tolerances import assert_close

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.measure import Timing, interleaved, peak_memory, ratio, undisturbed
from benchmarks.registry import benchmark, find, matching

from benchmarks import entries, machine, run

entries.load()


def tensors(result):
    return [torch.as_tensor(part) for part in (result if isinstance(result, (tuple, list)) else [result])]


@pytest.mark.parametrize("name", [found.name for found in matching([])])
def test_all_contenders_compute_the_same(name):
    found = find(name)
    contenders = found.build(**found.tiny, dtype=torch.float32)
    contenders.pop("its matrix products alone", None)  # a bound, not an implementation
    ours, *peers = [tensors(contender()) for contender in contenders.values()]
    assert peers
    for peer in peers:
        for actual, expected in zip(ours, peer, strict=True):
            if actual.is_floating_point():
                assert_close(actual, expected, "gradient")
            else:
                assert torch.equal(actual, expected)


def test_every_round_calls_every_contender_and_the_order_rotates():
    calls = []
    timings = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=4)
    assert "".join(calls) == "ab" + "abba" * 2
    assert [len(timing.seconds) for timing in timings.values()] == [4, 4]


def test_the_ratio_is_the_median_of_the_rounds():
    # The machine is ten times slower in the middle round: times differ, the ratio does not.
    ours, peer = Timing([1.0, 10.0, 2.0]), Timing([3.0, 30.0, 4.0])
    assert ratio(peer, ours) == 3.0
    assert (ours.median, ours.quartiles) == (2.0, (1.5, 6.0))


def test_the_least_disturbed_measurement_counts(monkeypatch):
    shares = iter([0.5, 0.2, 0.04, 0.0])
    monkeypatch.setattr(machine, "wait_until_quiet", lambda deadline: None)
    monkeypatch.setattr(machine.Bystanders, "__exit__", lambda self, *_: setattr(self, "share", next(shares)))
    assert undisturbed({"a": lambda: None}, 1, patience=60)[1] == 0.04
    shares = iter([0.5, 0.0])
    assert undisturbed({"a": lambda: None}, 1, patience=0)[1] == 0.5


def test_peak_memory_is_that_of_the_call():
    logits = 64 * 40_000 * 4 / 2**20
    eager = peak_memory(find("linear_kl_divergence/forward_backward"), "torch eager", {"N": 64, "D": 8, "V": 40_000}, 1)
    heads = 2 * 40_000 * 8 * 4 / 2**20
    assert heads <= eager.inputs <= heads + 3
    assert 3 * logits <= eager.extra <= 8 * logits


def test_names_are_unique_and_unknown_ones_are_errors():
    with pytest.raises(ValueError, match="registered twice"):
        benchmark("align/step", cases=[], tiny={})(lambda dtype: {})
    with pytest.raises(ValueError, match=r"no name contains 'nothing', known are .*align/step"):
        list(matching(["nothing"]))
    assert [found.name for found in matching(["rule/forward"])] == [
        "chunk_gated_delta_rule/forward", "chunk_gated_delta_rule/forward_backward",
        "chunk_gated_delta_rule/forward_bf16", "chunk_delta_rule/forward_backward", "chunk_dplr_delta_rule/forward_backward",
    ]  # fmt: skip


def test_a_run_writes_a_table_a_json_and_a_plot(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        run.main(["--only", "linear_kl", "--tiny", "--threads", "1", "--out", str(tmp_path / "new/result.json")])
    finally:
        torch.set_num_threads(threads)
    content = json.loads((tmp_path / "new/result.json").read_text())
    (result,) = content["results"]
    assert result["parameters"] == {"N": 24, "D": 8, "V": 40}
    assert (result["threads"], result["rounds"], result["dtype"]) == (1, 1, "float32")
    assert set(result["contenders"]["hybridattn"]) == {"milliseconds", "quartiles", "inputs_mib", "extra_mib"}
    assert set(result["ratios"]["torch eager"]) == {"time", "memory"}
    assert content["machine"]["versions"]["torch"] == str(torch.__version__)
    assert (tmp_path / "new/result.png").read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out
    assert "torch eager" in table
    assert "gradients" in table
