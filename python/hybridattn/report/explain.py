"""Says in words why these layers were kept and how sure that is, from what a run measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from hybridattn.select.evaluator import LOSS_NAMES


def listed(layers: Sequence[int]) -> str:
    """``layer 3``, ``layers 3 and 5``, ``layers 3, 5 and 8``."""
    words = [str(layer) for layer in layers]
    if not words:
        return "no layer"
    return f"layer {words[0]}" if len(words) == 1 else f"layers {', '.join(words[:-1])} and {words[-1]}"


def recall_mean(model: dict[str, Any]) -> float | None:
    """Mean over the recall tasks of one model's row; None without any."""
    shares = [row["accuracy"] for row in model["recall"].values()]
    return statistics.fmean(shares) if shares else None


def extra_divergence(model: dict[str, Any], hybrid: dict[str, Any]) -> tuple[float, float, float] | None:
    """How much more held-out KL `model` has than `hybrid`, with a 95 % interval of the difference.

    Paired: both were measured on the same sequences, so what makes a sequence hard for both drops out. None where the
    run did not keep one value per sequence.
    """
    ours, theirs = hybrid.get("kl_sequences"), model.get("kl_sequences")
    if not ours or not theirs or len(ours) != len(theirs) or len(ours) < 2:
        return None
    differences = [their - our for their, our in zip(theirs, ours, strict=True)]
    mean = statistics.fmean(differences)
    half = 1.96 * statistics.stdev(differences) / len(differences) ** 0.5
    return mean, mean - half, mean + half


def decisive(selection: dict[str, Any], scores: dict[str, dict[str, Any]], recipe: dict[str, Any]) -> str | None:
    """Name of the scoring that the choice came from; None when it came from none (a plan that looks at nothing)."""
    strategy = selection["strategy"]
    name = recipe.get("score", {}).get("criterion") if strategy == "ranking" else strategy
    return name if name in scores else None


def searched_loss(recipe: dict[str, Any]) -> str:
    """What the run's searches over sets of layers lowered, in words."""
    return LOSS_NAMES[recipe.get("select", {}).get("loss", "kl")]


def _what(evaluation: dict[str, Any], layers: list[int]) -> str:
    total = evaluation["num_layers"]
    return (
        "A layer with softmax attention looks back at every earlier token, so the memory it holds and the time it takes for "
        f"each new token grow with the text. In this model {total - len(layers)} of {total} layers keep a summary of "
        f"constant size instead ({evaluation['mixer']}); {listed(layers)} still look{'s' * (len(layers) == 1)} back. A "
        "summary loses details: the first thing to suffer is repeating exactly what stood far back. So the choice of layers "
        "is judged by two things: how far the predictions move away from the teacher's on text that no step was trained on "
        "(the held-out KL divergence, in nats per token; 0 is the same model), and how much is recalled from the context."
    )


def _measured(score: dict[str, Any], layers: list[int], recipe: dict[str, Any]) -> str:
    rows = sorted((row for row in score["layers"] if row["score"] is not None), key=lambda row: row["rank"])
    kept = [row for row in rows if row["layer"] in score["kept"]]
    others = [row for row in rows if row["layer"] not in score["kept"]]
    sequences, tokens = recipe["score"]["held_out_sequences"], recipe["data"]["seq_len"]
    text = (
        f"To find them, every layer got a score ({score['title']}). {score['explanation']} It was measured on {sequences} "
        f"held-out sequences of {tokens} tokens, the same ones for every layer. "
    )
    if kept:
        text += "Scores: " + ", ".join(f"layer {row['layer']}: {row['score']:.3g}" for row in kept)
        text += f"; the next one, layer {others[0]['layer']}: {others[0]['score']:.3g}. " if others else ". "
    moved_in = [layer for layer in layers if layer not in score["kept"]]
    moved_out = [layer for layer in score["kept"] if layer not in layers]
    if moved_in:
        text += (
            f"Scores judge each layer alone, so exchanges were tried afterwards: {listed(moved_in)} took the place of "
            f"{listed(moved_out)}, because the held-out {searched_loss(recipe)} of the whole hybrid fell significantly."
        )
    elif recipe.get("select", {}).get("refine") == "swap" and others:
        text += (
            "Scores judge each layer alone, so exchanges were tried afterwards: no kept layer could be exchanged for "
            f"another one with a significant fall of the whole hybrid's held-out {searched_loss(recipe)}."
        )
    return text


def _certainty(score: dict[str, Any], recipe: dict[str, Any]) -> str:
    groups: dict[str, list[int]] = {"in": [], "out": [], "open": []}
    for row in score["layers"]:
        groups.get(row.get("verdict"), []).append(row["layer"])
    confidence = f"{100 * recipe['score'].get('confidence', 0.95):g} %"
    parts = []
    if groups["in"]:
        parts.append(
            f"{listed(groups['in'])} surely belong{'s' * (len(groups['in']) == 1)} to the {len(score['kept'])} best"
        )
    if groups["out"]:
        parts.append(f"{listed(groups['out'])} surely do{'es' * (len(groups['out']) == 1)} not")
    if groups["open"]:
        parts.append(f"{listed(groups['open'])} could change places on other held-out sequences")
    if not parts:
        return ""
    return (
        f"How sure that is, at {confidence} confidence: {'; '.join(parts)}. The whiskers in the plot below show each "
        "score's own interval. They cover the chance in which sequences were held out, not other kinds of text, nor what "
        "another seed of training would have given."
    )


def why_these_layers(
    evaluation: dict[str, Any],
    selection: dict[str, Any],
    scores: dict[str, dict[str, Any]],
    recipe: dict[str, Any],
) -> list[str]:
    """Paragraphs for a reader who knows nothing of the method.

    Args:
        evaluation: ``eval.json``.
        selection: ``selection.json``.
        scores: name -> ``score/<name>.json``.
        recipe: ``recipe.toml``, as resolved.
    """
    layers = selection["layers"]
    paragraphs = [_what(evaluation, layers)]
    name = decisive(selection, scores, recipe)
    if name is None:
        paragraphs.append(f"How they were chosen: {selection['explanation']}")
    else:
        paragraphs += [_measured(scores[name], layers, recipe), _certainty(scores[name], recipe)]
    return [paragraph for paragraph in paragraphs if paragraph]


def alternatives(models: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What other choices of layers cost after equal distillation: rows of ``name``, ``layers``, ``extra`` and ``recall``.

    ``extra`` is `extra_divergence`, ``recall`` the difference of mean recall; either may be None.
    """
    hybrid = models.get("hybrid")
    if hybrid is None:
        return []
    ours, rows = recall_mean(hybrid), []
    for name, model in models.items():
        if name in ("teacher", "hybrid") or model["layers"] == hybrid["layers"]:
            continue
        theirs = recall_mean(model)
        rows.append(
            {
                "name": name,
                "layers": model["layers"],
                "extra": extra_divergence(model, hybrid),
                "recall": None if ours is None or theirs is None else theirs - ours,
            }
        )
    return rows


def saved(cost: dict[str, Any]) -> str:
    """The cost of the hybrid as multiples of the teacher's, at the longest context."""
    points = {name: model["points"][-1] for name, model in cost["models"].items()}
    if not {"teacher", "hybrid"} <= points.keys():
        return ""
    teacher, hybrid = points["teacher"], points["hybrid"]

    def times(key: str) -> str:
        return f"{hybrid[key] / teacher[key]:.2f}"

    return (
        f"With {teacher['length']:,} tokens of context the hybrid's cache is {times('cache_bytes')} times as large as the "
        f"teacher's; it decodes {times('decode_tokens_per_second')} times as fast and reads the context "
        f"{times('prefill_tokens_per_second')} times as fast."
    )
