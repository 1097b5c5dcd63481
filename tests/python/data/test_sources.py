"""Sources: every kind of file is read, the cache follows the content, and bad input is named."""

import errno
import json
import os
import shutil

import pyarrow
import pytest
import torch
from pyarrow import parquet

from hybridattn.data import TokenData
from hybridattn.data.sources import find_sources, read_documents

LINES = [f"document {i} " + "ab" * i for i in range(12)]


def write_jsonl(path, field="text"):
    path.write_text("".join(json.dumps({field: line, "other": 1}) + "\n" for line in LINES))
    return path


def read(*paths, **arguments):
    return [(d.text, d.source, d.line) for d in read_documents(find_sources(paths), **arguments)]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_jsonl_parquet_text_and_hub_datasets_give_the_same_documents(tmp_path):
    expected = [(line, "corpus.jsonl", i) for i, line in enumerate(LINES, 1)]
    jsonl = write_jsonl(tmp_path / "corpus.jsonl")
    assert read(jsonl) == expected
    parquet.write_table(pyarrow.table({"text": LINES}), tmp_path / "corpus.parquet")
    assert [text for text, _, _ in read(tmp_path / "corpus.parquet")] == LINES
    (tmp_path / "corpus.txt").write_text("\n%%\n".join(LINES))
    assert [text for text, _, _ in read(tmp_path / "corpus.txt", separator="\n%%\n")] == LINES
    assert read(tmp_path / "corpus.txt", separator="\n%%\n")[2][2] == 5
    hub = tmp_path / "hub"
    hub.mkdir()
    shutil.copy(jsonl, hub / "train.jsonl")
    assert [text for text, _, _ in read(f"hub:{hub}")] == LINES
    assert [text for text, _, _ in read(f"hub:{hub}@train[:3]")] == LINES[:3]


def test_a_folder_is_read_recursively_without_binary_and_hidden_files(tmp_path):
    root = tmp_path / "folder"
    (root / "deep").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "b.txt").write_text("b")
    (root / "deep" / "a.md").write_text("ä" * 5000)
    (root / "deep" / "noise.bin").write_bytes(bytes(range(256)))
    (root / ".git" / "config").write_text("hidden")
    write_jsonl(root / "c.jsonl")
    assert [source for _, source, _ in read(root)] == ["b.txt"] + ["c.jsonl"] * 12 + ["deep/a.md"]


def test_the_field_can_be_named(tmp_path):
    assert read(write_jsonl(tmp_path / "c.jsonl", "body"), field="body")[3][0] == LINES[3]


def build(path, cache, tokenizer, **arguments):
    return TokenData.from_files(path, tokenizer, 16, held_out=0.25, cache_dir=cache, **arguments)


def test_files_and_texts_give_the_same_data(tmp_path, cache, tokenizer):
    data = build(write_jsonl(tmp_path / "c.jsonl"), cache, tokenizer)
    assert data.fingerprint == TokenData.from_texts(LINES, tokenizer, 16, held_out=0.25).fingerprint
    assert any(name.startswith("c.jsonl:") for name in data.held_out(1)[0].document_ids)


def test_the_cache_is_used_and_follows_content_tokenizer_and_parameters(
    tmp_path, cache, tokenizer, make_tokenizer, monkeypatch
):
    path = write_jsonl(tmp_path / "c.jsonl")
    first = build(path, cache, tokenizer)
    (entry,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr("hybridattn.data.token_data.tokenise", lambda *_: iter(lambda: pytest.fail("tokenised again"), 0))
        again = build(path, cache, tokenizer)
    assert again.fingerprint == first.fingerprint
    assert list(cache.iterdir()) == [entry]
    assert torch.equal(next(again.train_batches(4)).input_ids, next(first.train_batches(4)).input_ids)
    stat = path.stat()
    path.write_text(path.read_text().replace("document 3", "dacument 3"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert build(path, cache, tokenizer).fingerprint != first.fingerprint
    build(path, cache, make_tokenizer(eos="\3"))
    assert len(list(cache.iterdir())) == 3
    assert not [entry for entry in cache.iterdir() if entry.name.startswith("partial-")]


def test_a_failed_build_leaves_no_cache_entry(tmp_path, cache, tokenizer):
    path = write_jsonl(tmp_path / "c.jsonl")
    build(path, cache, tokenizer)
    (entry,) = cache.iterdir()
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(ValueError, match=r"c\.jsonl, line 13: not valid JSON"):
        build(path, cache, tokenizer)
    assert list(cache.iterdir()) == [entry]


def test_a_full_disk_leaves_no_cache_entry(tmp_path, cache, tokenizer, monkeypatch):
    path = write_jsonl(tmp_path / "c.jsonl")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            build(path, cache, tokenizer)
    assert not list(cache.iterdir())
    assert build(path, cache, tokenizer).num_train_sequences > 0


def test_a_damaged_cache_is_named(tmp_path, cache, tokenizer):
    path = write_jsonl(tmp_path / "c.jsonl")
    build(path, cache, tokenizer)
    (entry,) = cache.iterdir()
    os.truncate(entry / "tokens.bin", 8)
    with pytest.raises(ValueError, match=f"{entry.name}.*damaged.*remove it"):
        build(path, cache, tokenizer)


def test_missing_and_unreadable_sources_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        read(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match="no source"):
        read()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty.*no text file"):
        read(tmp_path / "empty")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8"):
        read(tmp_path / "latin.txt")
    with pytest.raises(ValueError, match="cannot load"):
        read(f"hub:{tmp_path / 'empty'}")


def test_a_missing_field_is_named_with_those_there_are(tmp_path):
    path = write_jsonl(tmp_path / "c.jsonl")
    with pytest.raises(ValueError, match=r"line 1: no field 'body'.*text, other"):
        read(path, field="body")
    with pytest.raises(ValueError, match="field 'other' holds int"):
        read(path, field="other")
    parquet.write_table(pyarrow.table({"text": LINES}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"no column 'body'.*text"):
        read(tmp_path / "c.parquet", field="body")


def test_a_tokenizer_without_eos_is_refused(tmp_path, cache, make_tokenizer):
    with pytest.raises(ValueError, match=r"no EOS token.*eos_token ="):
        build(write_jsonl(tmp_path / "c.jsonl"), cache, make_tokenizer(eos=None))


@pytest.mark.parametrize(
    ("documents", "held_out", "message"),
    [
        ([], 0.1, "corpus is empty"),
        (["", ""], 0.1, "corpus is empty"),
        (["short", "words"], 0.5, r"6 tokens, one sequence needs 16.*longer corpus"),
        (["x" * 100], 0.1, "1 document.*separator"),
        (["x" * 100] * 5, 0.1, "5 document.*all the same"),
        (["x" * 100], 1.0, r"held_out is 1\.0"),
    ],
)
def test_a_corpus_that_is_too_small_is_refused(tokenizer, documents, held_out, message):
    with pytest.raises(ValueError, match=message):
        TokenData.from_texts(documents, tokenizer, 16, held_out=held_out)


def test_held_out_smaller_than_asked_names_both_and_the_remedy(tokenizer):
    data = TokenData.from_texts(LINES, tokenizer, 16, held_out=0.25)
    with pytest.raises(ValueError, match=r"500 sequences of 16 tokens.*split has \d+ .*raise held_out"):
        data.held_out(500)
    with pytest.raises(ValueError, match="split has 0"):
        TokenData.from_texts(LINES, tokenizer, 16, held_out=0).held_out()


def test_a_vocabulary_that_does_not_fit_names_id_and_document(tokenizer):
    data = TokenData.from_texts(["aaaa" * 9, "bbzb" * 9, "cccc" * 9], tokenizer, 16, held_out=0)
    data.check_vocabulary(128)
    data.check_vocabulary(123)
    with pytest.raises(ValueError, match=r"token id 122 in text:2 .*vocabulary of 122"):
        data.check_vocabulary(122)


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"batch_size": 1, "start_step": -1}])
def test_bad_batch_arguments_are_refused(tokenizer, arguments):
    data = TokenData.from_texts(LINES, tokenizer, 16, held_out=0)
    with pytest.raises(ValueError, match="train_batches"):
        data.train_batches(**arguments)
