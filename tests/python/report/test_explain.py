"""What the report says in words, on runs whose facts are known."""

import pytest

from hybridattn.report import explain, figures, sections

RECIPE = {
    "data": {"seq_len": 256},
    "score": {"criterion": "removal", "held_out_sequences": 48, "confidence": 0.9},
    "select": {"refine": "swap"},
}


def scoring(kept, verdicts, scores=(0.1, 0.2, 3.5, 2.5)):
    rows = [{"layer": n, "score": s, "verdict": v} for n, (s, v) in enumerate(zip(scores, verdicts, strict=True))]
    for rank, row in enumerate(sorted(rows, key=lambda row: -row["score"])):
        row["rank"] = rank
    return {"title": "Removal", "explanation": "One layer at a time.", "layers": rows, "kept": kept}


def why(layers, scores, strategy="ranking", **select):
    selection = {"layers": layers, "strategy": strategy, "explanation": "evenly spaced, offset 0"}
    evaluation = {"num_layers": 4, "mixer": "gated_deltanet"}
    return " ".join(
        explain.why_these_layers(evaluation, selection, scores, RECIPE | {"select": RECIPE["select"] | select})
    )


def test_it_names_the_measurement_and_what_is_sure():
    text = why([2, 3], {"removal": scoring([2, 3], ["out", "open", "in", "in"])})
    assert (
        "2 of 4 layers keep a summary of constant size instead (gated_deltanet); layers 2 and 3 still look back" in text
    )
    assert "48 held-out sequences of 256 tokens" in text
    assert "layer 2: 3.5, layer 3: 2.5; the next one, layer 1: 0.2" in text
    assert "no kept layer could be exchanged" in text
    assert (
        "at 90 % confidence: layers 2 and 3 surely belong to the 2 best; layer 0 surely does not; layer 1 could" in text
    )


def test_it_says_what_exchanges_changed():
    text = why([1, 2], {"removal": scoring([2, 3], ["open"] * 4)})
    assert "layer 1 took the place of layer 3, because the held-out KL of the whole hybrid fell" in text
    assert "surely" not in text
    text = why([1, 2], {"removal": scoring([2, 3], ["open"] * 4)}, loss="recall_kl")
    assert "because the held-out recall-weighted KL of the whole hybrid fell" in text


def test_a_plan_that_measured_nothing_says_so():
    text = why([], {"removal": scoring([2, 3], ["in"] * 4)}, strategy="uniform")
    assert "no layer still look back" in text
    assert "How they were chosen: evenly spaced, offset 0" in text
    assert "held-out sequences of" not in text


def test_differences_are_paired():
    hybrid = {"kl_sequences": [1.0, 5.0, 9.0], "layers": [2], "recall": {"t": {"accuracy": 0.9}}}
    rival = {"kl_sequences": [2.0, 6.5, 9.5], "layers": [0], "recall": {"t": {"accuracy": 0.2}}}
    mean, low, high = explain.extra_divergence(rival, hybrid)
    assert mean == pytest.approx(1.0)
    assert (low, high) == pytest.approx((1 - 1.96 * 0.5 / 3**0.5, 1 + 1.96 * 0.5 / 3**0.5))
    models = {"teacher": hybrid | {"layers": None}, "hybrid": hybrid, "same": rival | {"layers": [2]}, "uniform": rival}
    (row,) = explain.alternatives(models)
    assert (row["name"], row["extra"][0], row["recall"]) == ("uniform", pytest.approx(1.0), pytest.approx(-0.7))
    del rival["kl_sequences"]
    assert explain.alternatives({"hybrid": hybrid, "uniform": rival})[0]["extra"] is None


def point(length, scale):
    return {
        "length": length, "prefill_seconds": scale, "decode_seconds": scale, "cache_bytes": 100 * scale,
        "prefill_peak_bytes": None, "decode_peak_bytes": 7, "decode_tokens_per_second": 1 / scale,
        "prefill_tokens_per_second": length / scale,
    }  # fmt: skip


def test_cost_is_told_at_the_longest_context_and_drawn_where_it_is_known():
    cost = {
        "models": {
            "teacher": {"points": [point(8, 1), point(1024, 4)]},
            "hybrid": {"points": [point(8, 1), point(1024, 2)]},
        }
    }
    text = explain.saved(cost)
    assert "1,024 tokens" in text
    assert "0.50 times as large" in text
    assert "decodes 2.00 times as fast" in text
    cards = sections.cost(cost)
    assert not any("prefill, beyond" in card["title"] for card in cards), "the system did not tell the peak of prefill"
    assert len(cards) == 4
    assert explain.saved({"models": {"model": {"points": [point(8, 1)]}}}) == ""


def cell(length, depth, accuracy):
    return {"length": length, "depth": depth, "accuracy": accuracy, "answers": 4}


def test_heat_maps_show_every_cell_of_teacher_hybrid_and_one_rival():
    places = [(64, 0.0), (64, 1.0), (128, 0.0), (128, 1.0)]

    def model(layers, *shares):
        cells = [cell(*place, share) for place, share in zip(places, shares, strict=True)]
        return {"layers": layers, "recall": {"t": {"cells": cells}, "flat": {"cells": cells[:1]}}}

    models = {
        "teacher": model(None, 1, 1, 1, 1), "hybrid": model([1], 1, 1, 0.5, 1), "twin": model([1], 1, 1, 0.5, 1),
        "uniform": model([0], 0, 1, 0, 1), "random": model([2], 0, 1, 0, 1),
    }  # fmt: skip
    (card,) = sections.heat_maps(models)
    assert card["title"] == "Recall: t", "a task with one length and any depth has no map"
    assert card["answers"] == "4"
    shown = {name: models[name]["recall"]["t"]["cells"] for name in ("teacher", "hybrid", "uniform")}
    assert card["svg"] == figures.recall_map(shown)
    assert card["svg"].startswith("<svg")


def test_a_map_without_depths_or_lengths_is_drawn():
    for places in ([(None, 0.0), (None, 1.0)], [(64, None), (128, None)]):
        assert "<svg" in figures.recall_map({"teacher": [cell(*place, 0.5) for place in places]})
