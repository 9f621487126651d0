from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError, DataError, ShapeError
from metatoolkit.evaluation import label_accuracy, span_f1, tag_sequences
from metatoolkit.tasks import TokenDataset

pytest.importorskip("seqeval", reason="seqeval is not installed")

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
INDEX = {name: number for number, name in enumerate(NAMES)}


def tagged(*sentences: str, rows: list[int] | None = None) -> TokenDataset:
    """Return sentences of tags with a special token at both ends; token ids are class indices."""
    split = [sentence.split() for sentence in sentences]
    length = max(map(len, split)) + 2
    ids = torch.zeros(len(split), length, dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, tags in enumerate(split):
        labels[row, 1 : len(tags) + 1] = torch.tensor([INDEX[tag] for tag in tags])
        mask[row, : len(tags) + 2] = 1
    return TokenDataset(ids, mask, labels, NAMES, torch.tensor(rows or range(len(split))))


class Says(nn.Module):
    """Predicts given tags, as logits; it must be called in eval mode without gradients."""

    def __init__(self, *sentences: str) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.rows = iter([sentence.split() for sentence in sentences])

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        # What is said at special tokens and padding must not count.
        logits = torch.zeros(*batch["input_ids"].shape, len(NAMES))
        logits[..., INDEX["B-LOC"]] = 1
        for row in range(len(logits)):
            for place, tag in enumerate(next(self.rows)):
                logits[row, 1 + place, INDEX[tag]] = 2
        return self.scale * logits


@pytest.mark.parametrize(
    ("true", "said", "expected"),
    [
        ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC", 1.0),
        # One of two spans found, one of two predictions right.
        ("B-PER I-PER O B-LOC", "B-PER O O B-LOC", 1 / 2),
        # Precision 1, recall 1/2.
        ("B-PER I-PER O B-LOC", "O O O B-LOC", 2 / 3),
        # Precision 1/3, recall 1/2.
        ("B-PER I-PER O B-LOC", "B-LOC I-LOC B-PER B-LOC", 2 / 5),
        ("B-PER O", "O O", 0.0),
        # A span may begin with I- after O, as in the CoNLL evaluation.
        ("B-PER I-PER O", "I-PER I-PER O", 1.0),
        # ... and after a span of another type.
        ("B-PER B-LOC", "B-PER I-LOC", 1.0),
        # Neighbors of one type are two spans.
        ("B-PER B-PER", "B-PER I-PER", 0.0),
    ],
)
def test_f1_of_spans_counted_by_hand(true: str, said: str, expected: float) -> None:
    assert span_f1(Says(said), tagged(true)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_f1_counts_over_all_sentences(batch_size: int) -> None:
    true = ("B-PER", "B-LOC I-LOC O O O O", "O", "B-PER B-LOC")
    said = ("B-PER", "B-LOC O O O O B-PER", "O", "B-PER O")
    model = Says(*said)
    # Two of four spans are found, two of four predictions are right; the mean over sentences
    # would be another number.
    assert span_f1(model, tagged(*true), batch_size) == pytest.approx(1 / 2)
    assert model.training
    right = (1 + 4 + 1 + 1) / (1 + 6 + 1 + 2)
    assert label_accuracy(Says(*said), tagged(*true), batch_size) == pytest.approx(right)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_rows_of_one_sentence_are_put_together(batch_size: int) -> None:
    parts = tagged("O B-PER", "I-PER O", "B-LOC", rows=[0, 0, 1])
    assert span_f1(Says("O B-PER", "I-PER O", "B-LOC"), parts, batch_size) == 1.0
    true, said = tag_sequences(Says("O B-PER", "O O", "O"), parts, batch_size)
    assert true == [["O", "B-PER", "I-PER", "O"], ["B-LOC"]]
    assert said == [["O", "B-PER", "O", "O"], ["O"]]
    # Apart, the first row would be right.
    assert span_f1(Says("O B-PER", "O O", "B-LOC"), parts, batch_size) == pytest.approx(1 / 2)


def test_class_indices_do_as_well_as_logits() -> None:
    data = tagged("B-PER I-PER O", "B-LOC")
    assert span_f1(lambda batch: batch["labels"].clamp(min=0), data) == 1.0
    assert label_accuracy(lambda batch: batch["labels"] * 0, data) == 1 / 4


def test_accuracy_of_documents() -> None:
    ids = torch.tensor([[1, 2], [3, 4], [5, 6]])
    data = TokenDataset(
        ids, torch.ones_like(ids), torch.tensor([0, 1, 1]), ("bad", "good"), torch.arange(3)
    )
    logits = {1: [1.0, 0.0], 3: [1.0, 0.0], 5: [0.0, 1.0]}

    def predict(batch: dict[str, Tensor]) -> Tensor:
        return torch.tensor([logits[int(row[0])] for row in batch["input_ids"]])

    assert label_accuracy(predict, data, batch_size=2) == 2 / 3
    with pytest.raises(DataError, match=r"holds documents.*label_accuracy"):
        span_f1(predict, data)


def test_what_cannot_be_scored() -> None:
    data = tagged("B-PER O")
    with pytest.raises(DataError, match="no span"):
        span_f1(Says("O O"), tagged("O O"))
    with pytest.raises(ShapeError, match=r"\(1, 4, 3\) for labels of shape \(1, 4\) and 5"):
        span_f1(lambda batch: torch.zeros(1, 4, 3), data)
    with pytest.raises(ShapeError, match=r"\(1, 3\)"):
        span_f1(lambda batch: torch.zeros(1, 3, dtype=torch.int64), data)
    with pytest.raises(ConfigurationError, match="batch_size"):
        span_f1(Says("O O"), data, 0)
