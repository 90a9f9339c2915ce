"""Dataset distillation: the matched distance, the smooth expert, gradients through all steps, rejected updates."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.data.distillation import SmoothExpert, TrajectoryMatcher, trajectory_match_loss


def model_fn():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def rows(count=24):
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % 2
    return torch.randn(count, 3, generator=generator).double() + labels[:, None], labels


def path_of(epochs=4, make=model_fn):
    torch.manual_seed(1)
    return SmoothExpert(make, epochs=epochs, lr=0.1).train([rows()])


def matcher_of(**options):
    torch.manual_seed(0)
    settings = {"syn_steps": 6, "max_start": 2, "iterations": 3, "input_lr": 0.5, "student_lr": 0.1} | options
    return TrajectoryMatcher(settings.pop("make", model_fn), settings.pop("ipc", 2), **settings)


def gradient_of(matcher, images=None, log_lr=-2.0, scale=1.3, seed=5):
    path, (x, y) = torch.stack(path_of()), rows()
    images = x[:4] if images is None else images
    rate = torch.tensor(log_lr, dtype=torch.float64)
    return matcher.matching_gradient(images, y[:4], rate, path[0], path[1:4], scale, seed)


@pytest.mark.holds("trajectory-dataset-distillation", 1)
def test_terms_by_hand():
    start = torch.zeros(2, dtype=torch.float64)
    end, middle = torch.tensor([1.0, 1.0], dtype=torch.float64), torch.tensor([0.5, 0.6], dtype=torch.float64)
    last = trajectory_match_loss(
        torch.stack([start, torch.tensor([0.8, 0.9], dtype=torch.float64)]), torch.stack([start, end])
    )
    between = trajectory_match_loss(
        torch.stack([start, torch.tensor([0.4, 0.4], dtype=torch.float64)]), torch.stack([start, middle])
    )
    assert last.item() == pytest.approx(0.025, rel=1e-12)
    assert between.item() == pytest.approx(0.05 / 0.61, rel=1e-12)


@pytest.mark.holds("trajectory-dataset-distillation", 2)
def test_at_the_target_0_and_without_a_move_1_a_term():
    expert = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    student = expert[:1].expand(4, 7) + 0.1  # a perturbed start
    assert trajectory_match_loss(expert, expert) == 0
    assert trajectory_match_loss(student, expert).item() == pytest.approx(3, rel=1e-6)


def test_an_expert_that_stands_still_adds_0_with_a_finite_gradient():
    student = torch.tensor([[0.0, 0.0], [1.0, 1.0]], requires_grad=True)
    loss = trajectory_match_loss(student, torch.zeros(2, 2))
    loss.backward()
    assert loss == 0
    assert student.grad.isfinite().all()


def test_half_precision_gives_float32_and_wrong_paths_are_refused():
    assert trajectory_match_loss(torch.zeros(2, 3).half(), torch.ones(2, 3).half()).dtype == torch.float32
    with pytest.raises(ValueError, match="student_path"):
        trajectory_match_loss(torch.zeros(1, 3), torch.zeros(1, 3))


@pytest.mark.holds("trajectory-dataset-distillation", 3)
@pytest.mark.parametrize(("start", "factor"), [(0, 0.556827), (9, 0.732487), (10, 1.292030), (19, 1.760374)])
def test_balance_of_starts(start, factor):
    assert matcher_of(max_start=20).start_balance(start) == pytest.approx(factor, abs=1e-6)


@pytest.mark.holds("trajectory-dataset-distillation", 4)
def test_penalty_of_a_linear_model():
    model = nn.Linear(2, 2, bias=False).double()
    model.weight.data = torch.tensor([[1.0, 2.0], [3.0, -1.0]]).double()
    penalty = SmoothExpert(lambda: model, 1).penalty(model, torch.randn(5, 2).double())
    assert penalty.item() == pytest.approx(2 * (math.sqrt(17) - 1) ** 2, rel=1e-12)


def test_penalty_of_images_takes_the_norm_over_channels():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    model = lambda images: images.square().sum((1, 2, 3))[:, None] / 2  # noqa: E731
    pixels = x.numpy().transpose(0, 2, 3, 1).reshape(-1, 3)
    wanted = 2 * np.mean([(math.sqrt(sum(v * v for v in pixel)) - 1) ** 2 for pixel in pixels])
    assert SmoothExpert(model_fn, 1).penalty(model, x).item() == pytest.approx(wanted, rel=1e-12)


def test_scale_of_the_first_epochs_and_the_length_of_a_path():
    expert = SmoothExpert(model_fn, 12)
    assert [expert.loss_scale(e) for e in (0, 1, 9, 10, 11)] == pytest.approx([0.5, 0.55, 0.95, 1, 1])
    assert SmoothExpert(model_fn, 1, clip_epochs=0).loss_scale(0) == 1
    path = path_of(4)
    assert len(path) == 5
    assert path[0].shape == (26,)
    assert not torch.equal(path[0], path[1])


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.holds("trajectory-dataset-distillation", 5)
def test_gradients_reach_samples_and_rate_through_all_steps(checkpoint):
    matcher, (x, _) = matcher_of(checkpoint=checkpoint), rows()
    _, to_images, to_rate = gradient_of(matcher)
    eps, images = 1e-5, x[:4]
    for place in ((0, 0), (1, 2), (3, 1)):
        step = torch.zeros_like(images)
        step[place] = eps
        up, down = (gradient_of(matcher, images + s * step)[0] for s in (1, -1))
        assert to_images[place].item() == pytest.approx((up - down).item() / (2 * eps), rel=1e-5, abs=1e-9)
    up, down = (gradient_of(matcher, log_lr=-2.0 + s * eps)[0] for s in (1, -1))
    assert to_rate.item() == pytest.approx((up - down).item() / (2 * eps), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"middle": False}, {"batch_size": 2}, {"student_momentum": 0.0}])
def test_steps_computed_again_give_the_gradient_of_the_unroll(options):
    augment = lambda images: images + 0.1 * torch.randn_like(images)  # noqa: E731
    again = gradient_of(matcher_of(checkpoint=True, augment=augment, **options))
    held = gradient_of(matcher_of(checkpoint=False, augment=augment, **options))
    for one, two in zip(again, held):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-13)


def test_loss_by_a_loop_over_autograd():
    matcher, path, (x, y) = matcher_of(), torch.stack(path_of()), rows()
    model, rate = model_fn(), math.exp(-2.0)
    torch.nn.utils.vector_to_parameters(path[0].clone(), model.parameters())
    optimizer, at = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9), {}
    for number in range(1, 7):
        optimizer.zero_grad()
        (1.3 * nn.functional.cross_entropy(model(x[:4]), y[:4])).backward()
        optimizer.step()
        at[number] = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    wanted = 0.0
    for point, epoch in ((2, 1), (4, 2), (6, 3)):
        wanted += ((at[point] - path[epoch]) ** 2).sum().item() / ((path[0] - path[epoch]) ** 2).sum().item()
    assert gradient_of(matcher)[0].item() == pytest.approx(wanted, rel=1e-10)


def test_fit_lowers_the_loss_and_repeats_by_seed():
    results = []
    for _ in range(2):
        matcher = matcher_of(iterations=12, max_start=1, perturb=False)
        results.append(matcher.fit([path_of()], rows()))
        assert matcher.losses[-1] < matcher.losses[0]
    (images, labels, rate), (same, _, _) = results
    assert torch.equal(images, same)
    assert labels.tolist() == [0, 0, 1, 1]
    assert rate > 0


def test_the_rate_stays_positive_under_steps_that_are_too_large():
    matcher = matcher_of(rate_lr=50.0, input_lr=0.0, iterations=8)
    assert matcher.fit([path_of()], rows())[2] > 0


def test_an_update_that_is_not_finite_is_rejected_and_logged(caplog):
    matcher = matcher_of(augment=lambda images: images * float("nan"), init="random", iterations=3)
    with caplog.at_level(logging.WARNING):
        images, _, rate = matcher.fit([path_of()], rows())
    assert matcher.rejected == 3
    assert len(caplog.records) == 3
    assert images.isfinite().all()
    assert rate == pytest.approx(0.1)


def test_perturbation_is_of_kernels_alone_and_of_length_1_in_proportion():
    make = lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)).double()  # noqa: E731
    weights = torch.randn(18 + 2 + 18, generator=torch.Generator().manual_seed(0)).double()
    moved = matcher_of(make=make)._perturbed(weights, torch.Generator().manual_seed(1))
    assert torch.equal(moved[18:], weights[18:])
    assert ((moved[:18] - weights[:18]) / weights[:18]).norm().item() == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("init", ["kmeans", "random"])
def test_samples_start_as_distinct_real_rows_of_their_class(init):
    x, y = rows()
    images, labels, _ = matcher_of(ipc=3, init=init, iterations=0).fit([path_of()], (x, y))
    places = (images[:, None] == x).all(2).nonzero()[:, 1]
    assert len(set(places.tolist())) == 6
    assert torch.equal(y[places], labels)


def test_random_state_and_buffers_are_left_as_they_were():
    make = lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 2)).double()  # noqa: E731
    matcher, path = matcher_of(make=make), path_of(make=make)
    before, mean = torch.random.get_rng_state(), matcher._model[1].running_mean.clone()
    matcher.fit([path], rows())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(matcher._model[1].running_mean, mean)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="syn_steps"):
        matcher_of(syn_steps=2)
    with pytest.raises(ValueError, match="trajectories"):
        matcher_of().fit([path_of(3)], rows())
    with pytest.raises(ValueError, match="trajectories"):
        matcher_of().fit([], rows())
    with pytest.raises(ValueError, match="ipc"):
        matcher_of(ipc=13).fit([path_of()], rows())
    with pytest.raises(ValueError, match="data"):
        matcher_of().fit([path_of()], (rows()[0] * float("inf"), rows()[1]))
    with pytest.raises(ValueError, match="init"):
        matcher_of(init="best")


def test_draws_follow_the_seed_alone():
    matcher = matcher_of(augment=lambda images: images + torch.randn_like(images))
    torch.manual_seed(7)
    first = gradient_of(matcher)[0]
    torch.manual_seed(8)
    assert gradient_of(matcher)[0] == first
    assert gradient_of(matcher, seed=99)[0] != first


@pytest.mark.parametrize("options", [{"clip_epochs": 0}, {"gp": 0.0}, {"weight_decay": 0.5}, {"momentum": 0.0}])
def test_each_option_of_an_expert_moves_its_path(options):
    paths = []
    for chosen in ({}, options):
        torch.manual_seed(1)
        paths.append(SmoothExpert(model_fn, 2, **chosen).train([rows()])[-1])
    assert not torch.equal(*paths)


@pytest.mark.parametrize("options", [{"balance": False}, {"input_momentum": 0.0}, {"middle": False}, {"rate_lr": 0.0}])
def test_each_option_of_the_matching_moves_the_samples(options):
    one, two = (matcher_of(**chosen).fit([path_of()], rows())[0] for chosen in ({}, options))
    assert not torch.equal(one, two)
