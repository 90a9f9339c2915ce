"""TabMs in a stack: outputs, gradients and steps of each as torch gives them for the model alone."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from steepest.core.dropout import rectified_dropout_
from steepest.core.each_member import EachMember
from steepest.core.heads import ScalarHead, heads_of_members
from steepest.descent import (
    Descent,
    Stack,
    StackedAdamW,
    StackedBatches,
    StackedObjective,
    StackedStep,
    drop,
    stack,
)
from steepest.losses import CompSumLoss, CrossEntropyLoss, FocalLoss, SquaredErrorLoss
from steepest.nn.networks import Network
from steepest.nn.piecewise_linear import quantile_edges
from steepest.nn.tabm import TabM

ROWS, COLUMNS, CLASSES, MEMBERS, MODELS = 24, 5, 3, 2, 3


def rows(model=0):
    g = torch.Generator().manual_seed(model)
    return torch.randn(ROWS, COLUMNS, generator=g, dtype=torch.float64)


def network(model=0, p=0.0, numeric=(0, 2), outputs=CLASSES):
    torch.manual_seed(10 + model)
    edges = quantile_edges(rows(model)[:, list(numeric)], 4) if numeric else ()
    body = TabM(COLUMNS, numeric=numeric, edges=edges, members=MEMBERS, width=8, embedding=3, dropout=p)
    if numeric:
        nn.init.normal_(body.embed.bends)
    return Network(body, heads_of_members([nn.Linear(8, outputs) for _ in range(MEMBERS)])).double()


@pytest.fixture(autouse=True)
def double():
    """Bins in float64 too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("numeric", [(0, 2), (), (4, 1, 0, 2, 3)])
def test_outputs_and_gradients_are_those_of_each_alone(numeric):
    networks = [network(m, numeric=numeric) for m in range(MODELS)]
    inputs = torch.stack([rows(m) for m in range(MODELS)])
    joint = Stack(networks)
    upstream = torch.randn(MODELS, ROWS, MEMBERS, CLASSES, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        outputs = joint.outputs_by_hand(inputs)
        gradients = dict(zip(joint.views, joint.gradients_by_hand(upstream)))
        torch.testing.assert_close(joint(inputs), outputs, rtol=1e-12, atol=1e-12)
    for m, alone in enumerate(networks):
        own = alone(inputs[m])
        torch.testing.assert_close(outputs[m], own, rtol=1e-10, atol=1e-10)
        named = dict(alone.named_parameters())
        for (name, _), slope in zip(named.items(), torch.autograd.grad(own, list(named.values()), upstream[m])):
            torch.testing.assert_close(gradients[name][m], slope, rtol=1e-10, atol=1e-10, msg=name)


def test_units_are_left_out_in_training_alone_and_others_each_step():
    networks = [network(m, p=0.4) for m in range(MODELS)]
    inputs = torch.stack([rows(m) for m in range(MODELS)])
    joint = Stack(networks, seeds=[5, 6, 7])
    with torch.no_grad():
        first, second, whole = joint.outputs_by_hand(inputs), joint.outputs_by_hand(inputs), joint(inputs)
        torch.testing.assert_close(whole[1], networks[1].eval()(inputs[1]), rtol=1e-10, atol=1e-10)
        assert not torch.equal(first, second)
        body = networks[1].backbone
        h = body.embedded(inputs[1]).unsqueeze(0) * body.scale.unsqueeze(1)
        for layer, block in enumerate(body.layers):
            h = block[0](h).flatten(0, 1)
            h = rectified_dropout_(h.unsqueeze(0), [6 * 2 + layer], 1, 0.4).view(MEMBERS, ROWS, -1)
        torch.testing.assert_close(second[1], networks[1].head(h.transpose(0, 1)), rtol=1e-10, atol=1e-10)
        alone = Stack([networks[1]], seeds=[6])
        torch.testing.assert_close(alone.outputs_by_hand(inputs[1:2])[0], first[1], rtol=1e-10, atol=1e-10)


def test_gradients_know_which_units_were_left_out():
    joint = Stack([network(p=0.5)], seeds=[3])
    inputs = rows().unsqueeze(0)
    with torch.no_grad():
        before = joint.outputs_by_hand(inputs)
        gradients = dict(zip(joint.views, joint.gradients_by_hand(torch.ones_like(before))))
        for name in ("backbone.layers.0.0.bias", "backbone.scale", "backbone.embed.bends"):
            step = 1e-6 * torch.randn_like(gradients[name], memory_format=torch.contiguous_format)
            joint.views[name].add_(step)
            joint.steps = 0
            change = float((joint.outputs_by_hand(inputs) - before).sum())
            joint.views[name].sub_(step)
            assert change == pytest.approx(float((gradients[name] * step).sum()), rel=1e-3)


@pytest.mark.parametrize(
    "objectives",
    [
        [CrossEntropyLoss(), CrossEntropyLoss(), CrossEntropyLoss()],
        [FocalLoss(1.0), FocalLoss(2.0), FocalLoss(3.0)],
        [CompSumLoss(tau=1.0), CompSumLoss(tau=0.5), CompSumLoss(tau=1.0)],
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_of_a_stack_are_those_of_its_models(objectives, weighted):
    each = [EachMember(objective, MEMBERS, "multiclass") for objective in objectives]
    g = torch.Generator().manual_seed(0)
    outputs = torch.randn(MODELS, ROWS, MEMBERS, CLASSES, generator=g)
    target = torch.randint(CLASSES, (MODELS, ROWS), generator=g)
    weight = torch.rand(MODELS, ROWS, generator=g) if weighted else None
    stacked = StackedObjective(each)
    total, gradient = stacked.rows(outputs, target, weight)
    leaf = outputs.clone().requires_grad_()
    named = [{} if weight is None else {"weight": weight[m]} for m in range(MODELS)]
    alone = torch.stack([own(leaf[m], target[m], **named[m]) for m, own in enumerate(each)])
    torch.testing.assert_close(stacked.losses, alone.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total, alone.sum().detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(alone.sum(), leaf)[0], rtol=1e-12, atol=1e-12)


def trained(models, epochs, p=0.0, drops=()):
    """A training in a stack; models in ``drops`` leave after the first epoch."""
    joint = Stack([network(m, p=p) for m in models], seeds=list(models))
    data = [(rows(m), rows(m)[:, :CLASSES].argmax(1), None) for m in models]
    batches = StackedBatches(data, list(range(len(models))), list(models), batch_size=8, steps=3)
    each = StackedObjective([EachMember(CrossEntropyLoss(), MEMBERS, "multiclass") for _ in models])
    optimizer = StackedAdamW(joint, lr=[1e-2] * len(models), weight_decay=[1e-3] * len(models))
    run = Descent(joint, each, batches, method=StackedStep(by_hand=True), optimizer=optimizer)
    run.fit(1)
    if drops:
        drop(run, [m not in drops for m in models])
    run.fit(epochs)
    return run, joint


def test_numbers_are_predicted_by_heads_of_one_output():
    heads = heads_of_members([ScalarHead(8) for _ in range(MEMBERS)])
    one = Network(network().backbone, heads.double())
    joint, inputs = Stack([one]), rows().unsqueeze(0)
    upstream = torch.randn(1, ROWS, MEMBERS, generator=torch.Generator().manual_seed(5))
    target = rows().sum(1).unsqueeze(0)
    with torch.no_grad():
        outputs = joint.outputs_by_hand(inputs)
        gradients = dict(zip(joint.views, joint.gradients_by_hand(upstream)))
    own = one(inputs[0])
    torch.testing.assert_close(outputs[0], own, rtol=1e-10, atol=1e-10)
    (slope,) = torch.autograd.grad(own, heads.weight, upstream[0])
    torch.testing.assert_close(gradients["head.weight"][0], slope, rtol=1e-10, atol=1e-10)
    total, gradient = StackedObjective([EachMember(SquaredErrorLoss(), MEMBERS, "regression")]).rows(outputs, target)
    apart = outputs - target.unsqueeze(2)
    torch.testing.assert_close(total, apart.square().mean(), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(gradient, 2 * apart / apart.numel(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_a_model_trains_alone_as_among_others(p):
    _, joint = trained([0, 1, 2], 3, p)
    _, alone = trained([1], 3, p)
    for name, value in alone.member(0).items():
        torch.testing.assert_close(joint.member(1)[name], value, rtol=1e-9, atol=1e-9)


def test_models_that_leave_take_their_bins_and_seeds_along():
    _, whole = trained([0, 1, 2], 3, 0.3)
    _, left = trained([0, 1, 2], 3, 0.3, drops=(1,))
    assert len(left) == 2
    for place, model in ((0, 0), (1, 2)):
        for name, value in whole.member(model).items():
            torch.testing.assert_close(left.member(place)[name], value, rtol=1e-9, atol=1e-9)


def test_a_saved_stack_goes_on_with_the_units_that_are_next():
    run, joint = trained([0, 1], 2, 0.3)
    file = io.BytesIO()
    torch.save(run.state_dict(), file)
    run.fit(4)
    again, twin = trained([0, 1], 1, 0.3)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    again.fit(4)
    assert torch.equal(twin.flat, joint.flat)


def test_many_rows_are_seen_in_pieces(monkeypatch):
    joint, inputs = Stack([network(m) for m in range(2)]), torch.stack([rows(0), rows(1)])
    with torch.no_grad():
        whole = joint(inputs)
        monkeypatch.setattr(stack, "ROWS", 7)
        torch.testing.assert_close(joint(inputs), whole, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="training by hand"):
        joint(inputs)


def test_other_bins_are_another_architecture():
    few, many = network(0), network(0)
    many.backbone.embed = type(many.backbone.embed)(quantile_edges(rows()[:, [0, 2]], 6), 3)
    with pytest.raises(ValueError, match="models: expected one architecture"):
        Stack([few, many])
