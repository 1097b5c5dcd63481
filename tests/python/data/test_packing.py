"""Packing: nothing lost, nothing doubled, positions and document offsets restart where documents do."""

import numpy as np
import pytest
import torch

from hybridattn.data import Batch, TokenData

EOS = 0


def test_documents_are_laid_end_to_end_with_eos(tokenizer, texts):
    data = TokenData.from_texts(texts, tokenizer, seq_len=16, held_out=0)
    stream = data._train.batch(range(len(data._train))).input_ids.reshape(-1).tolist()
    expected = [t for i in data.train_documents for t in [*(ord(c) for c in texts[i]), EOS]]
    assert stream == expected[: len(stream)]
    assert len(expected) - len(stream) < 16


def test_positions_and_offsets_restart_at_documents_and_rows(tokenizer, texts):
    data = TokenData.from_texts(texts, tokenizer, seq_len=16, held_out=0)
    batch = data._train.batch([0, 3, 5])
    previous = torch.roll(batch.input_ids, 1, 1)
    previous[:, 0] = EOS
    for row in range(3):
        position = 0
        for column in range(16):
            position = 0 if previous[row, column] == EOS else position + 1
            assert batch.position_ids[row, column] == position
    starts = [i for i, p in enumerate(batch.position_ids.reshape(-1).tolist()) if p == 0]
    assert batch.cu_seqlens.tolist() == [*starts, 48]
    assert {16, 32} <= set(batch.cu_seqlens.tolist())


def test_rows_of_exactly_one_document_need_no_offsets(tokenizer):
    data = TokenData.from_texts(["abcdefg", "hijklmn", "opqrstu"], tokenizer, seq_len=8, held_out=0)
    batch = next(data.train_batches(3))
    assert batch.position_ids is None
    assert batch.cu_seqlens is None
    assert batch.loss_mask is None
    assert len(batch.document_ids) == 3
    assert batch.input_ids[:, -1].tolist() == [EOS] * 3


def test_a_document_over_several_rows_is_named_in_each(tokenizer):
    data = TokenData.from_texts(["x" * 39], tokenizer, seq_len=8, held_out=0)
    batch = next(data.train_batches(5))
    assert batch.document_ids == ["text:1"]
    assert batch.cu_seqlens is None
    assert batch.input_ids.eq(EOS).sum() == 1


def test_bos_is_put_where_the_tokenizer_would(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="\2 $A", special_tokens=[("\2", 2)])
    tokenizer.bos_token = "\2"
    data = TokenData.from_texts(["abcdef"], tokenizer, seq_len=8, held_out=0)
    assert next(data.train_batches(1)).input_ids[0].tolist() == [2, *map(ord, "abcdef"), EOS]


def test_loss_mask_travels_with_its_tokens():
    tokens = torch.randint(1, 100, (6, 10))
    mask = tokens % 2 == 0
    data = TokenData.from_tokens(tokens, loss_mask=mask, held_out=0)
    batch = next(data.train_batches(6))
    assert torch.equal(batch.loss_mask, batch.input_ids % 2 == 0)
    packed = TokenData.from_tokens(list(tokens), 7, loss_mask=list(mask), held_out=0)
    batch = next(packed.train_batches(5))
    assert torch.equal(batch.loss_mask, batch.input_ids % 2 == 0)


def test_splitting_a_batch_keeps_rows_and_rebuilds_offsets(tokenizer, texts):
    data = TokenData.from_texts(texts, tokenizer, seq_len=16, held_out=0)
    batch = data._train.batch(range(5))
    parts = list(batch.split(2))
    assert [part.num_sequences for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.input_ids for part in parts]), batch.input_ids)
    for i, part in enumerate(parts):
        expected = data._train.batch(range(2 * i, 2 * i + part.num_sequences))
        for got, want in ((part.cu_seqlens, expected.cu_seqlens), (part.position_ids, expected.position_ids)):
            assert (got is None and want is None) or torch.equal(got, want)
    assert {part.cu_seqlens is None for part in parts} == {True, False}


def test_batch_moves_to_a_device():
    batch = Batch(torch.zeros(2, 4, dtype=torch.long), cu_seqlens=torch.tensor([0, 8]))
    moved = batch.to("meta")
    assert moved.input_ids.is_meta
    assert moved.cu_seqlens.is_meta
    assert moved.position_ids is None
    assert batch.num_tokens == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": [torch.tensor([1, 2])]}, "give `seq_len`"),
        ({"tokens": torch.tensor([[1, -1]])}, "document 1 must be"),
        ({"tokens": torch.rand(2, 2)}, "document 1 must be"),
        ({"tokens": torch.ones(2, 4, dtype=torch.long), "loss_mask": torch.ones(2, 3)}, "loss_mask"),
    ],
)
def test_bad_tokens_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenData.from_tokens(**arguments)


def test_tokens_are_kept_as_given():
    tokens = torch.arange(1, 41).view(5, 8)
    data = TokenData.from_tokens(tokens, held_out=0)
    rows = next(data.train_batches(5)).input_ids
    assert sorted(rows[:, 0].tolist()) == tokens[:, 0].tolist()
    assert np.array_equal(np.sort(rows.numpy(), 0), tokens.numpy())
