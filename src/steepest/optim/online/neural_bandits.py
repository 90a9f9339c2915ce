"""Contextual bandits by online neural regression: predicted losses, and actions drawn by inverse gap weighting."""

from __future__ import annotations

import torch
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ...core.arguments import Arguments
from ...core.checks import check_choice, check_flag, check_interval, check_number, check_tensor, refuse
from ...core.reductions import widen

LOSSES = ("square", "kl")


def inverse_gap_weighting(
    pred: F[Tensor, "*batch actions"], gamma: float, fast: bool = False
) -> F[Tensor, "*batch actions"]:
    r"""Probabilities of actions from their predicted losses: the best action b, and the others by their gap to it.

    .. math::
        p_a = \frac1{K + \gamma (\hat y_a - \hat y_b)} \quad\text{or, fast,}\quad
        p_a = \frac{\hat y_b}{K \hat y_b + \gamma (\hat y_a - \hat y_b)}, \qquad p_b = 1 - \sum_{a \ne b} p_a

    Of equal predictions the first is b. The fast form explores in proportion to the best predicted loss; where that is
    0, all mass lies on b, whatever the others are. Shares are computed in float64, as b's is a difference.

    Args:
        pred: predicted losses of K actions; >= 0 for the fast form.
        gamma: how sharply gaps are punished, >= 0, finite; of order :math:`\sqrt{KT}` for T rounds. 0 is uniform.
        fast: the form of FastCB instead of SquareCB's.

    Returns:
        probabilities, in float32 or wider.

    Raises:
        ValueError: no actions, gamma below 0 or infinite, a negative prediction in the fast form.

    Example:
        >>> inverse_gap_weighting(torch.tensor([0.2, 0.5, 0.9]), gamma=20.0)
        tensor([0.8301, 0.1111, 0.0588])

    Source: Contextual Bandits with Online Neural Regression, arXiv:2312.07145.
    """
    check_tensor("pred", pred, ndim=(1, 2), floating=True)
    check_number("gamma", gamma, low=0.0, open_high=True)
    check_flag("fast", fast)
    actions = pred.shape[-1]
    if not actions:
        refuse("pred", "at least 1 action", pred)
    if fast:
        check_interval("pred", pred, low=0.0, what="predicted losses")
    wide = pred.double()
    least, best = wide.min(-1, keepdim=True)
    gaps = gamma * (wide - least)
    if fast:
        # 0 / 1 where the best prediction is 0
        shares = least / torch.where(least == 0, torch.ones_like(gaps), actions * least + gaps)
    else:
        shares = 1 / (actions + gaps)
    shares = shares.scatter(-1, best, 0.0)
    return shares.scatter(-1, best, 1 - shares.sum(-1, keepdim=True)).to(widen(pred))


class PerturbedNetwork(Arguments, nn.Module):
    r"""A network whose output is shifted by random signs times how far its weights have moved.

    .. math::
        \tilde f(\theta; x, \varepsilon) = f(\theta; x) + \frac{c_p}{m^{1/4}} \sum_j (\theta - \theta_0)_j
        \varepsilon_j, \qquad \varepsilon_j = \pm 1

    Over the signs the mean of the squared loss is that of f plus :math:`c_p^2 \|\theta - \theta_0\|^2 / (2 \sqrt m)`:
    quadratic growth with one minimum. The S draws of signs are made once, from the seed; they are a buffer of S times
    the number of weights, as :math:`\theta_0` is one.

    Args:
        net: gives one output a row, ``[N]`` or ``[N, 1]``; it is trained in place.
        c_p: scale of the perturbation, >= 0.
        num_draws: S, at least 1.
        seed: of the signs.
        width: m; by default the most rows that a matrix of weights has.

    Raises:
        ValueError: numbers outside their range, a net without weights or with several outputs.

    Shape:
        contexts ``[N, ...]`` to outputs ``[S, N]``.

    Example:
        >>> net = PerturbedNetwork(nn.Linear(3, 1), num_draws=4)
        >>> net(torch.ones(2, 3)).shape
        torch.Size([4, 2])

    Source: Contextual Bandits with Online Neural Regression, arXiv:2312.07145.
    """

    start: Tensor
    signs: Tensor

    def __init__(
        self, net: nn.Module, c_p: float = 0.1, num_draws: int = 8, seed: int = 0, width: int | None = None
    ) -> None:
        super().__init__()
        check_number("c_p", c_p, low=0.0)
        check_number("num_draws", num_draws, low=1, integer=True)
        check_number("seed", seed, low=0, integer=True)
        weights = [p for p in net.parameters() if p.requires_grad]
        if not weights:
            refuse("net", "a module with weights to train", net)
        m = max([p.shape[0] for p in weights if p.ndim > 1], default=1) if width is None else width
        check_number("width", m, low=1, integer=True)
        self.net, self.c_p, self.scale = net, c_p, c_p / m**0.25
        start = torch.cat([p.detach().flatten() for p in weights])
        drawn = torch.randint(2, (num_draws, len(start)), generator=torch.Generator().manual_seed(seed))
        self.register_buffer("start", start)
        self.register_buffer("signs", (2 * drawn - 1).to(start))

    @property
    def weights(self) -> list[nn.Parameter]:
        """What is trained."""
        return [p for p in self.net.parameters() if p.requires_grad]

    def displacement(self) -> Tensor:
        """The weights less those of the start, one vector."""
        return torch.cat([p.flatten() for p in self.weights]) - self.start

    def forward(self, contexts: Tensor) -> F[Tensor, "draws batch"]:
        """The perturbed output of each draw."""
        outputs: Tensor = self.net(contexts)
        if outputs.shape not in ((len(contexts),), (len(contexts), 1)):
            refuse("net", f"one output a row, of shape ({len(contexts)},) or ({len(contexts)}, 1)", outputs)
        outputs = outputs.reshape(len(contexts))
        shifts: Tensor = self.scale * (self.signs @ self.displacement())
        return outputs + shifts[:, None]

    def predict(self, contexts: Tensor, loss: str = "square") -> F[Tensor, " batch"]:
        """The predicted losses, a mean over draws, without gradient: of outputs, or of their sigmoids for KL."""
        check_choice("loss", loss, LOSSES)
        with torch.no_grad():
            outputs = self(contexts)
            predicted: Tensor = (outputs.sigmoid() if loss == "kl" else outputs).mean(0)
        return predicted

    def loss(self, contexts: Tensor, y: F[Tensor, " batch"], loss: str = "square") -> Tensor:
        r"""The mean over draws and rows of the regression loss for labels y in [0, 1].

        .. math:: \tfrac12 (y - \tilde f)^2 \quad\text{or}\quad
            y \log\frac y{\hat y} + (1 - y) \log\frac{1 - y}{1 - \hat y},\; \hat y = \sigma(\tilde f)
        """
        check_choice("loss", loss, LOSSES)
        check_tensor("y", y, floating=True, shape=(len(contexts),))
        check_interval("y", y, 0.0, 1.0, what="losses")
        outputs = widen(self(contexts))
        if loss == "square":
            squares: Tensor = (y - outputs).square()
            return 0.5 * squares.mean()
        y = y.to(outputs)
        own: Tensor = torch.xlogy(y, y) + torch.xlogy(1 - y, 1 - y)
        return binary_cross_entropy_with_logits(outputs, y.expand_as(outputs)) + own.mean()


def online_regression_step(
    network: PerturbedNetwork,
    contexts: Tensor,
    y: F[Tensor, " batch"],
    lr: float,
    radius: float | None = None,
    loss: str = "square",
) -> Tensor:
    r"""A step of online projected gradient descent, in place.

    .. math:: \theta \leftarrow \Pi_{\|\theta - \theta_0\| \le \rho} \bigl(\theta - \eta \nabla L(\theta)\bigr)

    Args:
        network: the perturbed network.
        contexts: of the actions taken, usually one row.
        y: their losses in [0, 1].
        lr: :math:`\eta > 0`.
        radius: :math:`\rho > 0`; None for no projection.
        loss: ``"square"`` or ``"kl"``.

    Returns:
        L before the step.

    Raises:
        ValueError: a loss outside [0, 1], numbers outside their range.

    Example:
        >>> net = PerturbedNetwork(nn.Linear(3, 1))
        >>> before = online_regression_step(net, torch.ones(1, 3), torch.tensor([1.0]), lr=0.1, radius=0.01)
        >>> float(net.displacement().detach().norm())  # doctest: +ELLIPSIS
        0.0...

    Source: Contextual Bandits with Online Neural Regression, arXiv:2312.07145.
    """
    check_number("lr", lr, low=0.0, open_low=True)
    if radius is not None:
        check_number("radius", radius, low=0.0, open_low=True)
    with torch.enable_grad():
        value = network.loss(contexts, y, loss)
        slopes = torch.autograd.grad(value, network.weights)
    with torch.no_grad():
        for weight, slope in zip(network.weights, slopes):
            weight.sub_(slope, alpha=lr)
        if radius is not None:
            moved = network.displacement()
            length = float(torch.linalg.vector_norm(moved, dtype=torch.float64))
            if length > radius:
                inside = network.start + moved * (radius / length)
                sizes = [weight.numel() for weight in network.weights]
                for weight, values in zip(network.weights, inside.split(sizes)):
                    weight.copy_(values.view_as(weight))
    return value.detach()


class NeuSquareCB:
    r"""A contextual bandit: squared-loss regression of losses by a perturbed network, SquareCB's inverse gap weighting.

    A round is ``act``, which draws an action by :func:`inverse_gap_weighting` of the predictions, then ``update`` with
    the loss of that action, an :func:`online_regression_step` on it alone. Regret of order :math:`\sqrt{KT}`.

    Args:
        net: gives one output a row of contexts; trained in place. A :class:`PerturbedNetwork` is taken as it is.
        gamma: of the weighting, >= 0; of order :math:`\sqrt{KT}`.
        lr: rate of the regression > 0.
        radius: how far the weights may go from their start; None for any distance.
        c_p, num_draws, seed: of the :class:`PerturbedNetwork` that is made from ``net``.
        generator: of the actions; torch's own by default.

    Raises:
        ValueError: numbers outside their range.
        RuntimeError: ``update`` without an action before it.

    Example:
        >>> bandit = NeuSquareCB(nn.Linear(2, 1), gamma=10.0, lr=0.1)
        >>> action, prob = bandit.act(torch.eye(2))
        >>> bandit.update(float(action == 0)) >= 0
        True

    Source: Contextual Bandits with Online Neural Regression, arXiv:2312.07145.
    """

    loss = "square"
    fast = False

    def __init__(
        self,
        net: nn.Module,
        gamma: float,
        lr: float,
        radius: float | None = None,
        *,
        c_p: float = 0.1,
        num_draws: int = 8,
        seed: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        check_number("gamma", gamma, low=0.0, open_high=True)
        check_number("lr", lr, low=0.0, open_low=True)
        if radius is not None:
            check_number("radius", radius, low=0.0, open_low=True)
        self.network = net if isinstance(net, PerturbedNetwork) else PerturbedNetwork(net, c_p, num_draws, seed)
        self.gamma, self.lr, self.radius, self.generator = gamma, lr, radius, generator
        self._context: Tensor | None = None

    def probabilities(self, contexts: F[Tensor, "actions features"]) -> F[Tensor, " actions"]:
        """Of the actions, from one row of context each; changes nothing but what the network itself writes or draws."""
        check_tensor("contexts", contexts, ndim=2, floating=True)
        return inverse_gap_weighting(self.network.predict(contexts, self.loss), self.gamma, self.fast)

    def act(self, contexts: F[Tensor, "actions features"]) -> tuple[int, float]:
        """Draw an action; gives it with its probability."""
        shares = self.probabilities(contexts)
        action = int(torch.multinomial(shares, 1, generator=self.generator))
        self._context = contexts[action : action + 1].detach().clone()
        return action, float(shares[action])

    def update(self, loss: float) -> float:
        """Learn the loss, in [0, 1], of the last action; gives the regression loss before the step."""
        check_number("loss", loss, low=0.0, high=1.0)
        if self._context is None:
            raise RuntimeError("update: expected an action first, by act")
        context, self._context = self._context, None
        return self.learn(context, loss)

    def learn(self, context: F[Tensor, "1 features"], loss: float) -> float:
        """Learn the loss, in [0, 1], of any action, from its context."""
        check_number("loss", loss, low=0.0, high=1.0)
        check_tensor("context", context, floating=True, shape=(1, None))
        y = context.new_full((1,), float(loss))
        return float(online_regression_step(self.network, context, y, self.lr, self.radius, self.loss))


class NeuFastCB(NeuSquareCB):
    r"""A contextual bandit: KL regression of losses by a perturbed network, FastCB's inverse gap weighting.

    As :class:`NeuSquareCB`, with sigmoid outputs and their KL loss, and with exploration in proportion to the best
    predicted loss. Regret of order :math:`\sqrt{K L^*} + K`, where :math:`L^*` is the loss of the best policy.

    Args:
        net: gives one logit a row of contexts; trained in place. A :class:`PerturbedNetwork` is taken as it is.
        gamma: of the weighting, >= 0.
        lr: rate of the regression > 0.
        radius: how far the weights may go from their start; None for any distance.
        c_p, num_draws, seed: of the :class:`PerturbedNetwork` that is made from ``net``.
        generator: of the actions; torch's own by default.

    Raises:
        ValueError: numbers outside their range.
        RuntimeError: ``update`` without an action before it.

    Example:
        >>> bandit = NeuFastCB(nn.Linear(2, 1), gamma=10.0, lr=0.1)
        >>> action, prob = bandit.act(torch.eye(2))
        >>> bandit.update(float(action == 0)) >= 0
        True

    Source: Contextual Bandits with Online Neural Regression, arXiv:2312.07145.
    """

    loss = "kl"
    fast = True
