"""Batches of a few classes with several rows of each."""

from __future__ import annotations

import pytest
import torch

from steepest.data.sampling import MPerClassSampler, per_class_batches


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


LABELS = torch.tensor([3] * 9 + [0] * 14 + [7] + [-2] * 6 + [5] * 12)


@pytest.mark.parametrize(("batch", "per_class", "classes"), [(12, 4, 3), (13, 4, 3), (64, 4, 5), (5, 5, 1), (8, 1, 5)])
def test_a_batch_shares_its_rows_among_its_classes(batch, per_class, classes):
    for rows in per_class_batches(LABELS, batch, 7, seeded(), per_class):
        counts = LABELS[rows].unique(return_counts=True)[1]
        assert len(counts) == classes
        assert counts.min() >= per_class
        assert counts.max() - counts.min() <= (batch % classes > 0)
        assert len(LABELS[rows].unique_consecutive()) == classes


@pytest.mark.holds("per-class-batches")
def test_classes_come_in_turn():
    for seed in range(20):
        batches = per_class_batches(LABELS, 12, 11, seeded(seed), 4)
        appeared = torch.stack([(LABELS[batches] == label).any(1).sum() for label in LABELS.unique()])
        assert appeared.sum() == 33
        assert appeared.max() - appeared.min() <= 1


@pytest.mark.holds("per-class-batches")
def test_rows_of_a_class_come_in_turn():
    batches = per_class_batches(LABELS, 12, 40, seeded(1), 4)
    counts = torch.bincount(batches.flatten(), minlength=len(LABELS))
    for label in LABELS.unique():
        own = counts[label == LABELS]
        assert own.max() - own.min() <= 1
    for rows in batches:
        for label in LABELS[rows].unique():
            own = rows[LABELS[rows] == label]
            assert len(own.unique()) == min(len(own), int((label == LABELS).sum()))


def test_every_class_is_as_likely():
    sampler = MPerClassSampler(LABELS, 12, 4)
    seen = torch.bincount(torch.tensor([row for _ in range(300) for batch in sampler for row in batch]))
    times = 300 * sampler.times(0)
    assert ((seen - times).abs() <= 5 * times.sqrt()).all()
    assert float(sampler.times(0).sum()) == pytest.approx(48.0)
    assert float(sampler.times(0)[LABELS == 7]) == pytest.approx(48 / 5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: per_class_batches(LABELS, 3, 1, seeded(), 4), "batch_size: expected at least per_class"),
        (lambda: per_class_batches(LABELS[:0], 3, 1, seeded(), 1), "labels"),
        (lambda: per_class_batches(LABELS, 4, 0, seeded()), "steps"),
        (lambda: per_class_batches(LABELS.float(), 4, 1, seeded()), "labels"),
        (lambda: MPerClassSampler(LABELS, 3), "batch_size"),
        (lambda: MPerClassSampler(LABELS, 8, 0), "per_class"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()
