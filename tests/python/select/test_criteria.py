"""Every criterion on real models in which two mixers are broken and the others are the teacher's attention itself."""

import json
import math
from functools import cache

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hybridattn as ha
from hybridattn import evaluate
from hybridattn.data import TokenData
from hybridattn.distill import Stage
from hybridattn.select import CandidateEvaluator, ScoreOptions, race_layers
from hybridattn.select.criteria import CRITERIA, LearnedGates, build_criterion, criterion_type, learned_gates
from hybridattn.select.criteria.questions import associative_recall

LAYERS, BROKEN, VOCABULARY = 5, [1, 3], 31
STAGE = Stage(tokens=2 * 2 * 12, seq_len=12, batch_size=2, lr=1e-3)
OPTIONS = {
    "learned_gates": {"steps": 12, "batch_size": 2},
    "ar": {"length": 24, "items": 6},
    "ar_mh": {"length": 40, "items": 6},
    "halo": {"length": 24, "items": 6},
    "explicit": {"listed": BROKEN},
}
MEASURING = [name for name in CRITERIA if name not in ("uniform", "random", "first", "last", "explicit")]
CHANGED_ALONE = ["gr_s2", "gr_s1", "act_mse", "ar", "ar_mh"]
"""Criteria that give exactly 0 to a layer whose mixer is its attention."""


@cache
def models(layers: int = LAYERS):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    teacher = LlamaForCausalLM(config).eval().requires_grad_(False)
    student = ha.convert(teacher, mixer="softmax_attention", verbose=False)
    with torch.no_grad():
        for layer in set(BROKEN) & set(student.mixers()):
            student.mixers()[layer].o_proj.weight.mul_(-1)
    return student.requires_grad_(False), teacher


def data() -> TokenData:
    tokens = torch.randint(0, VOCABULARY, (100, 12), generator=torch.Generator().manual_seed(1))
    return TokenData.from_tokens(tokens, held_out=0.2)


def evaluator(run_dir=None, sequences: int = 12) -> CandidateEvaluator:
    return CandidateEvaluator(*models(), data().held_out(sequences, 6), run_dir)


def scores(name: str, measured: CandidateEvaluator, keep: int | None = 2, progress=lambda line: None, **options):
    asked = ScoreOptions(name, options=OPTIONS.get(name, {}) | options)
    return race_layers(measured, asked, keep=keep, data=data(), progress=progress)


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_gives_every_layer_a_score_with_interval_source_and_cost(name):
    criterion = criterion_type(name)
    assert criterion.name == name
    for text in (criterion.title, criterion.label, criterion.source, criterion.deviations, criterion.explanation):
        assert text
    measured = evaluator()
    found = scores(name, measured)
    assert found.criterion == name
    assert sorted(row["layer"] for row in found.rows) == list(range(LAYERS))
    values = [row["score"] if criterion.important == "low" else -row["score"] for row in found.rows]
    assert values == sorted(values), "the most important layer comes first"
    for row in found.rows:
        assert row["low"] <= row["score"] <= row["high"]
    assert (found.tokens > 0) == (found.flops > 0) == (name in MEASURING)
    assert (found.tokens, found.flops) == (measured.tokens, measured.flops)
    assert len(found.top(k=2)) == 2
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("name", MEASURING)
def test_none_or_all_may_be_kept_and_a_model_may_have_one_layer(name):
    for keep in (0, LAYERS):
        assert scores(name, evaluator(sequences=6), keep=keep).top(k=keep) == list(range(keep))
    student, teacher = models(1)
    single = CandidateEvaluator(student, teacher, data().held_out(6, 6))
    for keep in (0, 1):
        found = scores(name, single, keep=keep)
        assert found.top(k=keep) == [0][:keep]
        assert len(found.rows) == 1


@pytest.mark.parametrize("name", CHANGED_ALONE)
def test_a_mixer_that_is_the_attention_costs_nothing(name):
    rows = {row["layer"]: row for row in scores(name, evaluator()).rows}
    for layer in range(LAYERS):
        assert (rows[layer]["score"] == 0) == (layer not in BROKEN)


@pytest.mark.parametrize("name", ["gr_s2", "gr_s1", "act_mse", "learned_gates"])
def test_the_broken_layers_are_found(name):
    assert scores(name, evaluator()).top(k=2) == BROKEN


def test_stage_1_on_the_teachers_inputs_ranks_alike_in_both_directions():
    measured = evaluator()
    by_layer = [scores(name, measured, inputs="teacher").samples for name in ("ga_s1", "gr_s1")]
    whole = [sum(by_layer[1][layer][i] for layer in range(LAYERS)) for i in range(12)]
    for layer in range(LAYERS):
        both = [a + r for a, r in zip(by_layer[0][layer], by_layer[1][layer], strict=True)]
        assert both == pytest.approx(whole)


def test_stage_1_losses_are_those_of_a_hybrid_run_alone():
    student, teacher = models()
    batch = data().held_out(6, 6)[0]
    hybrid = ha.keep_softmax(student, teacher, [1])
    outputs = {}
    for name, model in (("teacher", teacher), ("hybrid", hybrid)):
        hooks = [
            layer.self_attn.register_forward_hook(lambda _m, _a, out, key=(name, i): outputs.__setitem__(key, out[0]))
            for i, layer in enumerate(model.model.layers)
        ]
        ha.hf.hidden_states(model, batch)
        for hook in hooks:
            hook.remove()
    distances = [(outputs["hybrid", i] - outputs["teacher", i]).norm(dim=-1).mean(1) / 16**0.5 for i in range(LAYERS)]
    expected = torch.stack(distances).mean(0).tolist()
    found = scores("ga_s1", evaluator(sequences=6))
    assert found.samples[1] == pytest.approx(expected, rel=1e-4)


def test_perplexity_without_a_layer_is_that_of_the_model_without_it():
    _, teacher = models()
    batches = data().held_out(12, 6)
    found = {row["layer"]: row["score"] for row in scores("lm_ppl", evaluator()).rows}
    for layer in (0, 3):
        hook = teacher.model.layers[layer].self_attn.register_forward_hook(
            lambda _m, _a, out: (torch.zeros_like(out[0]), None)
        )
        expected = math.log(evaluate.perplexity(teacher, batches))
        hook.remove()
        assert found[layer] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("recall", ["log_probability", "accuracy"])
def test_recall_is_that_of_the_hybrid_run_alone(recall):
    student, teacher = models()
    tokens = sorted({int(token) for batch in data().held_out(12, 6) for token in batch.input_ids.unique()})
    questions = associative_recall(tokens, 24, 6, seed=0)

    def answered(model) -> list[float]:
        values = []
        for ids, spans in zip(questions.ids, questions.spans, strict=True):
            logits = model(torch.tensor([ids])).logits[0].detach().log_softmax(-1)
            places = [place for span in spans for place in span]
            if recall == "accuracy":
                values.append(sum(int(logits[place - 1].argmax()) == ids[place] for place in places) / len(places))
            else:
                values.append(sum(float(logits[place - 1, ids[place]]) for place in places) / len(places))
        return values

    found = scores("ar", evaluator(), recall=recall)
    for layer in (0, 3):
        hybrid = ha.keep_softmax(student, teacher, [other for other in range(LAYERS) if other != layer])
        expected = [whole - part for whole, part in zip(answered(teacher), answered(hybrid), strict=True)]
        assert found.samples[layer] == pytest.approx(expected, abs=1e-5)


def test_halos_ratio_is_its_formula():
    measured = evaluator()
    found = {row["layer"]: row["score"] for row in scores("halo", measured).rows}
    recall = [-row["score"] for row in sorted(scores("ar", measured).rows, key=lambda row: row["layer"])]
    quality = sorted(scores("lm_ppl", measured, without="mixer").rows, key=lambda row: row["layer"])
    likelihood = [-row["score"] for row in quality]
    for layer in range(LAYERS):
        expected = (max(recall) - recall[layer]) / (max(likelihood) - likelihood[layer] + 1e-6)
        assert found[layer] == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("hops", [1, 2])
def test_synthetic_questions_can_be_answered_from_their_context(hops):
    questions = associative_recall(range(100, 160), 48, 5, seed=3, hops=hops)
    for ids, spans in zip(questions.ids, questions.spans, strict=True):
        assert len(ids) <= 48
        table = ids[: spans[0][0] - 1]
        pairs = {(a, b) for a, b in zip(table[::2], table[1::2], strict=True)}
        for places in spans:
            assert len(places) == hops
            for place in places:
                assert (ids[place - 1], ids[place]) in pairs
    with pytest.raises(ValueError, match=r"have room for 2 chains, at least 4 are needed"):
        associative_recall(range(100), 10, 5, seed=0)


def test_gates_find_the_broken_layers_and_repeat_to_the_same_bits():
    options = LearnedGates(steps=20, batch_size=4, lr=0.3)
    first, second = (learned_gates(evaluator(), data(), options, keep=2) for _ in range(2))
    assert first == second
    assert len(first.gates) == 20
    assert sorted(sorted(range(LAYERS), key=lambda layer: -first.final[layer])[:2]) == BROKEN
    assert first.divergences[-1] < first.divergences[0]
    seeds = scores("learned_gates", evaluator(), seeds=3)
    assert [len(values) for values in seeds.samples.values()] == [3] * LAYERS
    assert {row["verdict"] for row in scores("learned_gates", evaluator()).rows} == {"open"}, "one seed proves nothing"


def test_gates_heed_the_weights_of_tokens():
    """Where no token counts but the first, which sees only itself, a broken layer is still seen; a weight changes the KL."""
    options = LearnedGates(steps=4, batch_size=2)
    plain = learned_gates(evaluator(), data(), options)

    def first_token(batch):
        weights = torch.zeros(batch.input_ids.shape)
        weights[:, 0] = 1
        return weights

    weighted = learned_gates(evaluator(), data(), options, token_weights=first_token)
    assert weighted.divergences[0] != plain.divergences[0]


def test_models_are_left_as_they_were():
    student, teacher = models()
    before = {name: tensor.clone() for name, tensor in (student.state_dict() | teacher.state_dict()).items()}
    attention = [layer.self_attn for layer in teacher.model.layers]
    teacher.model.norm.weight.requires_grad_(True)
    for name in MEASURING:
        scores(name, evaluator())
    assert [layer.self_attn for layer in teacher.model.layers] == attention
    assert teacher.model.norm.weight.requires_grad
    assert all(p.grad is None for p in (*teacher.parameters(), *student.parameters()))
    teacher.model.norm.weight.requires_grad_(False)
    after = student.state_dict() | teacher.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def events(path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "flops")} for row in rows]


@pytest.mark.parametrize("name", MEASURING)
def test_a_run_that_was_killed_after_any_event_repeats_none(tmp_path, name):
    whole = scores(name, evaluator(tmp_path / "whole"))
    lines = (tmp_path / "whole" / "events.jsonl").read_text().splitlines(keepends=True)
    for cut in sorted({1, len(lines) // 2, len(lines) - 1, len(lines)}):
        folder = tmp_path / f"cut {cut}"
        folder.mkdir()
        (folder / "events.jsonl").write_text("".join(lines[:cut]))
        resumed = scores(name, evaluator(folder))
        assert resumed.rows == whole.rows
        assert resumed.tokens == whole.tokens
        # Hybrids share layers with those measured at the same time, of which there are fewer now.
        assert resumed.flops == whole.flops if cut == len(lines) else resumed.flops >= whole.flops
        assert events(folder / "events.jsonl") == events(tmp_path / "whole" / "events.jsonl")


@pytest.mark.parametrize("name", ["gr_s2", "gr_s1", "ga_s1", "avg_s1", "avg_s2", "act_mse", "ar", "halo", "smart"])
def test_a_layer_whose_mixer_diverged_is_out_with_the_reason(name):
    student, _ = models()
    weight = student.mixers()[2].o_proj.weight
    kept = weight.clone()
    try:
        with torch.no_grad():
            weight.fill_(math.nan)
        found = scores(name, evaluator())
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    hurt = [row for row in found.rows if row["verdict"] == "out" and "not finite" in row["reason"]]
    # Addition keeps the mixer of layer 2 in every candidate but its own.
    expected = [2] if name in ("gr_s2", "gr_s1", "act_mse", "ar", "halo") else [0, 1, 3, 4]
    if name.startswith("avg"):
        expected = list(range(LAYERS))
    assert sorted(row["layer"] for row in hurt) == expected
    assert len(found.top(k=2)) == 2


@pytest.mark.parametrize("name", ["ga_s2", "gr_s2", "learned_gates"])
def test_nothing_trains_on_a_held_out_document(monkeypatch, name):
    """Each document is one token over and over, so every token that a model sees tells which document it is of."""
    tokens = torch.arange(VOCABULARY)[:, None].expand(VOCABULARY, 12).contiguous()
    split = TokenData.from_tokens(tokens, held_out=0.3)
    held_out = {int(batch_tokens) for batch in split.held_out() for batch_tokens in batch.input_ids.unique()}
    assert 5 < len(held_out) < 15
    trained, measured = set(), set()
    embed = torch.nn.Embedding.forward

    def watched(module, ids):
        (trained if torch.is_grad_enabled() else measured).update(ids.unique().tolist())
        return embed(module, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", watched)
    student, teacher = models()
    options = ScoreOptions(
        name, max_steps=2 if name != "learned_gates" else 0, held_out_sequences=6, options=OPTIONS.get(name, {})
    )
    ha.score_layers(student, teacher, split, options, keep=2, stage=STAGE)
    assert trained
    assert not trained & held_out
    if name != "learned_gates":
        assert measured & held_out


def test_unknown_names_and_options_are_named():
    with pytest.raises(
        ValueError, match=r"criterion is 'act_mes', the nearest is 'act_mse'; known are addition, removal"
    ):
        build_criterion("act_mes")
    with pytest.raises(ValueError, match=r"criterion 'uniform': unknown key 'ofset', did you mean 'offset'"):
        ScoreOptions("uniform", options={"ofset": 1})
    with pytest.raises(ValueError, match=r"criterion 'learned_gates': steps: .*greater than or equal to 4"):
        build_criterion("learned_gates", {"steps": 1})
    with pytest.raises(ValueError, match=r"trains gates; give `data`"):
        race_layers(evaluator(), ScoreOptions("learned_gates"), keep=2)
    with pytest.raises(ValueError, match=r"is a plan of K layers; give `keep`"):
        race_layers(evaluator(), ScoreOptions("uniform"))
    with pytest.raises(ValueError, match=r"lists 2 layers, 3 are wanted"):
        scores("explicit", evaluator(), keep=3)
    with pytest.raises(ValueError, match=r"recall task 'needle' is in text; give the teacher's `tokenizer`"):
        scores("ar", evaluator(), task="needle")
    with pytest.raises(ValueError, match=r"keep is 9, expected 0 to 5"):
        learned_gates(evaluator(), data(), keep=9)


def test_the_name_may_stand_beside_the_options():
    student, teacher = models()
    found = ha.score_layers(student, teacher, data(), ScoreOptions(held_out_sequences=6), criterion="act_mse", keep=2)
    assert found.criterion == "act_mse"
    again = ha.score_layers(student, teacher, data(), ScoreOptions(held_out_sequences=6), criterion="removal", keep=2)
    assert again.criterion == "gr_s2"
