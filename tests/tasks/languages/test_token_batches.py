from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from metatoolkit.errors import CheckpointError, ConfigurationError
from metatoolkit.tasks import TokenBatches, TokenDataset
from metatoolkit.tasks.languages import evaluation_token_batches

LENGTHS = (3, 7, 2, 5, 2, 4, 6, 3, 1, 2, 2)


def dataset(tagging: bool = True) -> TokenDataset:
    """Row n holds n + 1 at its tokens, and the label n % 3 there."""
    rows = torch.arange(len(LENGTHS))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    labels = torch.where(mask == 1, rows[:, None] % 3, -100)
    return TokenDataset(
        (rows[:, None] + 1) * mask, mask, labels if tagging else rows % 3, ("O", "a", "b"), rows
    )


def same(first: list[dict[str, Tensor]], second: list[dict[str, Tensor]]) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(first, second, strict=True)
    )


def take(batches: TokenBatches, count: int) -> list[dict[str, Tensor]]:
    return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("tagging", [True, False])
def test_batches_are_padded_to_their_own_longest_row(tagging: bool) -> None:
    for batch in take(TokenBatches(dataset(tagging), 2, seed=1), 20):
        rows = batch["input_ids"][:, 0] - 1
        longest = max(LENGTHS[row] for row in rows.tolist())
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, longest)
        assert batch["attention_mask"].sum(1).tolist() == [LENGTHS[row] for row in rows.tolist()]
        assert torch.equal(batch["input_ids"] > 0, batch["attention_mask"] == 1)
        expected = batch["labels"][:, 0] if tagging else batch["labels"]
        assert torch.equal(expected, rows % 3)
        assert batch["labels"].shape == ((2, longest) if tagging else (2,))
        assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_an_epoch_holds_every_row_once() -> None:
    batches = TokenBatches(dataset(), 4, seed=2, drop_last=False)
    assert batches.epoch_length == 3
    epochs = [torch.cat([next(batches)["input_ids"][:, 0] for _ in range(3)]) for _ in range(2)]
    assert [sorted(epoch.tolist()) for epoch in epochs] == [list(range(1, 12))] * 2
    assert not torch.equal(*epochs)


def test_the_order_is_kept_on_demand() -> None:
    batches = TokenBatches(dataset(), 3, shuffle=False)
    assert torch.cat([b["input_ids"][:, 0] for b in take(batches, 3)]).tolist() == list(
        range(1, 10)
    )


@pytest.mark.parametrize("place", [0, 1, 3, 7])
def test_a_restored_iterator_goes_on_bitwise(place: int) -> None:
    batches = TokenBatches(dataset(), 3, seed=5)
    take(batches, place)
    file = io.BytesIO()
    torch.save(batches.state_dict(), file)
    expected = take(batches, 8)
    file.seek(0)
    restored = TokenBatches(dataset(), 3, seed=77)
    next(restored)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert same(take(restored, 8), expected)
    assert iter(restored) is restored


def test_reseeding_starts_over() -> None:
    batches = TokenBatches(dataset(), 3, seed=5)
    take(batches, 4)
    batches.reseed(6)
    assert same(take(batches, 4), take(TokenBatches(dataset(), 3, seed=6), 4))


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    take(TokenBatches(dataset(), 3, seed=5), 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_can_be_changed_without_harm() -> None:
    data = dataset()
    for shuffle in (True, False):
        next(TokenBatches(data, 11, shuffle=shuffle))["input_ids"].fill_(9)
    assert torch.equal(data.input_ids, dataset().input_ids)


def test_numbers_and_states_that_make_no_sense() -> None:
    with pytest.raises(ConfigurationError, match="batch_size is 0"):
        TokenBatches(dataset(), 0)
    with pytest.raises(ConfigurationError, match=r"batch_size is 12.*11 examples"):
        TokenBatches(dataset(), 12)
    state = TokenBatches(dataset(), 3).state_dict()
    with pytest.raises(CheckpointError, match="batch_size=3"):
        TokenBatches(dataset(), 4).load_state_dict(state)


def test_evaluation_passes_once_in_order() -> None:
    batches = list(evaluation_token_batches(dataset(), 4))
    assert torch.cat([b["input_ids"][:, 0] for b in batches]).tolist() == list(range(1, 12))
    assert [b["input_ids"].shape for b in batches] == [(4, 7), (4, 6), (3, 2)]
    with pytest.raises(ConfigurationError, match="batch_size"):
        evaluation_token_batches(dataset(), 0)
