"""Improvable gap balancing beside loops, closed forms and torch's own layers, Adam and distributions."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from steepest.gradients import IGBv1, IGBv2, ImprovableGapBalancing, PCGrad, backward
from steepest.gradients.balancing._soft_actor_critic import SoftActorCritic, network

BOTH = [lambda: IGBv1(2, 1), lambda: IGBv2(2, 1, start_epoch=3, update_every=1, batch_size=8, hidden=4, seed=0)]


@pytest.mark.holds("igb", 1)
def test_weights_and_value():
    balancer = IGBv1(2)
    balancer.set_base(torch.ones(2))
    total = balancer(torch.tensor([0.5, 2.0], dtype=torch.float64))
    assert total.item() == pytest.approx(0.880503, abs=1e-6)
    torch.testing.assert_close(balancer.weights, torch.tensor([0.364851, 1.635149]), atol=1e-6, rtol=0.0)
    wanted = [2 * math.exp(own) / (math.exp(0.5) + math.exp(2.0)) for own in (0.5, 2.0)]
    assert total.item() == pytest.approx(sum(w * math.log(own) for w, own in zip(wanted, (0.5, 2.0))), rel=1e-12)
    assert ImprovableGapBalancing is IGBv1


@pytest.mark.holds("igb", 2)
@pytest.mark.parametrize("make", BOTH)
def test_weights_are_positive_and_sum_to_m(make):
    balancer = make()
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        balancer(0.1 + torch.rand(2, generator=generator))
        assert (balancer.weights > 0).all()
        assert balancer.weights.sum().item() == pytest.approx(2.0)
    equal = IGBv1(3)
    equal.set_base(torch.tensor([1.0, 10.0, 0.01]))
    equal(torch.tensor([0.4, 4.0, 0.004]))
    torch.testing.assert_close(equal.weights, torch.ones(3))


@pytest.mark.holds("igb", 3)
def test_the_scale_of_a_task_changes_nothing():
    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    outcomes = []
    for scale in (torch.ones(2), torch.tensor([1e-6, 1e4])):
        balancer = IGBv1(2)
        balancer.set_base(scale * torch.tensor([2.0, 0.5]))
        losses = scale * torch.stack([w.square().sum(), (w[0] - 3).square()])
        (gradient,) = torch.autograd.grad(balancer(losses), w)
        outcomes.append((balancer.weights, gradient))
    for one, two in zip(*outcomes):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=0.0)  # the base is float32


@pytest.mark.holds("igb", 4)
def test_before_the_base_it_is_the_sum_of_logs_and_the_base_is_the_mean_of_the_second_epoch():
    balancer = IGBv1(2, steps_per_epoch=2)
    calls = [torch.tensor([float(number), 10.0 / number]) for number in range(1, 6)]
    for losses in calls[:4]:
        assert balancer(losses).item() == pytest.approx(losses.log().sum().item(), rel=1e-6)
    torch.testing.assert_close(balancer.base, (calls[2] + calls[3]) / 2)
    balancer.eval()
    before = copy.deepcopy(balancer.state_dict())
    balancer(calls[0])
    assert all(torch.equal(balancer.state_dict()[name], value) for name, value in before.items())
    balancer.train()
    wanted = 2 * torch.softmax(2 * calls[4] / (calls[2] + calls[3]), 0)
    torch.testing.assert_close(balancer.weighted_losses(calls[4]), wanted * calls[4].log())
    torch.testing.assert_close(balancer.weights, wanted)


@pytest.mark.holds("igb", 5)
@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("loss", [0.0, -1.0])
def test_a_loss_that_is_not_positive_is_refused(make, loss):
    with pytest.raises(ValueError, match="losses: expected losses > 0"):
        make()(torch.tensor([1.0, loss]))
    with pytest.raises(ValueError, match="losses: expected losses > 0"):
        make().set_base(torch.tensor([1.0, loss]))


@pytest.mark.holds("igb", 6)
@pytest.mark.parametrize("make", BOTH)
def test_weights_carry_no_gradient(make):
    """The gradient is lambda / l."""
    balancer = make()
    for number in range(8):
        losses = torch.tensor([0.5 + number, 2.0], requires_grad=True)
        balancer(losses).backward()
        torch.testing.assert_close(losses.grad, balancer.weights / losses.detach())
    assert not list(balancer.parameters())


def test_terms_go_through_an_aggregator():
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    balancer = IGBv1(2)
    balancer.set_base(torch.tensor([3.0, 1.0]))
    losses = torch.stack([w.square().sum(), (w[0] - 3).square()])
    backward(balancer.weighted_losses(losses), [w], aggregator=PCGrad())
    ratio = torch.tensor([5.0 / 3.0, 4.0])
    weights = 2 * ratio.softmax(0)
    rows = weights.unsqueeze(1) * torch.tensor([[2.0 / 5.0, -4.0 / 5.0], [-1.0, 0.0]])
    torch.testing.assert_close(w.grad, PCGrad()(rows))


def test_transitions_that_the_agent_remembers():
    """Losses and weights of the step before, the worst task's progress, the losses now."""
    balancer = IGBv2(2, steps_per_epoch=1, start_epoch=50, update_after=50, buffer_size=3, seed=0)
    balancer.set_base(torch.tensor([1.0, 10.0]))
    balancer.reward_scale = 2.0
    balancer(torch.tensor([0.5, 8.0]))
    weights = balancer.weights.clone()
    balancer(torch.tensor([0.4, 6.0]))
    wanted = torch.tensor([0.5, 8.0, *weights, 2.0 * min(0.1 / 1.0, 2.0 / 10.0), 0.4, 6.0])
    torch.testing.assert_close(balancer.memory[1], wanted)


def test_when_the_agent_learns_and_acts():
    balancer = IGBv2(2, 10, hidden=4, batch_size=4, buffer_size=1000, update_every=5, seed=0)
    balancer.set_base(torch.ones(2))
    generator = torch.Generator().manual_seed(0)
    updates = []
    for _ in range(52):
        balancer(0.1 + torch.rand(2, generator=generator))
        updates.append(balancer.agent.updates)
    assert updates[29] == 0
    assert updates[30] == int(5 * (1 + 31 / 1000) / 2)
    assert updates[34:36] == [2, 4]


def layers(flat, sizes):
    """The same network of torch's layers."""
    modules, position = [], 0
    for width, out in pairwise(sizes):
        layer = nn.Linear(width, out)
        with torch.no_grad():
            layer.weight.copy_(flat[position : position + width * out].view(width, out).T)
            layer.bias.copy_(flat[position + width * out : position + width * out + out])
        position += width * out + out
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def test_an_update_is_that_of_torchs_layers_and_adam():
    from steepest.core.random import RandomStream

    agent = SoftActorCritic(2, 5, 1e-2, RandomStream(3))
    generator = torch.Generator().manual_seed(4)
    for _ in range(3):
        state, after = torch.rand(2, 6, 2, generator=generator)
        action, reward = torch.rand(6, 2, generator=generator), torch.rand(6, generator=generator)
        draws = copy.deepcopy(agent.draws[0])
        if agent.updates == 0:
            actor = layers(agent.actor[0], agent.of_actor)
            critics = [layers(flat, agent.of_critics) for flat in agent.critics]
            targets = [layers(flat, agent.of_critics) for flat in agent.targets]
            log_entropy = nn.Parameter(torch.tensor(math.log(0.2)))
            adams = [
                torch.optim.Adam(own, lr=1e-2)
                for own in ([p for c in critics for p in c.parameters()], actor.parameters(), [log_entropy])
            ]
            torch.testing.assert_close(network(agent.actor, agent.of_actor, state)[0], actor(state))

        def drawn(state, actor=actor, draws=draws):
            mean, log_deviation = actor(state).chunk(2, 1)
            normal = torch.distributions.Normal(mean, log_deviation.clamp(-20, 2).exp())
            u = mean + normal.stddev * draws.normal(6, 2)
            return 2 * u.softmax(1), normal.log_prob(u).sum(1)

        def value(critics, state, action):
            return torch.stack([critic(torch.cat([state, action], 1)).squeeze(1) for critic in critics])

        entropy = log_entropy.exp().detach()
        with torch.no_grad():
            then, log_density = drawn(after)
            wanted = reward + 0.99 * (value(targets, after, then).min(0).values - entropy * log_density)
        losses = [nn.functional.mse_loss(own, wanted) for own in value(critics, state, action)]
        adams[0].zero_grad()
        sum(losses).backward()
        adams[0].step()
        own, log_density = drawn(state)
        adams[1].zero_grad()
        (entropy * log_density - value(critics, state, own).min(0).values).mean().backward()
        adams[1].step()
        adams[2].zero_grad()
        (-log_entropy * (log_density.detach() - 2).mean()).backward()
        adams[2].step()
        with torch.no_grad():
            for critic, target in zip(critics, targets):
                for p, q in zip(critic.parameters(), target.parameters()):
                    q.copy_(0.005 * p + 0.995 * q)
        agent.update(state, action, reward, after)
        torch.testing.assert_close(agent.log_entropy, log_entropy.detach())
        for name, adam in zip(("critics", "actor", "log_entropy"), adams):
            moments = torch.cat([state["exp_avg"].flatten() for state in adam.state.values()])
            torch.testing.assert_close(getattr(agent, f"{name}_mean").norm(), moments.norm(), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(network(agent.actor, agent.of_actor, state)[0], actor(state), rtol=1e-4, atol=1e-5)
        for flat, modules in ((agent.critics, critics), (agent.targets, targets)):
            both = torch.cat([state, action], 1)
            for place, module in enumerate(modules):
                torch.testing.assert_close(
                    network(flat, agent.of_critics, both)[place], module(both), rtol=1e-4, atol=1e-5
                )
