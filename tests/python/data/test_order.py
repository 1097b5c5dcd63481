"""Order and split: the same (seed, step) gives the same batch, an epoch sees each row once, held-out stays unseen."""

import itertools

import pytest
import torch

from hybridattn.data import TokenData


def take(data: TokenData, n: int, **arguments) -> list[torch.Tensor]:
    return [batch.input_ids for batch in itertools.islice(data.train_batches(**arguments), n)]


@pytest.fixture
def data(tokenizer, texts) -> TokenData:
    return TokenData.from_texts(texts, tokenizer, seq_len=16, held_out=0.2)


@pytest.mark.parametrize("step", [1, 7, 40])
def test_starting_at_a_step_continues_exactly(data, step):
    whole = take(data, step + 5, batch_size=3, seed=4)
    resumed = take(data, 5, batch_size=3, seed=4, start_step=step)
    assert all(torch.equal(a, b) for a, b in zip(whole[step:], resumed, strict=True))


def test_an_epoch_sees_every_row_once_and_the_next_in_another_order(data):
    n = data.num_train_sequences
    rows = [tuple(batch[0].tolist()) for batch in take(data, 2 * n, batch_size=1)]
    every = sorted(tuple(row) for row in data._train.batch(range(n)).input_ids.tolist())
    assert sorted(rows[:n]) == sorted(rows[n:]) == every
    assert rows[:n] != rows[n:]


def test_batch_size_does_not_change_the_order(data):
    assert torch.equal(torch.cat(take(data, 6, batch_size=2)), torch.cat(take(data, 3, batch_size=4)))


def test_seeds_give_different_orders(data):
    assert not torch.equal(
        torch.cat(take(data, 5, batch_size=2, seed=0)), torch.cat(take(data, 5, batch_size=2, seed=1))
    )


def test_held_out_documents_are_never_trained_on(tokenizer, texts):
    data = TokenData.from_texts(texts, tokenizer, seq_len=16, held_out=0.25)
    assert set(data.held_out_documents).isdisjoint(data.train_documents)
    assert len(data.held_out_documents) == 10
    assert len(data.train_documents) == 30
    trained = {
        name
        for batch in itertools.islice(data.train_batches(1), data.num_train_sequences)
        for name in batch.document_ids
    }
    held_out = {name for batch in data.held_out() for name in batch.document_ids}
    assert held_out
    assert trained
    assert not held_out & trained


def test_copies_of_a_document_land_on_one_side(tokenizer, texts):
    data = TokenData.from_texts(texts * 3, tokenizer, seq_len=16, held_out=0.2)
    held_out = {texts[i % 40] for i in data.held_out_documents}
    trained = {texts[i % 40] for i in data.train_documents}
    assert not held_out & trained
    assert 0.15 < len(data.held_out_documents) / len(data.store) < 0.25


def test_the_split_does_not_depend_on_the_documents_order(tokenizer, texts):
    one = TokenData.from_texts(texts, tokenizer, seq_len=16, held_out=0.25)
    other = TokenData.from_texts(texts[::-1], tokenizer, seq_len=16, held_out=0.25)
    assert {texts[i] for i in one.held_out_documents} == {texts[::-1][i] for i in other.held_out_documents}
    moved = TokenData.from_texts(texts, tokenizer, seq_len=16, held_out=0.25, split_seed=1)
    assert set(moved.held_out_documents) != set(one.held_out_documents)


def test_held_out_batches_are_always_the_same_first_sequences(data):
    few, more = data.held_out(3, batch_size=2), data.held_out(4, batch_size=3)
    assert [batch.num_sequences for batch in few] == [2, 1]
    first = torch.cat([batch.input_ids for batch in few])
    assert torch.equal(first, torch.cat([batch.input_ids for batch in more])[:3])


def test_another_sequence_length_keeps_the_split(data):
    longer = data.with_seq_len(32)
    assert set(longer.held_out_documents) == set(data.held_out_documents)
    assert longer.store is data.store
    assert longer.held_out(1)[0].input_ids.shape == (1, 32)


def test_fingerprint_names_content_split_and_length(tokenizer, texts, data):
    same = TokenData.from_texts(texts, tokenizer, seq_len=16, held_out=0.2)
    assert same.fingerprint == data.fingerprint
    others = [data.with_seq_len(8), TokenData.from_texts(texts, tokenizer, 16, held_out=0.3)]
    others.append(TokenData.from_texts([*texts[:-1], "else"], tokenizer, 16, held_out=0.2))
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 4
