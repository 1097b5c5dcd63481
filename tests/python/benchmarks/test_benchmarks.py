"""Benchmarks: contenders compute the same, times interleave, memory is the call's own, goals and speeds are what they say."""

import json
import sys
from pathlib import Path

import pytest
import torch

from tolerances import assert_close

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.compiled import Compiled, warm_up
from benchmarks.measure import Timing, interleaved, ratio, undisturbed
from benchmarks.memory import MemoryMeter
from benchmarks.registry import Goal, Work, benchmark, find, matching
from benchmarks.result import Effort, load, measure_case, memory_ratio, reached

from benchmarks import entries, machine, profile_stages, result, roofline, run

entries.load()


def tensors(returned):
    return [torch.as_tensor(part) for part in (returned if isinstance(returned, (tuple, list)) else [returned])]


@pytest.mark.parametrize("name", [found.name for found in matching([])])
def test_all_contenders_compute_the_same(name):
    found = find(name)
    contenders = found.build(**found.tiny, dtype=torch.float32)
    ours, *peers = [tensors(call()) for peer, call in contenders.items() if peer not in found.other_work]
    assert peers or found.other_work
    if found.exact:
        peers.append([exact.float() for exact in tensors(found.exact(**found.tiny, dtype=torch.float32))])
    for peer in peers:
        for actual, expected in zip(ours, peer, strict=True):
            if actual.is_floating_point():
                assert_close(actual, expected, "gradient")
            else:
                assert torch.equal(actual, expected)


def test_every_round_calls_every_contender_and_the_order_rotates():
    calls = []
    timings = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=4)
    assert "".join(calls) == "abba" * 2
    assert [len(timing.seconds) for timing in timings.values()] == [4, 4]


def test_no_round_begins_after_the_time_is_over_but_for_the_fewest():
    assert len(interleaved({"a": lambda: None}, rounds=9, seconds=0)["a"].seconds) == 3
    assert len(interleaved({"a": lambda: None}, rounds=2, seconds=0)["a"].seconds) == 2


def test_the_ratio_is_the_median_of_the_rounds():
    # The machine is ten times slower in the middle round: times differ, the ratio does not.
    ours, peer = Timing([1.0, 10.0, 2.0]), Timing([3.0, 30.0, 4.0])
    assert ratio(peer, ours) == 3.0
    assert (ours.median, ours.quartiles) == (2.0, (1.5, 6.0))


def test_the_least_disturbed_measurement_counts(monkeypatch):
    shares = iter([0.5, 0.2, 0.04, 0.0])
    monkeypatch.setattr(machine, "wait_until_quiet", lambda deadline: None)
    monkeypatch.setattr(machine.Bystanders, "__exit__", lambda self, *_: setattr(self, "share", next(shares)))
    assert undisturbed({"a": lambda: None}, 1, seconds=1, patience=60)[1] == 0.04
    shares = iter([0.5, 0.0])
    assert undisturbed({"a": lambda: None}, 1, seconds=1, patience=0)[1] == 0.5


def test_what_cannot_be_compiled_is_named_with_its_reason(monkeypatch):
    def compiled(function, **options):
        if function is torch.neg:
            raise NotImplementedError("no neg\nlong story")
        return lambda x: function(x) + 0

    monkeypatch.setattr(torch, "compile", compiled)
    x = torch.ones(2)
    contenders = {name: Compiled(f, lambda f: f(x)) for name, f in (("abs", torch.abs), ("neg", torch.neg))}
    running, failed = warm_up({"ours": lambda: x} | contenders)
    assert list(running) == ["ours", "abs"]
    assert failed == {"neg": "NotImplementedError: no neg"}
    with pytest.raises(KeyError):
        warm_up({"ours": lambda: {}["missing"]})


def test_peak_memory_is_that_of_the_call():
    logits = 64 * 40_000 * 4 / 2**20
    kl, shape = find("linear_kl_divergence/forward_backward"), {"N": 64, "D": 8, "V": 40_000}
    with MemoryMeter() as meter:
        eager = meter.peak(kl, "torch eager", shape, "float32", threads=1)
        with pytest.raises(RuntimeError, match=r"memory of linear_kl_divergence/.*, nobody: KeyError: 'nobody'"):
            meter.peak(kl, "nobody", shape, "float32", threads=1)
        # A process of its own each: what the first one freed or kept is not missing from the next one.
        again = meter.peak(kl, "torch eager", shape, "float32", threads=1)
    heads = 2 * 40_000 * 8 * 4 / 2**20
    for peak in (eager, again):
        assert heads <= peak.inputs <= heads + 3
        assert 3 * logits <= peak.extra <= 8 * logits


def test_memory_below_the_noise_is_no_ratio_of_zero_or_infinity():
    assert memory_ratio(peer=8.0, ours=2.0) == 4.0
    assert memory_ratio(peer=0.0, ours=0.0) == 1.0
    assert memory_ratio(peer=0.0, ours=2.5) == 0.1
    assert memory_ratio(peer=2.5, ours=0.0) == 10.0


def test_names_are_unique_and_unknown_ones_are_errors():
    with pytest.raises(ValueError, match="registered twice"):
        benchmark("align/step", cases=[], tiny={})(lambda dtype: {})
    with pytest.raises(ValueError, match=r"no name contains 'nothing', known are .*align/step"):
        list(matching(["nothing"]))
    assert [found.name for found in matching(["delta_rule/forward"])] == [
        "chunk_gated_delta_rule/forward", "chunk_gated_delta_rule/forward_backward",
        "chunk_delta_rule/forward_backward", "chunk_dplr_delta_rule/forward_backward",
    ]  # fmt: skip


def test_a_goal_is_for_some_cases_and_against_one_peer():
    goal = Goal("torch", 2.0, where={"dtype": "float32", "D": 64})
    assert goal.applies({"dtype": "float32", "D": 64, "threads": 1})
    assert not goal.applies({"dtype": "float32", "D": 128})
    assert not goal.applies({"dtype": "bfloat16", "D": 64})
    measured = {
        "ratios": {"torch": {"time": 1.5, "memory": 4.0}}, "shares": {"fp32_gemm": 0.7}, "memory_over_bound": 0.5
    }  # fmt: skip
    for given, value in (
        (goal, 1.5),
        (Goal("torch", 3.0, "memory"), 4.0),
        (Goal("fp32_gemm", 0.8, "share"), 0.7),
        (Goal("memory bound", 1.0, "memory"), 2.0),
        (Goal("torch compiled", 1.0), None),
    ):
        assert reached(given, measured) == {
            "against": given.against, "quantity": given.quantity, "least": given.least, "reached": value
        }  # fmt: skip


def test_speeds_are_work_over_time_and_shares_of_the_peaks(monkeypatch):
    monkeypatch.setattr(roofline, "peaks", lambda threads: {"fp32_fma": 50.0, "bf16_dot": 80.0, "update": 10.0})
    timings = {"ours": Timing([0.1, 0.1, 0.1]), "peer": Timing([0.3, 0.2, 0.4])}
    monkeypatch.setattr(result, "undisturbed", lambda *_: (timings, 0.0))
    work = Work(flops=4e9, token_heads=1000, tokens=500, elements=1e8)
    found = benchmark("speeds", cases=[{}], tiny={}, work=lambda: work, goals=[Goal("peer", 2.0)])(lambda dtype: {})
    try:
        measured = {dtype: measure_case(find("speeds"), {}, dtype, 1, Effort()) for dtype in ("float32", "bfloat16")}
    finally:
        from benchmarks import registry

        del registry._registered["speeds"]
    assert found
    wide, narrow = measured["float32"], measured["bfloat16"]
    assert (wide["gflops"], wide["gbytes_per_second"], narrow["gbytes_per_second"]) == (40.0, 4.0, 2.0)
    assert wide["shares"] == {"fp32_fma": 0.8, "update": 0.4}
    assert narrow["shares"] == {"bf16_dot": 0.5, "update": 0.2}
    ours, peer = wide["contenders"].values()
    assert (ours["microseconds_per_token_head"], peer["microseconds_per_token_head"]) == (100.0, 300.0)
    assert (ours["tokens_per_second"], wide["ratios"]["peer"]["time"]) == (5000.0, 3.0)
    assert wide["goals"] == [{"against": "peer", "quantity": "time", "least": 2.0, "reached": 3.0}]


def test_the_error_is_the_worst_of_the_results_against_fp64():
    measured = {"contenders": {"ours": {}}}
    exact = (torch.ones(4, dtype=torch.float64), torch.full((4,), 2.0, dtype=torch.float64))
    result._add_errors(measured, {"ours": lambda: (torch.ones(4) * 1.25, torch.ones(4))}, exact)
    assert measured["contenders"]["ours"]["error"] == 0.5


def test_peaks_need_no_compiler_to_know_the_matrix_products(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(roofline, "BUILD", tmp_path)
    monkeypatch.setattr(roofline, "_MATRIX", 64)
    roofline._library.cache_clear()
    roofline.peaks.cache_clear()
    try:
        assert set(roofline.peaks(1)) == {"fp32_gemm", "bf16_gemm"}
    finally:
        roofline.peaks.cache_clear()
    assert "'no-such-compiler' is not there: set CXX" in capsys.readouterr().err


@pytest.fixture
def cheap_peaks(monkeypatch):
    """The real loops, on so little that they take no time: their numbers mean nothing."""
    monkeypatch.setattr(roofline, "_ROUNDS", 1000)
    monkeypatch.setattr(roofline, "_FLOATS", 1 << 16)
    monkeypatch.setattr(roofline, "_MATRIX", 64)
    roofline.peaks.cache_clear()
    yield
    roofline.peaks.cache_clear()


def test_a_run_writes_a_table_a_json_and_plots_and_can_draw_them_again(cheap_peaks, monkeypatch, tmp_path, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    command = ["--tiny", "--dtypes", "float32", "--out", str(tmp_path / "new/result.json")]
    try:
        run.main(["--only", "divergence/forward", "scaling/threads", *command])
    finally:
        torch.set_num_threads(threads)
    described, results = load(tmp_path / "new/result.json")
    kl, *scaling = (found for found in results if found["threads"] == 2 or "scaling" in found["benchmark"])
    assert (kl["parameters"], kl["threads"], kl["rounds"]) == ({"N": 24, "D": 8, "V": 40}, 2, 1)
    assert set(kl["contenders"]["hybridattn"]) >= {"milliseconds", "quartiles", "inputs_mib", "tokens_per_second"}
    assert set(kl["ratios"]["torch eager"]) == {"time", "memory"}
    assert [found["threads"] for found in scaling] == [1, 2]
    assert described["versions"]["torch"] == str(torch.__version__)
    assert set(described["peaks"]["2"]) >= {"fp32_fma", "fp32_gemm", "bf16_gemm", "read", "update"}
    table = capsys.readouterr().out
    assert "torch eager" in table
    assert "gradients" in table
    assert "GFLOP/s" in table
    plots = [tmp_path / f"new/result/{name}.png" for name in ("linear_kl_divergence", "scaling")]
    for plot in plots:
        assert plot.read_bytes().startswith(b"\x89PNG")
        plot.unlink()
    run.main(["--replot", str(tmp_path / "new/result.json")])
    assert all(plot.exists() for plot in plots)
    assert "wanted" in capsys.readouterr().out


def test_results_of_an_older_layout_are_refused(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps({"machine": {"cpu": "x"}, "results": []}))
    with pytest.raises(SystemExit, match=r"old\.json has no peaks of its machine: measured by an older version"):
        run.main(["--replot", str(tmp_path / "old.json")])


def test_the_profile_of_a_stage_tells_kinds_of_ops_apart(tmp_path, capsys):
    out = tmp_path / "new/profile.json"
    command = ["--model", "tiny", "--batch", "1", "--tokens", "16", "--dtype", "float32", "--out", str(out)]
    profile_stages.main(command)
    content = json.loads(out.read_text())
    assert content["case"] == {"model": "tiny", "B": 1, "T": 16, "dtype": "float32"}
    assert content["machine"]["versions"]["torch"] == str(torch.__version__)
    for shares in content["shares"].values():
        assert sum(shares.values()) == pytest.approx(1)
        assert {"matrix products", "rules", "rotary embedding of mixers", "loss", "optimiser"} <= set(shares)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert set(content["shares"]) == {"align", "match"}
    assert "rules" in capsys.readouterr().out
