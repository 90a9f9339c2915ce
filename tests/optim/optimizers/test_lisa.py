"""LISA: the facts of its card, AdamW over the active layers alone as the reference, resuming, and what users
reported."""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from steepest.optim.optimizers import LISA, LayerSampler
from steepest.optim.sharpness import SAM


def network(blocks=5, dtype=torch.float64):
    torch.manual_seed(1)
    layers = [nn.Linear(3, 4), *(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(blocks)), nn.Linear(4, 2)]
    return nn.Sequential(*layers).to(dtype)


def batch(number):
    generator = torch.Generator().manual_seed(100 + number)
    return (torch.randn(6, n, generator=generator, dtype=torch.float64) for n in (3, 2))


def backward(model, number):
    x, y = batch(number)
    model.zero_grad()
    nn.functional.mse_loss(model(x), y).backward()


def over(model, base=torch.optim.AdamW, *, active=2, interval=3, seed=0, **kw):
    optimizer = base(model.parameters(), lr=0.02, weight_decay=0.1)
    generator = torch.Generator().manual_seed(seed)
    ends = [model[0], model[-1]]
    return LISA(optimizer, model[1:-1], ends, active=active, interval=interval, generator=generator, **kw)


def train(model, optimizer, steps, first=0):
    drawn = []
    for number in range(first, first + steps):
        drawn.append(tuple(optimizer.active_indices))
        backward(model, number)
        optimizer.step()
    return drawn


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.holds("lisa", 1)
def test_all_active_is_adamw_and_probabilities():
    model, twin = network(), network()
    optimizer, plain = over(model, active=5), torch.optim.AdamW(twin.parameters(), lr=0.02, weight_decay=0.1)
    train(model, optimizer, 8)
    for number in range(8):
        backward(twin, number)
        plain.step()
    assert same(weights(model), weights(twin))
    assert all(optimizer.state[p]["step"] == 8 for p in model.parameters())
    assert LayerSampler(32, 2).probability == 0.0625


@pytest.mark.holds("lisa", 2)
def test_expected_updates():
    sampler = LayerSampler(8, 2)
    assert sampler.expected_updates(1000) == 250
    counts = torch.bincount(torch.tensor([number for _ in range(2000) for number in sampler.draw()]), minlength=8)
    # binomial: deviation sqrt(2000 / 4 * 3 / 4) = 19.4
    assert int(counts.sum()) == 4000
    assert bool(((counts - 500).abs() < 4 * 19.4).all())


@pytest.mark.holds("lisa", 3)
def test_so_many_blocks_train_and_the_frozen_keep_their_bits():
    model = network()
    optimizer = over(model)
    for period in range(6):
        trains = [all(p.requires_grad for p in block.parameters()) for block in model[1:-1]]
        assert [number for number, flag in enumerate(trains) if flag] == optimizer.active_indices
        assert len(optimizer.active_indices) == 2
        before = [weights(layer) for layer in model]
        train(model, optimizer, 3, 3 * period)
        active = {0, 6, *(number + 1 for number, flag in enumerate(trains) if flag)}
        assert {number for number, layer in enumerate(model) if not same(before[number], weights(layer))} == active
        frozen = [block for k, block in enumerate(model[1:-1]) if k not in optimizer.active_indices]
        assert all(p.grad is None for block in frozen for p in block.parameters())


@pytest.mark.holds("lisa", 4)
@pytest.mark.parametrize("keep", [False, True])
def test_state_of_active_and_always_on_parameters_alone(keep):
    model = network()
    optimizer = over(model, keep_state=keep)
    seen = set()
    for number in range(9):
        seen |= set(optimizer.active_indices)
        train(model, optimizer, 1, number)
        owners = seen if keep else set(optimizer.active_indices)
        allowed = {p for k in owners for p in model[k + 1].parameters()} | {
            *model[0].parameters(),
            *model[-1].parameters(),
        }
        assert set(optimizer.state) <= allowed
        if number % 3 != 2:  # after a draw the new blocks have had no step
            assert set(optimizer.state) == allowed
    sizes = sum(p.numel() for p in optimizer.state)
    assert (sizes < sum(p.numel() for p in model.parameters())) or keep


@pytest.mark.parametrize("active", [0, 1, 2, 5])
def test_bytes_of_state(active):
    """ms-swift#10140: two averages of float32 for what is active or always on, and one number for each tensor."""
    model = network(dtype=torch.float32)
    optimizer = over(model, active=active, interval=1)
    for number in range(4):
        chosen = [model[0], model[-1], *(model[k + 1] for k in optimizer.active_indices)]
        parameters = [p for layer in chosen for p in layer.parameters()]
        model.zero_grad()
        x, y = (values.float() for values in batch(number))
        nn.functional.mse_loss(model(x), y).backward()
        steps = []
        hook = optimizer.base_optimizer.register_step_post_hook(
            lambda base, *_, steps=steps: steps.extend(
                value for state in base.state.values() for value in state.values()
            )
        )
        optimizer.step()
        hook.remove()
        sizes = [value.nbytes for value in steps]
        assert sum(sizes) == sum(8 * p.numel() + 4 for p in parameters)
    if active < 5:  # what the next draw has frozen is gone
        held = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
        assert held <= sum(8 * p.numel() + 4 for p in parameters)


def test_adamw_over_the_active_layers_alone():
    """The reference: an optimizer for each layer, built anew whenever the layer is drawn after it was frozen."""
    model, twin = network(), network()
    optimizer = over(model)
    drawn = train(model, optimizer, 15)
    stepping, before = {}, set()
    for number, chosen in enumerate(drawn):
        now = {0, 6, *(k + 1 for k in chosen)}
        for k in now - before:
            stepping[k] = torch.optim.AdamW(twin[k].parameters(), lr=0.02, weight_decay=0.1)
        backward(twin, number)
        for k in now:
            stepping[k].step()
        before = now
    assert same(weights(model), weights(twin))
    assert len(set(drawn)) > 2


@pytest.mark.holds("lisa", 5)
def test_the_same_seed_draws_alike_on_every_rank():
    sequences = []
    for seed in (3, 3, 4):
        model = network()
        torch.manual_seed(len(sequences))  # other ranks draw other numbers for their data
        sequences.append(train(model, over(model, seed=seed), 30))
    assert sequences[0] == sequences[1] != sequences[2]
    default = [LayerSampler(9, 3) for _ in range(2)]
    assert [default[0].draw() for _ in range(5)] == [default[1].draw() for _ in range(5)]
    for twin in (copy.deepcopy(default[0]), pickle.loads(pickle.dumps(default[0]))):
        assert twin.draw() == default[1].draw()
        default[1].generator.set_state(default[0].generator.get_state())


@pytest.mark.holds("lisa", 6)
def test_how_many_may_be_active():
    for active in (6, -1):
        with pytest.raises(ValueError, match="active: expected an integer >= 0 and <= 5"):
            over(network(), active=active)
    model = network()
    optimizer = over(model, active=0)
    before = [weights(layer) for layer in model]
    train(model, optimizer, 4)
    assert [number for number, layer in enumerate(model) if not same(before[number], weights(layer))] == [0, 6]


def test_it_resumes_beneath_another_wrapper():
    """Both draw on and count on; state of LISA alone is taken too."""

    def sam(model, **kw):
        return SAM(over(model, **kw), rho=0.1)

    def trained(model, optimizer, numbers):
        for number in numbers:
            optimizer.step(partial(backward, model, number))

    whole = network()
    trained(whole, sam(whole), range(10))
    model = network()
    optimizer = sam(model)
    trained(model, optimizer, range(4))
    state = copy.deepcopy(optimizer.state_dict())
    resumed = network()
    resumed.load_state_dict(model.state_dict())
    fresh = sam(resumed, seed=77)
    fresh.load_state_dict(state)
    assert fresh.base_optimizer.steps == 4
    trained(resumed, fresh, range(4, 10))
    assert same(weights(whole), weights(resumed))
    alone = sam(network(), seed=78)
    alone.load_state_dict(copy.deepcopy(optimizer.base_optimizer.state_dict()))
    assert alone.base_optimizer.active_indices == optimizer.base_optimizer.active_indices


@pytest.mark.parametrize("steps", [2, 4])
def test_it_resumes_with_the_same_bits(steps):
    whole = network()
    train(whole, over(whole), 10)
    model = network()
    optimizer = over(model)
    train(model, optimizer, steps)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = network()
    fresh = over(resumed, seed=77)
    resumed.load_state_dict(state["model"])
    fresh.load_state_dict(state["optimizer"])
    assert fresh.active_indices == optimizer.active_indices
    train(resumed, fresh, 10 - steps, steps)
    assert same(weights(whole), weights(resumed))


def test_blocks_that_were_frozen_before_train_when_they_are_drawn():
    """ms-swift#10140, LMFlow#726: three blocks, one active, interval 1, all frozen before the optimizer is built."""
    model = network(3)
    for p in model[1:-1].parameters():
        p.requires_grad_(False)
    before = [weights(layer) for layer in model]
    optimizer = over(model, active=1, interval=1)
    drawn = train(model, optimizer, 20)
    assert {number for chosen in drawn for number in chosen} == {0, 1, 2}
    assert not any(same(before[k], weights(layer)) for k, layer in enumerate(model))
    now = [model[0], model[-1], model[optimizer.active_indices[0] + 1]]
    assert set(optimizer.state) <= {p for layer in now for p in layer.parameters()}


def test_what_is_always_on_trains_though_the_whole_model_was_frozen():
    model = network()
    model.requires_grad_(False)
    before = [weights(layer) for layer in model]
    optimizer = over(model)
    train(model, optimizer, 1)
    moved = {number for number, layer in enumerate(model) if not same(before[number], weights(layer))}
    assert moved == {0, 6, *(number + 1 for number in optimizer.active_indices)}


def test_what_is_always_on_is_never_frozen_where_a_block_shares_it():
    model = network()
    model[2][0].weight = model[3][0].weight
    optimizer = LISA(
        torch.optim.SGD(model.parameters(), lr=0.1), model[1:-1], [model[0], model[-1], [model[2][0].weight]], active=0
    )
    assert model[2][0].weight.requires_grad
    assert not model[2][0].bias.requires_grad
    assert optimizer.active_indices == []


def test_one_module_or_parameter_that_is_always_on():
    model = network()
    for always in (model[1], model[1][0].weight):
        LISA(torch.optim.SGD(model.parameters(), lr=0.1), model[1:-1], always, active=0)
        assert model[1][0].weight.requires_grad
        assert not model[2][0].weight.requires_grad


def test_of_the_state_of_adamw_alone_frozen_blocks_take_none():
    model = network()
    plain = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    backward(model, 0)
    plain.step()
    for keep in (False, True):
        optimizer = over(model, keep_state=keep)
        optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))
        trains = [p for p in model.parameters() if p.requires_grad]
        assert set(optimizer.state) == set(model.parameters() if keep else trains)
        assert all(optimizer.state[p]["step"] == 1 for p in trains)


def test_a_skipped_step_does_not_count():
    model = network()
    optimizer = over(model, interval=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    chosen = list(optimizer.active_indices)
    x, y = batch(0)
    scaler.scale(nn.functional.mse_loss(model(x), y) * torch.inf).backward()
    scaler.step(optimizer)
    assert (optimizer.steps, optimizer.active_indices) == (0, chosen)


def test_what_it_refuses():
    model = network()
    adamw = torch.optim.AdamW(model[1:].parameters())
    with pytest.raises(ValueError, match="blocks: expected parameters of the optimizer alone"):
        LISA(adamw, model[:-1])
    with pytest.raises(ValueError, match="always: expected parameters of the optimizer alone, got '2 others'"):
        LISA(adamw, model[1:-1], [model[0], model[-1]])
    with pytest.raises(ValueError, match="interval: expected an integer >= 1"):
        LISA(adamw, model[1:-1], interval=0)
    with pytest.raises(TypeError, match="keep_state: expected True or False"):
        LISA(adamw, model[1:-1], keep_state=2)
    with pytest.raises(TypeError, match="always: expected modules or parameters"):
        LISA(adamw, model[1:-1], [["head"]])
    for blocks in (model[0], model[0].weight):
        with pytest.raises(TypeError, match="blocks: expected modules, or parameters of each block"):
            LISA(adamw, blocks)
    with pytest.raises(TypeError, match="optimizer: expected an optimizer"):
        LISA(model, model[1:-1])
    optimizer = LISA(adamw, model[1:-1], active=2)
    for numbers in ([7, 8], [-1, 2], [2, 2], [0, 1, 2]):
        with pytest.raises(ValueError, match="state: expected 2 of 5 blocks"):
            optimizer.load_own_state({"steps": 1, "active": numbers, "generator": torch.get_rng_state()})
