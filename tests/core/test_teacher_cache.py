"""What a teacher says, computed once."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from steepest.core.errors import InputError
from steepest.core.teacher_cache import mean_features, teacher_cache
from steepest.nn.networks import Network

KINDS = ("logits", "features", "class_means")


class Counted(Network):
    """A teacher with dropout and batch norm that counts its passes."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout()), nn.Linear(6, 4))
        self.passes = 0

    def forward(self, inputs):
        self.passes += 1
        return super().forward(inputs)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return Counted()


@pytest.fixture
def inputs():
    return torch.randn(11, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels():
    return torch.arange(11) % 4


def by_hand(teacher, inputs):
    features = torch.stack([teacher.backbone.eval()(x[None])[0] for x in inputs]).detach()
    return features, (features @ teacher.head.weight.T + teacher.head.bias).detach()


def test_rows_are_those_of_the_teacher_and_the_second_call_reads(teacher, inputs, labels, tmp_path):
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=4)
    first = teacher_cache(teacher, loader, tmp_path, keep=KINDS)
    assert (first.fresh, teacher.passes) == (True, 3)
    second = teacher_cache(teacher, loader, tmp_path, keep=KINDS)
    assert (second.fresh, teacher.passes, second.digest) == (False, 3, first.digest)
    features, logits = by_hand(teacher, inputs)
    index = torch.tensor([10, 0, 0, 5])
    for cache in (first, second, teacher_cache(teacher, loader, keep=KINDS)):
        assert cache.num_classes == 4
        torch.testing.assert_close(cache.logits(), logits)
        torch.testing.assert_close(cache.logits(index), logits[index])
        torch.testing.assert_close(cache.features(index), features[index])
        means = torch.stack([features[labels == c].mean(0) for c in range(4)])
        torch.testing.assert_close(cache.class_means(), means)
    assert [file.name for file in tmp_path.iterdir()] == [first.digest]


def test_it_leaves_no_trace(teacher, inputs):
    teacher.train()
    teacher.head.eval()
    buffers = {name: b.clone() for name, b in teacher.named_buffers()}
    states = torch.get_rng_state()
    teacher_cache(teacher, DataLoader(TensorDataset(inputs), batch_size=4), keep=("logits", "features"))
    assert torch.equal(torch.get_rng_state(), states)
    assert teacher.backbone.training
    assert not teacher.head.training
    assert all(torch.equal(b, buffers[name]) for name, b in teacher.named_buffers())
    assert not teacher.head._forward_pre_hooks
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())


def test_what_is_changed_is_computed_anew(teacher, inputs, labels, tmp_path):
    """Data, one weight, a buffer, the form of the net, labels, and what is asked for."""
    data = [(inputs, labels)]
    digests = [teacher_cache(teacher, data, tmp_path).digest]
    digests += [teacher_cache(teacher, [(inputs + 1e-6, labels)], tmp_path).digest]
    digests += [teacher_cache(teacher, [(inputs, labels.flip(0))], tmp_path).digest]
    digests += [teacher_cache(teacher, data, tmp_path, top_k=2).digest]
    digests += [teacher_cache(teacher, data, tmp_path, dtype=torch.float16).digest]
    digests += [teacher_cache(teacher, data, tmp_path, keep=("logits", "features")).digest]
    with torch.no_grad():
        teacher.head.bias[2] += 1e-3
    digests += [teacher_cache(teacher, data, tmp_path).digest]
    teacher.backbone[1].running_mean[0] += 1
    digests += [teacher_cache(teacher, data, tmp_path).digest]
    teacher.backbone[2] = nn.GELU()
    digests += [teacher_cache(teacher, data, tmp_path).digest]
    assert len(set(digests)) == len(digests) == teacher.passes


def test_batches_do_not_matter(teacher, inputs, tmp_path):
    one = teacher_cache(teacher, inputs, tmp_path, batch_size=2)
    assert not teacher_cache(teacher, inputs, tmp_path, batch_size=5).fresh
    assert not teacher_cache(teacher, DataLoader(inputs, batch_size=3), tmp_path).fresh
    assert one.logits().shape == (11, 4)


@pytest.mark.parametrize("k", [1, 3])
def test_largest_logits(teacher, inputs, k, tmp_path):
    """At temperature 1 the kept classes have their probability, the others share what is left, or have none."""
    _, logits = by_hand(teacher, inputs)
    teacher_cache(teacher, inputs, tmp_path, top_k=k)
    cache = teacher_cache(teacher, inputs, tmp_path, top_k=k)
    p = logits.softmax(1)
    largest = torch.zeros_like(p, dtype=torch.bool).scatter(1, logits.topk(k).indices, True)
    spread = cache.logits()
    torch.testing.assert_close(spread[largest], logits[largest])
    for row, q, kept in zip(spread.softmax(1), p, largest):
        torch.testing.assert_close(row[kept], q[kept])
        torch.testing.assert_close(row[~kept], q[~kept].mean().expand(4 - k))
    torch.testing.assert_close(spread.logsumexp(1), logits.logsumexp(1))
    alone = cache.logits(torch.arange(11), rest="renormalise").softmax(1)
    masked = torch.where(largest, p, 0.0)
    torch.testing.assert_close(alone, masked / masked.sum(1, keepdim=True))
    assert cache.top_k == k


def test_all_classes_are_no_largest_ones(teacher, inputs):
    cache = teacher_cache(teacher, inputs, top_k=4)
    assert cache.top_k is None
    torch.testing.assert_close(cache.logits(), by_hand(teacher, inputs)[1])


def test_half_precision_keeps_what_it_can(teacher, inputs, tmp_path):
    cache = teacher_cache(teacher, inputs, tmp_path, dtype=torch.float16)
    _, logits = by_hand(teacher, inputs)
    assert cache.logits().dtype == torch.float32
    torch.testing.assert_close(cache.logits(), logits, rtol=1e-3, atol=1e-3)
    assert (tmp_path / cache.digest / "logits.npy").stat().st_size == 128 + 2 * 44
    with torch.no_grad():
        teacher.head.bias += 1e5
    with pytest.raises(ValueError, match=r"dtype: expected torch\.float32, for logits beyond 65504"):
        teacher_cache(teacher, inputs, dtype=torch.float16)


class Dies(nn.Linear):
    """A teacher whose process ends in its second pass."""

    passes = 0

    def forward(self, inputs):
        self.passes += 1
        if self.passes == 2:
            os._exit(9)
        return super().forward(inputs)


def test_a_killed_run_leaves_nothing_that_is_read(inputs, tmp_path):
    torch.manual_seed(0)
    teacher = Dies(3, 4)
    process = os.fork()
    if not process:
        teacher_cache(teacher, inputs, tmp_path, batch_size=4)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".unfinished-")
    assert sorted(file.name for file in left.iterdir()) == ["logits.npy"]
    cache = teacher_cache(teacher, inputs, tmp_path, batch_size=11)
    assert cache.fresh
    assert left.exists()
    long_ago = time.time() - 2 * 86_400
    os.utime(left, (long_ago, long_ago))
    teacher_cache(nn.Linear(3, 5), inputs, tmp_path)
    assert not left.exists()


def test_a_failed_run_leaves_nothing(inputs, tmp_path):
    with pytest.raises(RuntimeError):
        teacher_cache(nn.Linear(7, 2), inputs, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_process_may_be_first(teacher, inputs, tmp_path, monkeypatch):
    rename = os.rename

    def late(source, target):
        os.mkdir(target)
        for file in os.listdir(source):
            rename(os.path.join(source, file), os.path.join(target, file))
        raise FileExistsError(target)

    monkeypatch.setattr(os, "rename", late)
    cache = teacher_cache(teacher, inputs, tmp_path)
    torch.testing.assert_close(cache.logits(), by_hand(teacher, inputs)[1])
    assert [file.name for file in tmp_path.iterdir()] == [cache.digest]


def test_nothing_is_unpickled(teacher, inputs, tmp_path):
    cache = teacher_cache(teacher, inputs, tmp_path)
    place = tmp_path / cache.digest
    np.save(place / "logits.npy", np.array([{"a": 1}] * 11, dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"teacher cache .* cannot be read"):
        teacher_cache(teacher, inputs, tmp_path)
    np.save(place / "logits.npy", np.zeros((10, 4), np.float32))
    with pytest.raises(InputError, match=r"expected 11 rows of logits, got \(10, 4\)"):
        teacher_cache(teacher, inputs, tmp_path)
    (place / "logits.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match="cannot be read"):
        teacher_cache(teacher, inputs, tmp_path)
    np.save(place / "num_classes.npy", np.array(7))
    with pytest.raises(InputError):
        teacher_cache(teacher, inputs, tmp_path)


def test_classes_that_differ_are_refused_with_both_sizes(teacher, inputs, tmp_path):
    with pytest.raises(
        ValueError, match=r"^teacher: expected logits of 5 classes, as the student has, got .* shape \(11, 4\)$"
    ):
        teacher_cache(teacher, inputs, tmp_path, num_classes=5)
    assert teacher_cache(teacher, inputs, tmp_path, num_classes=4).num_classes == 4
    with pytest.raises(ValueError, match="expected logits of 5 classes"):
        mean_features(teacher, [(inputs, torch.arange(11) % 5)], 5)


def test_data_that_change_between_passes_are_refused(teacher, inputs):
    shuffled = DataLoader(TensorDataset(inputs), batch_size=4, shuffle=True)
    with pytest.raises(ValueError, match="data: expected the same rows in the same order at each pass"):
        teacher_cache(teacher, shuffled)

    class Grows(list):
        def __iter__(self):
            self.append(torch.ones(2, 3))
            return super().__iter__()

    with pytest.raises(ValueError, match="data: expected 2 rows at each pass, got 'more at the second pass'"):
        teacher_cache(teacher, Grows())


def test_refusals(teacher, inputs, labels):
    wrong = (
        ({"teacher": lambda x: x}, "teacher: expected a module"),
        ({"data": iter([inputs])}, "data: expected a tensor, or a loader that can be read twice"),
        ({"data": 3}, "data: expected a tensor"),
        ({"data": [{"inputs": inputs}]}, "data: expected batches of tensors"),
        ({"data": []}, "data: expected at least one row"),
        ({"data": [(inputs, labels[:3])]}, "labels: expected 11 rows"),
        ({"keep": ()}, "keep: expected some of logits"),
        ({"keep": ("logit",)}, "keep: expected one of"),
        ({"keep": ("features",), "head": "fc"}, "head: expected one of backbone, head, got 'fc'"),
        ({"head": None}, "head: expected the name of a submodule"),
        ({"keep": ("class_means",)}, "num_classes: expected a number"),
        ({"keep": KINDS}, "data: expected batches of inputs and labels"),
        ({"keep": KINDS, "data": [(inputs, labels % 3)]}, r"labels: expected rows of each of 4 classes"),
        ({"keep": KINDS, "data": [(inputs, labels + 1)]}, "labels: expected values in 0..3"),
        ({"dtype": torch.bfloat16}, "dtype: expected one of"),
        ({"top_k": 0}, "top_k: expected an integer >= 1"),
        ({"num_classes": 0}, "num_classes: expected an integer >= 1"),
        ({"batch_size": 0}, "batch_size: expected an integer >= 1"),
    )  # fmt: skip
    for changed, message in wrong:
        options = {"teacher": teacher, "data": inputs, **changed}
        with pytest.raises((ValueError, TypeError), match=message):
            teacher_cache(options.pop("teacher"), options.pop("data"), **options)
    cache = teacher_cache(teacher, inputs)
    with pytest.raises(ValueError, match=r"keep: expected 'features' among what is kept, got \['logits'\]"):
        cache.features()
    with pytest.raises(ValueError, match=r"index: expected values in 0..10"):
        cache.logits(torch.tensor([11]))
    with pytest.raises(ValueError, match="rest: expected one of"):
        cache.logits(rest="zero")


def test_features_of_a_teacher_that_gives_them_itself(teacher, inputs, labels):
    features = teacher.backbone.eval()(inputs).detach()
    means = mean_features(teacher.backbone, [(inputs, labels)], 4, head=None)
    torch.testing.assert_close(means, torch.stack([features[labels == c].mean(0) for c in range(4)]))
    torch.testing.assert_close(mean_features(teacher, [(inputs, labels)], 4), means)
    maps = nn.Unflatten(1, (3, 1))
    assert mean_features(maps, [(inputs, labels)], 4, head=None).shape == (4, 3)


def test_features_of_other_rows_are_refused():
    class Crops(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            return self.head(x.view(-1, 2, 3).sum(1)).repeat_interleave(2, 0)

    with pytest.raises(ValueError, match="head: expected features"):
        teacher_cache(Crops(), torch.arange(24.0).view(8, 3), keep=("features",), batch_size=4)
