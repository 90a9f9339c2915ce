"""Decentralised SGD: the numbers of the card, sums over neighbours in NumPy, fixed points in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steepest.optim.distributed import DSGD, consensus_error, decentralized_sgd_step, graph_laplacian

COMPLETE = graph_laplacian(1 - torch.eye(3))
CENTRES = torch.tensor([[1.0], [1.0], [4.0]], dtype=torch.float64)
START = torch.tensor([[0.0], [3.0], [6.0]], dtype=torch.float64)


def ring(n):
    eye = torch.eye(n)
    return graph_laplacian(((eye.roll(1, 0) + eye.roll(-1, 0)) > 0).double())


def squares(x):
    return 0.5 * (x - CENTRES).square().sum(-1)


@pytest.mark.holds("d-sgd", 1)
@pytest.mark.parametrize("batch", [(), (3,)])
def test_mixing_conserves_the_mean(batch):
    generator = torch.Generator().manual_seed(0)
    x, grads = (torch.randn(*batch, 6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    after = decentralized_sgd_step(x, grads, ring(6), 0.3, 0.4)
    torch.testing.assert_close(after.mean(-2), x.mean(-2) - 0.3 * grads.mean(-2))
    assert not torch.allclose(after, x - 0.3 * grads)


@pytest.mark.holds("d-sgd", 2)
def test_a_step_on_the_complete_graph():
    after = decentralized_sgd_step(START, START - CENTRES, COMPLETE, 0.1, 0.2)
    torch.testing.assert_close(after.flatten(), torch.tensor([1.9, 2.8, 4.0], dtype=torch.float64))
    assert after.mean().item() == pytest.approx(2.9)
    agents = DSGD(squares, START, COMPLETE, a=0.1, b=0.2)
    torch.testing.assert_close(agents.step(), after)


def test_sums_over_neighbours_in_numpy():
    """Weighted edges, decaying weights, both terms from the same x."""
    rng = np.random.default_rng(0)
    n, d = 5, 3
    weights = np.triu(rng.uniform(0.2, 1.0, (n, n)), 1)
    weights += weights.T
    centres = rng.normal(size=(n, d))
    x = rng.normal(size=(n, d))
    agents = DSGD(
        [lambda x, c=c: 0.25 * (x - torch.tensor(c)).pow(4).sum(-1) for c in centres],
        torch.tensor(x), graph_laplacian(torch.tensor(weights)), a=0.2, b=0.3, ta=0.9, tb=0.2,
    )  # fmt: skip
    for k in range(6):
        alpha, beta, before = 0.2 / (k + 1) ** 0.9, 0.3 / (k + 1) ** 0.2, x.copy()
        for i in range(n):
            for j in range(n):
                x[i] -= beta * weights[i, j] * (before[i] - before[j])
            x[i] -= alpha * (before[i] - centres[i]) ** 3
    np.testing.assert_allclose(agents.run(6).numpy(), x, rtol=1e-12)
    assert agents.k == 6
    wanted = np.sqrt(np.mean(np.sum((x - x.mean(0)) ** 2, 1)))
    assert consensus_error(agents.x).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.holds("d-sgd", 3)
def test_constant_weights_leave_a_bias():
    agents = DSGD(squares, START, COMPLETE, a=0.1, b=0.2, ta=0.0, tb=0.0)
    end = agents.run(400)
    fixed = torch.linalg.solve(0.1 * torch.eye(3, dtype=torch.float64) + 0.2 * COMPLETE, 0.1 * CENTRES)
    torch.testing.assert_close(end, fixed)
    wanted = torch.tensor([1.857143, 1.857143, 2.285714], dtype=torch.float64)
    torch.testing.assert_close(end.flatten(), wanted, rtol=0.0, atol=1e-6)


def test_decaying_weights_leave_none():
    agents = DSGD(squares, START, COMPLETE, b=0.3, tb=0.2)
    end = agents.run(1500)
    torch.testing.assert_close(end, torch.full_like(end, 2.0), rtol=0.0, atol=0.01)
    torch.testing.assert_close(agents.mean, torch.tensor([2.0], dtype=torch.float64))


@pytest.mark.holds("d-sgd", 4)
def test_one_agent_does_sgd():
    w = torch.nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    alone = DSGD(lambda x: x.pow(4).sum(-1), w.detach()[None], torch.zeros(1, 1), a=0.02, ta=0.0, tb=0.0)
    sgd = torch.optim.SGD([w], lr=0.02)
    for _ in range(5):
        sgd.zero_grad()
        w.pow(4).sum().backward()
        sgd.step()
    torch.testing.assert_close(alone.run(5)[0], w.detach())


@pytest.mark.holds("d-sgd", 4)
def test_a_disconnected_graph_is_refused():
    pairs = torch.zeros(4, 4)
    pairs[0, 1] = pairs[1, 0] = pairs[2, 3] = pairs[3, 2] = 1.0
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="laplacian: expected one of a connected graph"):
        decentralized_sgd_step(x, x, graph_laplacian(pairs), 0.1, 0.1)
    with pytest.raises(ValueError, match="laplacian: expected one of a connected graph"):
        DSGD(lambda x: x.sum(-1), x, graph_laplacian(pairs))


@pytest.mark.holds("d-sgd", 5)
def test_a_weight_of_mixing_that_drives_agents_apart_is_refused():
    decentralized_sgd_step(START, START, COMPLETE, 0.1, 0.66)
    with pytest.raises(ValueError, match=r"beta: expected a number >= 0 and < 0\.666667"):
        decentralized_sgd_step(START, START, COMPLETE, 0.1, 0.67)
    with pytest.raises(ValueError, match=r"b: expected a number >= 0 and < 0\.666667"):
        DSGD(squares, START, COMPLETE, b=0.7)
    assert DSGD(squares, START, COMPLETE).b == pytest.approx(1 / 3)


def test_a_long_line_of_agents_is_connected():
    """Its second eigenvalue is 6e-5: in float32 that of some graphs in two pieces is no smaller."""
    line = torch.diag(torch.ones(399), 1)
    x = torch.zeros(400, 1)
    decentralized_sgd_step(x, x, graph_laplacian(line + line.T).float(), 0.1, 0.1)
    line[200, 201] = 0.0
    with pytest.raises(ValueError, match=r"connected graph of 400 agents \(agent 0 reaches 201\)"):
        decentralized_sgd_step(x, x, graph_laplacian(line + line.T).float(), 0.1, 0.1)


def test_steps_of_many_runs_under_vmap():
    x = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = torch.func.vmap(lambda x: decentralized_sgd_step(x, x**3, COMPLETE, 0.1, 0.2))
    torch.testing.assert_close(step(x), decentralized_sgd_step(x, x**3, COMPLETE, 0.1, 0.2))


def test_a_step_where_there_are_no_values_to_look_at():
    x, laplacian = torch.zeros(3, 2, device="meta"), COMPLETE.to("meta")
    assert decentralized_sgd_step(x, x, laplacian, 0.1, 5.0).shape == (3, 2)
    with pytest.raises(ValueError, match="beta: expected a number >= 0"):
        decentralized_sgd_step(x, x, laplacian, 0.1, -0.1)


def test_noise_moves_agents_from_a_saddle():
    """The same bits from the same seed; without noise they stay for ever."""

    def saddle(x):
        u, v = x.unbind(-1)
        return 0.5 * (u * u - v * v) + 0.25 * v**4

    def end(noise, seed):
        generator = torch.Generator().manual_seed(seed)
        start = torch.zeros(20, 4, 2, dtype=torch.float64)
        return DSGD(saddle, start, ring(4), noise=noise, generator=generator).run(300)

    assert (end(0.0, 0) == 0).all()
    noisy = end(0.1, 0)
    assert torch.equal(noisy, end(0.1, 0))
    assert (noisy.mean(-2)[:, 1].abs() > 0.8).float().mean() > 0.9


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e15, 1e30])
def test_consensus_error_of_small_and_large_numbers(scale):
    x = scale * torch.tensor([[0.0, 0.0], [6.0, 8.0]])
    assert float(consensus_error(x)) == pytest.approx(5 * scale, rel=1e-6, abs=0.0)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_consensus_error_of_half_numbers_is_float32(kind):
    error = consensus_error(torch.tensor([[0.0, 0.0], [1536.0, 2048.0]], dtype=kind))
    assert (error.dtype, float(error)) == (torch.float32, 1280.0)


def test_consensus_error_has_a_gradient_in_consensus():
    x = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(consensus_error(x), x)
    assert (slope == 0).all()
    apart = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(consensus_error, apart)


def test_gradients_by_formula_keep_no_graph_and_have_the_shape_of_x():
    weight = torch.ones(3, 1, dtype=torch.float64, requires_grad=True)
    agents = DSGD(squares, START, COMPLETE, gradients=lambda x: weight * (x - CENTRES))
    assert not agents.run(2).requires_grad
    torch.testing.assert_close(agents.x, DSGD(squares, START, COMPLETE).run(2))
    for wrong in (torch.ones(1), torch.ones(1, 1), torch.ones(2, 3, 1)):
        with pytest.raises(ValueError, match=r"gradients: expected shape \(3, 1\)"):
            DSGD(squares, START, COMPLETE, gradients=lambda x, wrong=wrong: wrong).step()
    with pytest.raises(TypeError, match="gradients: expected a tensor"):
        DSGD(squares, START, COMPLETE, gradients=lambda x: x.numpy()).step()


def test_what_it_refuses():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="grads: expected shape"):
        decentralized_sgd_step(x, x[:2], COMPLETE, 0.1, 0.1)
    with pytest.raises(ValueError, match="alpha: expected a number >= 0"):
        decentralized_sgd_step(x, x, COMPLETE, -0.1, 0.1)
    with pytest.raises(ValueError, match="laplacian: expected shape"):
        decentralized_sgd_step(x, x, ring(4), 0.1, 0.1)
    for wrong in (torch.eye(3), -COMPLETE, torch.triu(COMPLETE), torch.eye(3) - torch.eye(3).roll(1, 0)):
        with pytest.raises(ValueError, match="laplacian: expected a symmetric matrix"):
            decentralized_sgd_step(x, x, wrong, 0.1, 0.1)
    with pytest.raises(ValueError, match="adjacency: expected a symmetric matrix"):
        graph_laplacian(torch.eye(3))
    for wrong in (torch.inf, torch.nan, -1.0):
        with pytest.raises(ValueError, match="adjacency: expected a symmetric matrix of finite weights"):
            graph_laplacian(wrong * (1 - torch.eye(2)).where(torch.eye(2) == 0, torch.zeros(())).nan_to_num(0.0))
    with pytest.raises(ValueError, match="losses: expected one for each of 3 agents"):
        DSGD([torch.sum], x, COMPLETE)
    with pytest.raises(TypeError, match="losses: expected functions"):
        DSGD([torch.sum, torch.sum, 1.0], x, COMPLETE)
    with pytest.raises(TypeError, match="start: expected a floating tensor"):
        DSGD(squares, x.long(), COMPLETE)
    for numbers in ({"ta": 0.5}, {"tb": 1.0}, {"noise": -1.0}, {"a": -1.0}):
        with pytest.raises(ValueError, match="expected a number"):
            DSGD(squares, START, COMPLETE, **numbers)
    with pytest.raises(ValueError, match=r"losses: expected a value for each row, of shape \(3,\)"):
        DSGD(lambda x: x.sum(), x, COMPLETE).step()
    with pytest.raises(ValueError, match="start: expected"):
        DSGD(squares, x[0], COMPLETE)
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        consensus_error(torch.zeros(3))
