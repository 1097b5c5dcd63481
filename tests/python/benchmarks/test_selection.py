"""The comparison of selectors: a whole one on a small model, and the report's numbers on raw data made by hand."""

import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "examples" / "tiny_teacher"))

import prepare
import symbols
from benchmarks.selection import analysis, records, report, run, table, truth
from benchmarks.selection.cell import first_sequences
from benchmarks.selection.contenders import DEFAULT, LESS_DATA, labelled, plans, selectors
from benchmarks.selection.protocol import Files, Protocol, Teacher

from hybridattn.data import Batch

WEIGHTED = labelled(DEFAULT, "recall_kl")
ON_2, ON_4, _ = LESS_DATA
LAYERS = 3
SMALL = Protocol(
    held_out=0.1,
    evaluation_sequences=2,
    selection_sequences=8,
    align_tokens=512,
    distil_tokens=512,
    score_tokens=512,
    best_least=1,
    random_draws=1,
    batch_size=2,
)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("selection")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=symbols.VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "teacher")
    symbols.tokenizer().save_pretrained(folder / "teacher")
    prepare.prepare(folder, documents=120, questions=2)
    files = Files(folder / "corpus.jsonl", folder / "recall.jsonl", folder / "results", folder / "cache")
    return Teacher("random", folder / "teacher", (1,)), files


def events(files: Files) -> list[dict]:
    (path,) = files.results.glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_comparison_stops_goes_on_and_repeats_nothing(setting):
    teacher, files = setting
    work = run.compare([teacher], [0], SMALL, files, lambda line: None)
    list(itertools.islice(work, 3))
    work.close()
    before = events(files)
    shown = []
    list(run.compare([teacher], [0], SMALL, files, shown.append))
    after = events(files)
    assert after[: len(before)] == before
    keys = [event["key"] for event in after[1:] if not event["key"].startswith("session ")]
    assert len(keys) == len(set(keys))
    assert "random  seed 0  align" not in shown, "the student of the first run is used"
    chosen = {key.removeprefix("choose ").removesuffix(" 1") for key in keys if key.startswith("choose ")}
    cell = type("Cell", (), {"num_layers": LAYERS, "seed": 0, "protocol": SMALL})
    assert chosen == {contender.name for contender in [*selectors(), *plans(cell, 1)]}
    again = []
    list(run.compare([teacher], [0], SMALL, files, again.append))
    assert again == []
    (record,) = records.read_all(files.results)
    (comparison,) = record.comparisons()
    assert comparison.whole
    assert set(comparison.chosen) == chosen
    assert comparison.chosen[ON_2].tokens < comparison.chosen[ON_4].tokens < comparison.chosen[DEFAULT].tokens
    finalists = comparison.chosen["default + trained finalists (recall_kl)"]
    assert finalists.tokens > comparison.chosen[WEIGHTED].tokens + 2 * 512, "at least two rounds of three finalists"
    assert comparison.chosen["ga_s2 (trained)"].tokens > comparison.chosen["ga_s2"].tokens > 0
    page = report.write(files.results).read_text()
    assert page.count(f"| {DEFAULT} |") >= 2
    assert (files.results / "recall.png").read_bytes().startswith(b"\x89PNG")
    assert (files.results / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_data_of_another_protocol_are_refused_and_a_missing_corpus_is_named(setting, tmp_path):
    teacher, files = setting
    results = tmp_path / "results"
    path = results / "random-seed-0.jsonl"
    results.mkdir()
    path.write_text(json.dumps({"identity": {"protocol": {}}}) + "\n")
    other = Files(files.corpus, files.questions, results, files.cache)
    with pytest.raises(ValueError, match="another run"):
        list(run.compare([teacher], [0], SMALL, other, lambda line: None))
    with pytest.raises(FileNotFoundError, match=r"none.jsonl is missing; write it with .*prepare.py"):
        list(run.compare([teacher], [0], SMALL, Files(corpus=tmp_path / "none.jsonl"), lambda line: None))


def test_the_first_sequences_may_end_inside_a_batch():
    batches = [Batch(torch.arange(start, start + 6).view(3, 2)) for start in (0, 6)]
    parts = [[part.input_ids.tolist() for part in first_sequences(batches, count)] for count in (2, 3, 4, 9)]
    whole = [batch.input_ids.tolist() for batch in batches]
    assert parts == [[whole[0][:2]], [whole[0]], [whole[0], whole[1][:1]], whole]


# ---- the report's numbers, on raw data made by hand ----


def distilled(layers: str, right: list[int], kl: list[float]) -> dict:
    return {"key": f"distil {layers}", "right": right, "asked": [10] * len(right), "kl": kl}


def choice(name: str, layers: list[int], tokens: float, scores=None) -> dict:
    return {
        "key": f"choose {name} 2", "layers": {"2": layers}, "scores": scores, "tokens": tokens, "flops": 10 * tokens,
        "seconds": 1.0,
    }  # fmt: skip


SETS = truth.all_sets(4, 2)
MEANS = {(0, 1): 1.0, (0, 2): 2.0, (0, 3): 2.0, (1, 2): 3.0, (1, 3): 3.0, (2, 3): 4.0}


def by_hand(tmp_path: Path) -> Path:
    protocol = {"best_share": 0.1, "best_least": 2}
    identity = {"teacher": "hand", "seed": 0, "num_layers": 4, "protocol": protocol}
    session = {
        "cpu": "a processor",
        "cores": 2,
        "threads": 1,
        "versions": {"torch": "2"},
        "date": "2026-01-02T03:04:05Z",
    }
    means = [MEANS[kept] for kept in SETS]
    rows = [
        {"identity": identity},
        {"key": "session 1", **session},
        {"key": "teacher", "right": [10, 10, 10], "asked": [10, 10, 10], "kl": [0, 0, 0]},
        *({"key": f"exhaustive 2 {loss}", "means": means} for loss in ("kl", "recall_kl")),
        # {0 1} and {0 2} recall alike, KL decides for {0 2}; {0 3} has the lowest KL but recalls less.
        distilled("0,1", [9, 9, 9], [0.5, 0.6, 0.7]),
        distilled("0,2", [9, 9, 9], [0.4, 0.5, 0.5]),
        distilled("0,3", [5, 6, 4], [0.1, 0.1, 0.1]),
        distilled("1,3", [0, 1, 0], [2.0, 2.1, 2.4]),
        distilled("2,3", [0, 1, 0], [2.0, 2.1, 2.4]),
        choice(DEFAULT, [0, 2], 100),
        choice(WEIGHTED, [0, 1], 80),
        choice(ON_2, [1, 3], 10),
        choice(ON_4, [0, 1], 30),
        choice("ga_s2 (trained)", [0, 1], 3000, [4.0, 3.0, 2.0, 1.0]),
        choice("uniform:0", [0, 3], 0),
        choice("uniform:1", [2, 3], 0),
        choice("first", [1, 2], 0),  # never distilled: not counted
    ]
    (tmp_path / "hand-seed-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"key": "cut o')
    return tmp_path


def the_comparison(tmp_path: Path):
    (record,) = records.read_all(by_hand(tmp_path))
    (comparison,) = record.comparisons()
    return comparison


def test_best_subset_agreement_and_correlation(tmp_path):
    comparison = the_comparison(tmp_path)
    assert comparison.whole
    assert sorted(comparison.best.layers) == [0, 2]
    assert "first" not in comparison.chosen
    # Layer 0: sets with it 5/3 on average, without it 10/3; and so on.
    assert comparison.layer_values("kl") == pytest.approx([5 / 3, 1 / 3, -1, -1])
    ours = analysis.summarise(DEFAULT, [comparison])
    assert (ours.ratio, ours.jaccard, ours.exact, ours.extra_kl) == (1, 1, 1, 0)
    trained = analysis.summarise("ga_s2 (trained)", [comparison])
    assert trained.jaccard == pytest.approx(1 / 3)
    assert trained.correlation == pytest.approx(4.5 / (5 * 4.5) ** 0.5)
    uniform = analysis.summarise("uniform", [comparison])
    assert (uniform.ratio, uniform.worst_ratio) == pytest.approx(((0.5 + 1 / 30) / 2 / 0.9, 1 / 30 / 0.9))
    assert uniform.extra_kl == pytest.approx((0.1 + 6.5 / 3) / 2 - 1.4 / 3)


def test_the_truth_is_whole_only_when_its_sets_are_distilled(tmp_path):
    path = by_hand(tmp_path) / "hand-seed-0.jsonl"
    kept = [line for line in path.read_text().splitlines(True) if '"distil 0,1"' not in line]
    path.write_text("".join(kept))
    (record,) = records.read_all(tmp_path)
    (comparison,) = record.comparisons()
    assert not comparison.whole, "{0 1} is among the two best untrained sets"
    assert "1 unfinished" in report.write(tmp_path).read_text()


def test_duels_are_paired_by_text_and_corrected_for_their_number(tmp_path):
    found = {duel.other: duel for duel in analysis.duels([the_comparison(tmp_path)])}
    assert set(found) == {WEIGHTED, ON_2, ON_4, "ga_s2 (trained)", "uniform"}
    assert found[WEIGHTED].recall == 0
    assert found[WEIGHTED].worse_recall == found[WEIGHTED].better_recall == 1
    # -0.1, -0.1, -0.2: t = -4 with two degrees of freedom.
    assert found[WEIGHTED].kl == pytest.approx(-0.4 / 3)
    assert found[WEIGHTED].better_kl == pytest.approx(0.0286, abs=1e-4)
    assert found[WEIGHTED].worse_kl == pytest.approx(1 - 0.0286, abs=1e-4)
    assert analysis.verdict([found[WEIGHTED]])["better_kl"] == 1
    assert analysis.verdict([found[WEIGHTED]] * 2)["better_kl"] == 0


def test_the_page_says_whether_goals_are_reached(tmp_path):
    page = table.page(records.read_all(by_hand(tmp_path)))
    assert "1 of 1 reach it; the lowest is 1.000 (hand, K = 2)" in page
    assert f"{ON_4}: 1/100.0 of the tokens, 1/100.0 of the FLOPs, at Jaccard 0.33 against 0.33" in page
    assert "recall: worse than none; KL: worse than none (of 5)" in page
    assert "a processor, 2 cores, 1 thread(s); torch 2; 2026-01-02 to 2026-01-02" in page
    assert "| default | 1 | 1.000 / 1.000 | +0.000 / +0.133 | 1.00 / 0.33 |" in page


def test_ranks_of_equal_values_are_shared():
    assert analysis.spearman([1, 2, 2, 4], [10, 20, 20, 30]) == pytest.approx(1)
    assert analysis.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert analysis.spearman([1, 1, 1], [1, 2, 3]) is None


def test_damaged_and_missing_raw_data_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no raw data"):
        records.read_all(tmp_path)
    path = by_hand(tmp_path) / "hand-seed-0.jsonl"
    path.write_text(path.read_text().replace('"key": "session 1",', '"key" "session 1",', 1))
    with pytest.raises(ValueError, match=r"hand-seed-0.jsonl, line 2 is no JSON"):
        records.read_all(tmp_path)
