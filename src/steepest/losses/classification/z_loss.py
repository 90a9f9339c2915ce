"""The Z-loss and its kin: losses of the sum of outputs, the sum of their squares and the output of the target alone."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from ...core.checks import check_choice, check_index, check_logits, check_number, check_range, check_tensor, refuse_type
from ...core.logpartition import pick
from ...core.objective import Objective, Sample
from ...core.reductions import reduce, widen
from ...core.rowwise import add_at, at, rowwise
from ...core.search import Float
from ._factored import FactoredMatrix


def _check_z(a: float, b: float, eps: float) -> None:
    check_number("b", b)
    for argument, value in (("a", a), ("eps", eps)):
        check_number(argument, value, low=0.0, open_low=True)


def _inverse_deviation(variance: Tensor, eps: float) -> Tensor:
    """One over the standard deviation; 1 where the variance is ``eps`` or less, and the outputs count as equal."""
    return torch.rsqrt(torch.where(variance <= eps, 1.0, variance))


def _z_rows(centred: Tensor, variance: Tensor, a: float, b: float, eps: float) -> Tensor:
    """The Z-loss of o_c - mean and of the variance."""
    return softplus(a * (b - centred * _inverse_deviation(variance, eps))) / a


def z_loss(
    logits: F[Tensor, "batch classes"],
    target: I[Tensor, " batch"],
    *,
    a: float = 1.0,
    b: float = 1.0,
    eps: float = 1e-8,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""The Z-loss: a soft hinge on the standard score of the target among its own row of outputs.

    .. math:: L = \frac1a \log\bigl(1 + e^{a (b - z_c)}\bigr), \qquad z_c = \frac{o_c - \mu}{\sigma}

    with the mean and the population deviation over the D outputs of a row. Adding a number to all outputs, or scaling
    them by a positive one, changes nothing, and the slope grows as 1 / sigma. Where outputs are equal (a head that
    starts at 0) sigma is taken as 1. It is *not* the penalty (log Z)^2 of language models, which has the same name. As
    z_c is at most sqrt(D - 1), so is a ``b`` that can be reached. With two classes z_c is +1 or -1 in any case, and no
    gradient is left.

    Args:
        logits, target: o ``[N, D]``, D >= 2, and class indices ``[N]`` in 0..D-1.
        a: sharpness, > 0. Ten thousand classes and more: begin at a = 0.1, b = 10.
        b: the standard score from which on the target is good enough.
        eps: > 0; outputs of this variance or less count as equal. With 1e-8 gradients fit into half precision.
        weight, reduction: sample weights ``[N]`` >= 0; ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: one class, a class out of range, ``a`` or ``eps`` not above 0, wrong shapes.

    Example:
        >>> z_loss(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([0]))
        tensor(0.5368)

    Source: The Z-loss: a shift and scale invariant classification loss belonging to the Spherical Family,
    arXiv:1604.08859.
    """
    check_logits(logits, argument="logits")
    check_index(target, logits)
    _check_z(a, b, eps)
    y = target.long()

    def plain(o: Tensor) -> Tensor:
        centred = o - o.mean(-1, keepdim=True)  # two passes: the squares of o would cancel
        centred = centred - centred.mean(-1, keepdim=True)  # what rounding left of the mean
        return _z_rows(pick(centred, y), centred.square().mean(-1), a, b, eps)

    def rule(o: Tensor, g: Tensor, rows: slice) -> Tensor:
        torch.sub(o, o.mean(1, keepdim=True), out=g)
        g.sub_(g.mean(1, keepdim=True))
        own, size = at(g, y[rows]), o.shape[1]
        variance = torch.linalg.vecdot(g, g).unsqueeze(1) / size
        inverse = _inverse_deviation(variance, eps)
        below = torch.sigmoid(a * (b - own * inverse)) * inverse
        # dz_c / do_k = (1[k = c] - 1 / D) / sigma - (o_c - mean) (o_k - mean) / (D sigma^3)
        turn = below * own * inverse.square() / size
        g.mul_(torch.where(variance <= eps, 0.0, turn))  # a deviation that is taken as 1 has no slope
        g.add_(below / size)
        add_at(g, y[rows], -below)
        return _z_rows(own, variance, a, b, eps).squeeze(1)

    return reduce(rowwise(widen(logits), plain, rule), reduction, weight)


class _Spherical(Objective):
    """A loss of (sum o, sum o^2, o_c): what :class:`SphericalOutputLayer` can train at a cost that D does not touch."""

    tasks = ("binary", "multiclass")

    def rows(
        self, total: F[Tensor, " batch"], squares: F[Tensor, " batch"], own: F[Tensor, " batch"], classes: int
    ) -> F[Tensor, " batch"]:
        """The loss of each sample from the sum of its D outputs, the sum of their squares and that of the target."""
        raise NotImplementedError

    def forward(
        self, outputs: F[Tensor, "batch classes"], target: I[Tensor, " batch"], *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of outputs and class indices."""
        self.check_call(outputs, target, weight)
        check_logits(outputs)
        check_index(target, outputs)
        y, classes = target.long(), outputs.shape[1]

        def plain(o: Tensor) -> Tensor:
            return self.rows(o.sum(-1), o.square().sum(-1), pick(o, y), classes)

        def rule(o: Tensor, g: Tensor, rows: slice) -> Tensor:
            torch.mul(o, o, out=g)
            sums = [o.sum(1), g.sum(1), at(o, y[rows]).squeeze(1)]
            with torch.enable_grad():  # torch differentiates the three sums of a row, the rule its outputs
                leaves = [leaf.requires_grad_() for leaf in sums]
                losses = self.rows(*leaves, classes)
                total, squares, own = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
            torch.mul(o, 2 * squares.unsqueeze(1), out=g)
            if total is not None:
                g.add_(total.unsqueeze(1))
            add_at(g, y[rows], own.unsqueeze(1))
            return losses.detach()

        return reduce(rowwise(widen(outputs), plain, rule), self.reduction, weight)

    def predict(self, outputs: Tensor) -> Tensor:
        """The most probable class, which need not have the largest output."""
        p = self.probabilities(outputs)
        return (outputs if p is None else p).argmax(-1)


class ZLoss(_Spherical):
    """The Z-loss as a module; see :func:`z_loss`. It gives no probabilities; a calibrator can.

    It takes three classes or more: with two there is no gradient. The scale of outputs is free: weights may drift, and
    weight decay only changes the effective step. ``a`` and ``b`` matter much.

    Args:
        a: sharpness, > 0.
        b: the standard score that is good enough; below sqrt(D - 1), or it is out of reach.
        eps: > 0; outputs of this variance or less count as equal.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> ZLoss(a=0.1, b=10.0)(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([0]))
        tensor(12.1699)
    """

    name = "z_loss"
    tasks = ("multiclass",)
    search = {"a": Float(0.05, 5.0, log=True), "b": Float(0.5, 10.0, log=True)}

    def __init__(self, a: float = 1.0, b: float = 1.0, eps: float = 1e-8, reduction: str = "mean") -> None:
        super().__init__(reduction)
        _check_z(a, b, eps)
        self.a, self.b, self.eps = a, b, eps

    def rows(self, total: Tensor, squares: Tensor, own: Tensor, classes: int) -> Tensor:
        mean = total / classes
        variance = (squares / classes - mean.square()).clamp_min(0)
        return _z_rows(own - mean, variance, self.a, self.b, self.eps)

    def forward(
        self, outputs: F[Tensor, "batch classes"], target: I[Tensor, " batch"], *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of logits and class indices."""
        self.check_call(outputs, target, weight)
        return z_loss(outputs, target, a=self.a, b=self.b, eps=self.eps, weight=weight, reduction=self.reduction)


class TaylorSoftmaxLoss(_Spherical):
    r"""The log-likelihood of a softmax with the second-order Taylor polynomial in place of the exponential.

    .. math:: L = -\log \frac{t(o_c)}{\sum_k t(o_k)}, \qquad t(o) = 1 + o + o^2 / 2 \ge 1/2

    t falls up to o = -1 and rises from there: the most probable class can be one of very negative output.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> TaylorSoftmaxLoss()(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([0]))
        tensor(0.5878)

    Source: An Exploration of Softmax Alternatives Belonging to the Spherical Loss Family, arXiv:1511.05042.
    """

    name = "taylor_softmax"

    def rows(self, total: Tensor, squares: Tensor, own: Tensor, classes: int) -> Tensor:
        return torch.log(classes + total + squares / 2) - torch.log(((own + 1).square() + 1) / 2)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """t(o) / sum t(o)."""
        t = ((widen(outputs) + 1).square() + 1) / 2
        return t / t.sum(-1, keepdim=True)


class SphericalLoss(_Spherical):
    r"""The log-likelihood of the spherical softmax, or the squared error to the one-hot target.

    .. math:: L = -\log \frac{o_c^2 + e}{\sum_k (o_k^2 + e)} \qquad\text{or}\qquad
        L = \frac1D \sum_k \bigl(o_k - [k = c]\bigr)^2

    Args:
        form: ``"softmax"`` or ``"squared_error"``. The softmax doesn't see the signs of outputs.
        e: of the softmax, > 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> SphericalLoss()(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([0]))
        tensor(0.4096)

    Source: An Exploration of Softmax Alternatives Belonging to the Spherical Loss Family, arXiv:1511.05042.
    """

    name = "spherical"
    search = {"e": Float(1e-3, 1.0, log=True)}

    def __init__(self, form: str = "softmax", e: float = 0.01, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_choice("form", form, ("softmax", "squared_error"))
        check_number("e", e, low=0.0, open_low=True)
        self.form, self.e = form, e

    def rows(self, total: Tensor, squares: Tensor, own: Tensor, classes: int) -> Tensor:
        if self.form == "squared_error":
            return (squares - 2 * own + 1) / classes
        return torch.log(squares + classes * self.e) - torch.log(own.square() + self.e)

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        """(o^2 + e) / sum (o^2 + e); None for the squared error."""
        if self.form == "squared_error":
            return None
        t = widen(outputs).square() + self.e
        return t / t.sum(-1, keepdim=True)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[SphericalLoss, Sample]]:
        """The default cases, and the squared error."""
        cases = super().samples(generator, dtype, device)
        return [*cases, (cls(form="squared_error").to(device), cases[-1][1])]


class SphericalOutputLayer(nn.Module):
    r"""A linear output layer without bias, and the mean loss of its outputs, which it need not compute.

    .. math:: o = W h, \qquad \sum_k o_k = w^\top h, \quad \sum_k o_k^2 = h^\top Q h, \quad o_c = W_c h

    with w = W'1 and Q = W'W kept up to date, and W in factors: loss, gradient in h and a step of plain gradient descent
    on all D d weights are exact and cost O(d^2) a sample, for any number of classes D. ``backward`` notes what
    :meth:`step` needs. Now and then the factors are multiplied out, O(D d^2): every ``rebuild_every`` steps, and where
    a step makes them nearly singular.

    The naive mode has W as a parameter and forms all outputs; the factored mode has none, :meth:`step` trains it.

    Args:
        d: width of h, >= 1.
        D: number of classes, >= 2.
        loss: ``"z"``, ``"taylor"``, ``"spherical"``, ``"squared_error"``, or such a loss with reduction "mean".
        factored: the factored mode.
        rebuild_every: steps between two rebuilds, or None for only where a step asks for one.

    Example:
        >>> layer = SphericalOutputLayer(16, 1000)
        >>> h, target = torch.randn(8, 16, requires_grad=True), torch.arange(8)
        >>> before = layer(h, target)
        >>> before.backward()
        >>> layer.step(0.1)
        >>> bool(layer(h, target) < before), h.grad.shape
        (True, torch.Size([8, 16]))

    Source: Efficient Exact Gradient Update for Training Deep Networks with Very Large Sparse Targets, arXiv:1412.7091;
    Exact gradient updates in time independent of output size for the spherical loss family, arXiv:1606.08061.
    """

    def __init__(
        self,
        d: int,
        D: int,
        loss: str | _Spherical = "z",
        *,
        factored: bool = True,
        rebuild_every: int | None = 10_000,
    ) -> None:
        super().__init__()
        check_number("d", d, low=1, integer=True)
        check_number("D", D, low=2, integer=True)
        if isinstance(loss, str):
            check_choice("loss", loss, tuple(_LOSSES))
            loss = _LOSSES[loss]()
        if not isinstance(loss, _Spherical) or loss.reduction != "mean":
            refuse_type("loss", "a name or a spherical loss with reduction 'mean'", loss)
        self.d, self.D, self.loss = d, D, loss
        self.factors = FactoredMatrix(D, d, rebuild_every) if factored else None
        if not factored:
            self.matrix = nn.Parameter(torch.empty(D, d).uniform_(-(d**-0.5), d**-0.5))
        self._noted: list[dict[str, Tensor]] = []

    @property
    def weight(self) -> F[Tensor, "D d"]:
        """W; multiplied out in the factored mode, O(D d^2)."""
        return self.matrix if self.factors is None else self.factors.dense()

    @torch.no_grad()
    def assign(self, weight: F[Tensor, "D d"]) -> None:
        """Set W."""
        check_tensor("weight", weight, floating=True, shape=(self.D, self.d))
        (self.matrix.copy_ if self.factors is None else self.factors.assign)(weight)

    def outputs(self, h: F[Tensor, "batch d"]) -> F[Tensor, "batch D"]:
        """All outputs, O(D d): for predictions. Their gradient reaches h, but not W in the factored mode."""
        if self.factors is None:
            return linear(h, self.matrix)
        f = self.factors
        h = widen(h)
        inner, shift = linear(h.to(f.u.dtype), f.u), h.to(f.u.dtype) @ f.omega
        return linear(inner.to(f.v.dtype), f.v) + shift.to(f.v.dtype).unsqueeze(-1)

    def forward(self, h: F[Tensor, "batch d"], target: I[Tensor, " batch"]) -> Tensor:
        """The mean loss, in float32 or wider."""
        check_tensor("h", h, floating=True, shape=(None, self.d))
        check_tensor("target", target, floating=False, shape=(len(h),))
        check_range("target", target, 0, self.D - 1)
        if self.factors is None:
            value: Tensor = self.loss(self.outputs(h), target)
            return value
        f = self.factors
        wide = h.to(f.u.dtype)
        total, squares = wide @ f.sums, ((wide @ f.gram) * wide).sum(-1)
        own = (wide * f.pick(target)).sum(-1)
        if self.training and torch.is_grad_enabled():
            self._note(wide.detach(), target, total=total, squares=squares, own=own)
        loss = self.loss.rows(total, squares, own, self.D).mean()
        return loss.to(torch.promote_types(widen(h).dtype, f.v.dtype))

    def _note(self, h: Tensor, target: Tensor, **sums: Tensor) -> None:
        """Have backward leave the gradient in each of the three sums."""
        note: dict[str, Tensor] = {}

        def hook(name: str) -> Any:
            def keep(gradient: Tensor) -> None:
                if not note:
                    note.update(h=h, target=target)
                    self._noted.append(note)
                note[name] = note[name] + gradient if name in note else gradient

            return keep

        for name, value in sums.items():
            if not value.requires_grad:
                value.requires_grad_()
            value.register_hook(hook(name))

    @torch.no_grad()
    def step(self, lr: float) -> None:
        r"""One step :math:`W \leftarrow W - \eta\, \partial L / \partial W` of what ``backward`` saw; ``lr`` > 0."""
        check_number("lr", lr, low=0.0, open_low=True)
        if self.factors is None:
            if self.matrix.grad is not None:
                self.matrix.sub_(lr * self.matrix.grad)
                self.matrix.grad = None
            return
        noted, self._noted = self._noted, []
        if not noted:
            return
        h, target = torch.cat([n["h"] for n in noted]), torch.cat([n["target"] for n in noted])
        zero = h.new_zeros(())
        total, squares, own = (
            torch.cat([n.get(name, zero).expand(len(n["h"])) for n in noted]) for name in ("total", "squares", "own")
        )
        self.factors.update(h, 2 * lr * squares, lr * total, target, lr * own)


_LOSSES: dict[str, Any] = {
    "z": ZLoss,
    "taylor": TaylorSoftmaxLoss,
    "spherical": SphericalLoss,
    "squared_error": lambda: SphericalLoss("squared_error"),
}
