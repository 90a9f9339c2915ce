"""The textbook's descent methods, whose rates are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...core.arrays import numbers
from ...core.checks import check_number, refuse

Slope = Callable[[np.ndarray], np.ndarray]


def proximal_gradient(
    gradient: Slope, start: np.ndarray, smoothness: float, steps: int, *, l1: float = 0.0
) -> np.ndarray:
    r"""Minimise a smooth convex f plus l1 times the sum of magnitudes, by steps of 1 / L and the soft threshold.

        x <- S(x - grad f(x) / L, l1 / L),  S(v, t) = sign(v) max(|v| - t, 0)

    Args:
        gradient: of f, ``x -> [d]``.
        start: x_0, [d], finite.
        smoothness: L > 0, a Lipschitz constant of the gradient.
        steps: T >= 0.
        l1: >= 0; 0 is gradient descent.

    Returns:
        The path x_0, ..., x_T, [T + 1, d]. With F the sum that is minimised and x* where it is least,
        F(x_t) - F(x*) <= L ||x_0 - x*||^2 / (2 t); where f is mu-strongly convex the distance to x* shrinks by
        1 - mu / L a step without l1.

    Raises:
        ValueError: an argument out of range, a gradient of another shape or not finite.

    >>> proximal_gradient(lambda x: 2 * (x - 3), [0.0], smoothness=4.0, steps=2).tolist()
    [[0.0], [1.5], [2.25]]

    Source: Beck and Teboulle 2009; arXiv:2409.02668.
    """
    x = numbers("start", start)
    check_number("smoothness", smoothness, low=0.0, open_low=True)
    check_number("steps", steps, low=0, integer=True)
    check_number("l1", l1, low=0.0)
    path = [x]
    for _ in range(steps):
        moved = x - numbers("gradient", gradient(x), x.shape) / smoothness
        x = np.sign(moved) * np.maximum(np.abs(moved) - l1 / smoothness, 0.0)
        path.append(x)
    return np.stack(path)


def gradient_descent(gradient: Slope, start: np.ndarray, smoothness: float, steps: int) -> np.ndarray:
    """Gradient descent by steps of 1 / L: :func:`proximal_gradient` without a penalty.

    >>> gradient_descent(lambda x: 2 * (x - 3), [0.0], smoothness=2.0, steps=1).tolist()
    [[0.0], [3.0]]
    """
    return proximal_gradient(gradient, start, smoothness, steps)


def gaussian_mixture(
    X: np.ndarray, components: int, *, steps: int = 100, seed: int = 0, floor: float = 1e-6
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A mixture of Gaussians by EM; the log-likelihood never falls.

    Args:
        X: [N, d], finite, N at least ``components``.
        components: K >= 1; the means start at K different rows, the covariances at that of all rows.
        steps: of EM, >= 1.
        seed: of the rows, >= 0.
        floor: > 0; a component whose covariance has an eigenvalue below this share of the mean variance of all rows
            stops moving, before its likelihood has no bound.

    Returns:
        Weights [K], means [K, d], covariances [K, d, d], and the summed log-likelihood before each step and after the
        last, [steps + 1].

    Raises:
        ValueError: an argument out of range, rows without spread.

    >>> X = np.array([[-1.0], [-2.0], [1.0], [2.0]])
    >>> weights, means, covariances, likelihood = gaussian_mixture(X, 2)
    >>> means.round(2).ravel().tolist(), bool((np.diff(likelihood) >= -1e-12).all())
    ([-1.5, 1.5], True)

    Source: Dempster, Laird and Rubin 1977; arXiv:2409.02668.
    """
    X = numbers("X", X, (None, None))
    check_number("components", components, low=1, high=len(X), integer=True)
    check_number("steps", steps, low=1, integer=True)
    check_number("floor", floor, low=0.0, open_low=True)
    check_number("seed", seed, low=0, integer=True)
    whole = np.atleast_2d(np.cov(X.T, bias=True))
    least = floor * np.trace(whole) / len(whole)
    if not np.linalg.eigvalsh(whole)[0] > least:
        refuse("X", "rows with spread in every direction", X)
    weights = np.full(components, 1 / components)
    means = X[np.random.default_rng(seed).choice(len(X), components, replace=False)]
    covariances = np.stack([whole] * components)
    likelihoods = []
    for step in range(steps + 1):
        joint = np.log(weights) + np.stack([_log_density(X, *component) for component in zip(means, covariances)], 1)
        evidence = np.logaddexp.reduce(joint, 1)
        likelihoods.append(float(evidence.sum()))
        if step == steps:
            break
        shares = np.exp(joint - evidence[:, None])
        mass = shares.sum(0)
        weights = mass / len(X)
        for k in range(components):
            mean = shares[:, k] @ X / mass[k]
            away = X - mean
            covariance = (shares[:, k, None] * away).T @ away / mass[k]
            if np.linalg.eigvalsh(covariance)[0] > least:
                means[k], covariances[k] = mean, covariance
    return weights, means, covariances, np.array(likelihoods)


def _log_density(X: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    factor = np.linalg.cholesky(covariance)
    white = np.linalg.solve(factor, (X - mean).T)
    log_density: np.ndarray = (
        -0.5 * (white**2).sum(0) - np.log(factor.diagonal()).sum() - 0.5 * len(mean) * np.log(2 * np.pi)
    )
    return log_density
