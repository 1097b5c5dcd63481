"""The comparison as Markdown: goals, every contender, where each fails, plain against recall-weighted KL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from benchmarks.selection.analysis import Summary, duels, group_of, summarise, verdict
from benchmarks.selection.cell import LOSSES
from benchmarks.selection.contenders import DEFAULT, DEFAULT_BY_DATA, labelled
from benchmarks.selection.records import TIE, CellRecord, Comparison

TRAINED = "ga_s2 (trained)"
"""The published procedure, which the goals are measured against."""


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def names_of(comparisons: Sequence[Comparison]) -> list[str]:
    """All rows, the default first, then by mean recall relative to the best subset's and by KL."""
    names = {group_of(name) for comparison in comparisons for name in comparison.chosen}
    found = [summary for name in names if (summary := summarise(name, comparisons))]
    found.sort(key=lambda s: (s.name != DEFAULT, -(s.ratio or 0), s.extra_kl, s.name))
    return [summary.name for summary in found]


def contenders_table(comparisons: Sequence[Comparison]) -> str:
    header = [
        "contender", "recall / best subset's", "worst", "KL above best's", "Jaccard", "is the best subset",
        "Spearman", "tokens", "TFLOP", "seconds", "comparisons",
    ]  # fmt: skip
    return markdown(header, [_row(s) for name in names_of(comparisons) if (s := summarise(name, comparisons))])


def _row(s: Summary) -> list[str]:
    return [
        s.name, number(s.ratio), number(s.worst_ratio), f"{s.extra_kl:+.3f}", number(s.jaccard, 2), f"{s.exact:.0%}",
        number(s.correlation, 2), f"{s.tokens:,.0f}", number(s.flops / 1e12, 2), number(s.seconds, 0), str(s.comparisons),
    ]  # fmt: skip


def by_budget_table(comparisons: Sequence[Comparison]) -> str:
    """Recall relative to the best subset's of every contender, per teacher and budget, means over seeds and draws."""
    cells: dict[tuple[str, int], list[Comparison]] = defaultdict(list)
    for comparison in comparisons:
        cells[comparison.teacher, comparison.keep].append(comparison)
    keys = sorted(cells)
    rows = []
    for name in names_of(comparisons):
        summaries = [summarise(name, cells[key]) for key in keys]
        rows.append([name, *(number(s.ratio if s else None) for s in summaries)])
    best = [", ".join(sorted({_layers(c.best.layers) for c in cells[key]})) for key in keys]
    recalls = [number(sum(c.best.recall for c in cells[key]) / len(cells[key])) for key in keys]
    header = ["contender", *(f"{teacher}, K = {keep}" for teacher, keep in keys)]
    return markdown(header, [["best subset", *best], ["its recall", *recalls], *rows])


def _layers(layers: frozenset[int]) -> str:
    return "{" + " ".join(map(str, sorted(layers))) + "}"


def duels_table(comparisons: Sequence[Comparison]) -> str:
    by_other = defaultdict(list)
    for duel in duels(comparisons):
        by_other[duel.other].append(duel)
    rows = []
    for other in [name for name in names_of(comparisons) if name in by_other]:
        v = verdict(by_other[other])
        losing = [
            f"{duel.teacher} K = {duel.keep} ({-duel.recall:+.2f})" for duel in by_other[other] if duel.recall > TIE
        ]
        rows.append([
            other, str(v["cells"]), f"{v['recall']:+.3f}", f"{v['better_recall']} / {v['worse_recall']}",
            f"{v['kl']:+.3f}", f"{v['better_kl']} / {v['worse_kl']}", "; ".join(losing) or "-",
        ])  # fmt: skip
    header = [
        "other", "teachers x K", "recall, default - other", "significantly better / worse", "KL, default - other",
        "significantly better / worse", "where the other loses recall",
    ]  # fmt: skip
    return markdown(header, rows)


def objectives_table(comparisons: Sequence[Comparison]) -> str:
    """The same selector measuring with plain and with recall-weighted KL, where both were measured."""
    rows = []
    for name in names_of(comparisons):
        pair = [labelled(name, loss) for loss in LOSSES]
        both = [c for c in comparisons if all(one in c.chosen for one in pair)]
        summaries = [s for one in pair if (s := summarise(one, both))]
        if name != pair[0] or len(summaries) < 2:
            continue
        plain, weighted = summaries
        rows.append([
            name, str(len(both)), f"{number(plain.ratio)} / {number(weighted.ratio)}",
            f"{plain.extra_kl:+.3f} / {weighted.extra_kl:+.3f}", f"{plain.jaccard:.2f} / {weighted.jaccard:.2f}",
        ])  # fmt: skip
    header = ["selector", "comparisons", "recall / best subset's", "KL above best's", "Jaccard"]
    return markdown([*header[:2], *(f"{text}: plain / recall-weighted" for text in header[2:])], rows)


def at_the_same_jaccard(comparisons: Sequence[Comparison]) -> tuple[Summary, Summary] | None:
    """The default on the least data with which it agrees with the best subset as trained GA-S2 does, and the latter.

    Where no amount suffices, the default on all its data; None where one of the two was not measured.
    """
    names = [name for name in DEFAULT_BY_DATA if any(name in c.chosen for c in comparisons)]
    both = [c for c in comparisons if TRAINED in c.chosen and all(name in c.chosen for name in names)]
    theirs, ours = summarise(TRAINED, both), [found for name in names if (found := summarise(name, both))]
    if theirs is None or not ours or not ours[0].tokens:
        return None
    return next((found for found in ours if found.jaccard >= theirs.jaccard), ours[-1]), theirs


def goals_table(comparisons: Sequence[Comparison]) -> str:
    cells = sorted({(c.teacher, c.keep) for c in comparisons})
    ratios = {
        cell: summary.ratio
        for cell in cells
        if (summary := summarise(DEFAULT, [c for c in comparisons if (c.teacher, c.keep) == cell])) and summary.ratio
    }
    rows = []
    if ratios:
        worst = min(ratios, key=ratios.__getitem__)
        reached = sum(ratio >= 0.98 for ratio in ratios.values())
        rows.append([
            "recall of the default's hybrid / best subset's, every teacher and K", ">= 0.98",
            f"{reached} of {len(ratios)} reach it; the lowest is {ratios[worst]:.3f} ({worst[0]}, K = {worst[1]})",
        ])  # fmt: skip
    if same := at_the_same_jaccard(comparisons):
        ours, theirs = same
        rows.append([
            "tokens of the default / exhaustive trained GA-S2 at its Jaccard", "<= 1/20",
            f"{ours.name}: 1/{theirs.tokens / ours.tokens:.1f} of the tokens, 1/{theirs.flops / ours.flops:.1f} of the "
            f"FLOPs, at Jaccard {ours.jaccard:.2f} against {theirs.jaccard:.2f}",
        ])  # fmt: skip
    found = duels(comparisons)
    if found:
        verdicts = {
            other: verdict([duel for duel in found if duel.other == other]) for other in {d.other for d in found}
        }
        worse = sorted(name for name, v in verdicts.items() if v["worse_recall"])
        worse_kl = sorted(name for name, v in verdicts.items() if v["worse_kl"])
        rows.append([
            "default against every other at equal distillation", "never significantly worse",
            f"recall: worse than {', '.join(worse) or 'none'}; KL: worse than {', '.join(worse_kl) or 'none'} "
            f"(of {len(verdicts)})",
        ])  # fmt: skip
    return markdown(["figure", "goal", "measured"], rows)


def sessions_text(records: Sequence[CellRecord]) -> str:
    """On what the raw data was measured."""
    facts: dict[str, list[str]] = defaultdict(list)
    for record in records:
        for session in record.sessions:
            versions = ", ".join(f"{name} {value}" for name, value in session["versions"].items())
            where = f"{session['cpu']}, {session['cores']} cores, {session['threads']} thread(s); {versions}"
            facts[where].append(session["date"])
    return "\n".join(f"* {where}; {min(dates)[:10]} to {max(dates)[:10]}" for where, dates in sorted(facts.items()))


def page(records: Sequence[CellRecord]) -> str:
    """The whole report."""
    found = [comparison for record in records for comparison in record.comparisons()]
    whole = [comparison for comparison in found if comparison.whole and DEFAULT in comparison.chosen]
    protocol: dict[str, Any] = records[0].identity["protocol"]
    seeds = {teacher: sorted({c.seed for c in whole if c.teacher == teacher}) for teacher in {c.teacher for c in whole}}
    recalls = {r.identity["teacher"]: r.teacher_recall() for r in records if "teacher" in r.events}
    own_recalls = ", ".join(f"{name} {value:.4f}" for name, value in sorted(recalls.items()))
    lines = [
        "# Layer selectors compared",
        "",
        "Written by `python -m benchmarks.selection.report`; what the columns mean stands in "
        "[README.md](../README.md). Only teachers, seeds and budgets whose ground truth is whole are counted: "
        + "; ".join(f"{teacher}: seeds {', '.join(map(str, seeds[teacher]))}" for teacher in sorted(seeds))
        + f" ({len(whole)} comparisons, {len(found) - len(whole)} unfinished ones are left out).",
        "",
        f"Recall of the teachers themselves: {own_recalls}.",
        "",
        "Measured on:",
        "",
        sessions_text(records),
        "",
        "Budgets: " + ", ".join(f"{name} {value:g}" for name, value in protocol.items()) + ".",
    ]  # fmt: skip
    if whole:
        for title, table in (
            ("Goals", goals_table), ("Contenders, over all comparisons", contenders_table),
            ("Recall over the best subset's, by teacher and budget", by_budget_table),
            ("The default against each other contender", duels_table),
            ("Plain against recall-weighted KL", objectives_table),
        ):  # fmt: skip
            lines += ["", f"## {title}", "", table(whole).rstrip()]
        lines += ["", "![recall](recall.png)", "", "![cost](cost.png)"]
    return "\n".join(lines) + "\n"
