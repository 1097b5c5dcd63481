"""Recall tasks of every family: they fit, they ask for what they told, at the depth that was asked."""

import json

import pytest

from hybridattn import evaluate
from hybridattn.evaluate import FAMILIES, RecallItem, RecallTask, build_task

LENGTH = 900


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_fill_their_length_and_tell_what_they_ask(name, characters):
    task = build_task(name, characters, [LENGTH, 1500], items=3, seed=3)
    assert task == build_task(name, characters, [LENGTH, 1500], items=3, seed=3)
    assert task.items[0].text != build_task(name, characters, [LENGTH], items=3, seed=4).items[0].text
    assert len({item.text for item in task.items}) == 6
    for item in task.items:
        assert item.length - 90 < len(item.text) <= item.length
        context = item.text[: item.answers[0][0]]
        for start, end in item.answers:
            assert item.text[start:end] in context, "the answer stands in the context"
    assert len(task.items[0].answers) == 1 or task.joint == (name != "key_value")


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.has_depth])
def test_what_is_asked_stands_at_its_depth(name, characters):
    task = build_task(name, characters, [LENGTH], [0, 0.5, 1], items=4, seed=1)
    assert [item.depth for item in task.items] == [0] * 4 + [0.5] * 4 + [1] * 4
    for item in task.items:
        context = item.text.split("\nQuestion" if "Question" in item.text else "Again")[0]
        places = [context.index(item.text[start:end]) / len(context) for start, end in item.answers]
        # The facts that nobody asks for, and a question for several entries, take some room.
        assert all(item.depth - 0.4 < place < item.depth + 0.4 for place in places), (item.depth, places)
        if item.depth == 0:
            assert min(places) < 0.12


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.has_depth])
def test_families_with_many_places_have_no_depth(name, characters):
    task = build_task(name, characters, [LENGTH], [0, 0.5, 1], items=2)
    assert [item.depth for item in task.items] == [None, None]


def test_variables_follow_their_chain(characters):
    for item in build_task("variable_tracking", characters, [LENGTH], items=5).items:
        value = item.text.split("equal to ")[-1].split(" are")[0]
        assert value.isdigit()
        holds = {value}
        for sentence in item.text.split("\n\n")[0].split("Let ")[1:]:
            variable, source = sentence.split(".")[0].split(" be equal to ")
            if source in holds:
                holds.add(variable)
        assert holds - {value} == {item.text[start:end] for start, end in item.answers}


@pytest.mark.parametrize("length", [LENGTH, 60_000])
def test_common_words_are_the_most_common(characters, length):
    (item,) = build_task("common_words", characters, [length], items=1).items
    listed = item.text.removeprefix("List: ").split(".")[0].split(", ")
    counts = {word: listed.count(word) for word in set(listed)}
    answers = [item.text[start:end] for start, end in item.answers]
    most, rest = [counts.pop(word) for word in answers], set(counts.values())
    assert len(set(most)) == len(rest) == 1
    assert most[0] == 8 * rest.pop()
    assert sorted(answers, key=listed.index) == answers


def test_values_are_asked_in_the_order_in_which_they_are_told(characters):
    for item in build_task("needle_multi_value", characters, [LENGTH], items=6).items:
        places = [item.text.index(item.text[start:end]) for start, end in item.answers]
        assert places == sorted(places)


def test_other_names_share_their_value_with_nobody(characters):
    for name in ("needle_multi_value", "needle_multi_query", "needle_multi_key"):
        for item in build_task(name, characters, [LENGTH], items=3).items:
            context = item.text.split("\n\n")[0]
            assert all(context.count(item.text[start:end]) == 1 for start, end in item.answers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nedle",), r"unknown recall task 'nedle': expected needle, .*phonebook or the path of a .jsonl file"),
        (("needle", [20]), r"needle: 4 facts and the question need \d+ tokens, length is 20"),
        (("passkey", [20]), r"passkey: 1 fact and the question need \d+ tokens, length is 20"),
        (("variable_tracking", [20]), r"variable_tracking: 6 facts and the question need"),
        (("common_words", [20]), r"common_words: 3 words 8 times, .* need \d+ tokens, length is 20"),
        (("key_value", [20]), r"key_value: the questions and their answers need \d+ tokens, length is 20"),
        (("key_value", [150]), r"key_value: 150 tokens have room for \d lines; at least 8 are needed"),
        (("phonebook", [150]), r"phonebook: 150 tokens have room for 1 lines; at least 2 are needed"),
        (("needle", [900], [0.5, 1.5]), "needle: depth 1.5 is outside 0 to 1"),
        (("needle", []), "give at least one length and one item"),
    ],
)
def test_what_does_not_fit_is_named(characters, arguments, message):
    name, *rest = arguments
    with pytest.raises(ValueError, match=message):
        build_task(name, characters, *rest)


def test_files_of_tasks_are_checked(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"text": "w1 w2", "answers": [[3, 5]]}) + "\n")
    assert evaluate.load_task(path) == RecallTask("mine", (RecallItem("w1 w2", ((3, 5),)),))
    path.write_text(json.dumps({"text": "w1 w2", "answers": [[3, 5]], "length": 64, "depth": 0.5}) + "\n")
    assert build_task(str(path), None).items == (RecallItem("w1 w2", ((3, 5),), 64, 0.5),)
    for line, message in (
        ('{"text": "abc", "answers": [[1, 9]]}', "line 2: each answer needs"),
        ('{"text": "abc", "answers": [[1, 2]], "depth": 2}', r"line 2: depth is 2.0, expected 0 to 1"),
        ('{"text": "abc", "answers": [[1, 2]], "length": "long"}', "line 2: expected"),
        ('{"text": "abc"}', "line 2: expected"),
        ("[1]", "line 2: expected"),
        ("not json", "line 2: expected"),
    ):
        path.write_text('{"text": "abc", "answers": [[1, 2]]}\n' + line + "\n")
        with pytest.raises(ValueError, match=message):
            evaluate.load_task(path)
    path.write_text("")
    with pytest.raises(ValueError, match="has no line"):
        evaluate.load_task(path)
