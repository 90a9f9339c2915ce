"""The suites of optimizers and wrappers find what breaks a promise, each by the check that is named for it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from steepest.core.displaced import ascent
from steepest.core.wrapper import TwoPassWrapper, Wrapper
from steepest.testing import check_optimizer, check_wrapper, optimizer_checks, wrapper_checks


class Descends(torch.optim.SGD):
    """Plain steps.

    Example: none is needed here.
    """

    name = "descends"
    exempt = {}

    @classmethod
    def builders(cls):
        return [lambda params: cls(params, lr=0.01, momentum=0.9)]


class FromWeights(Descends):
    """Example: its buffer begins as the weights."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = p.detach().clone()
        return super().step(closure)


class OtherList(Descends):
    """Example: operations on lists of tensors round otherwise."""

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if group["foreach"]:
                        p.mul_(1 + 1e-6)
        return loss


class OneRate(Descends):
    """Example: the rate of its construction is that of all groups and times."""

    def step(self, closure=None):
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = 0.01
        loss = super().step(closure)
        for group, rate in zip(self.param_groups, rates):
            group["lr"] = rate
        return loss


class OnlyDown(Descends):
    """Example: it goes down, whatever it is asked."""

    def step(self, closure=None):
        groups = copy.copy([group["maximize"] for group in self.param_groups])
        for group in self.param_groups:
            group["maximize"] = False
        loss = super().step(closure)
        for group, up in zip(self.param_groups, groups):
            group["maximize"] = up
        return loss


class Up(Descends):
    """Example: the wrong way."""

    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None if p.grad is None else -p.grad
        super().step()
        return loss


class Forgets(Descends):
    """Example: its state is lost."""

    def state_dict(self):
        return {**super().state_dict(), "state": {}}


class Guesses(Descends):
    """Example: what a state does not say is guessed."""

    def __setstate__(self, state):
        for group in state["param_groups"]:
            group.setdefault("maximize", True)
        super().__setstate__(state)


class ThroughMemory(Descends):
    """Example: it runs through the memory from the first number on, whatever the strides are."""

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    torch.as_strided(p, (p.numel(),), (1,)).mul_(1 - 1e-3)
        return loss


class Keeps(Descends):
    """Example: an object in its state."""

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["object"] = slice(3)
        return loss


class Again(Descends):
    """Example: the closure is run once more."""

    def step(self, closure=None):
        loss = super().step(closure)
        if closure is not None:
            with torch.enable_grad():
                closure()
        return loss


class NoGradients(Descends):
    """Example: without gradients in the closure."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        super().step()
        return loss


class AnyRate(Descends):
    """Example: it takes any rate."""

    def __init__(self, params, lr=0.01, **kw):
        super().__init__(params, lr=abs(lr), **kw)


class Drives(Wrapper):
    """Drives another.

    Example: none is needed here.
    """

    name = "drives"

    def __init__(self, params, **kw):
        super().__init__(torch.optim.SGD(params, **kw))

    @classmethod
    def builders(cls):
        return [lambda params: cls(params, lr=0.01, momentum=0.9)]


class HandsOn(Drives):
    """Example: the base optimizer gets the closure."""

    def _advance(self, closure):
        self.base_optimizer.step(closure)


class OwnGroups(Drives):
    """Example: groups of its own."""

    def __init__(self, params, **kw):
        super().__init__(params, **kw)
        self.mine = [dict(group) for group in self.base_optimizer.param_groups]

    @property
    def param_groups(self):
        return self.__dict__.get("mine", self.base_optimizer.param_groups)

    @param_groups.setter
    def param_groups(self, groups):
        pass


class Unscales(Drives):
    """Example: the scale of who scaled is not looked at."""

    def _unscaled(self, scaler, *, ran, first=True):
        return True


class Climbs(TwoPassWrapper):
    """Two passes.

    Example: none is needed here.
    """

    name = "climbs"
    exempt = {"minimum": "a radius that stays"}

    def __init__(self, params, **kw):
        super().__init__(torch.optim.SGD(params, **kw))

    def _moves(self, parameters, gradients, groups, norm):
        return ascent(parameters, gradients, 0.02, norm=norm)

    @classmethod
    def builders(cls):
        return [lambda params: cls(params, lr=0.01, momentum=0.9)]


class Divides(Climbs):
    """Example: 0 / 0."""

    def _moves(self, parameters, gradients, groups, norm):
        return [(0.02 * g / norm).to(g.dtype) for g in gradients]

    def _finish(self, away, *, fine):
        self.base_optimizer.step()


class Subtracts(Climbs):
    """Example: it comes back by subtraction."""

    def _displace(self, traces):
        super()._displace(traces)
        moved, values = self._away.before
        steps = [p.detach() - value for p, value in zip(moved, values)]
        self._away.before = (moved, [p.detach() - step * (1 + 1e-6) for p, step in zip(moved, steps)])


class StaysAway(Climbs):
    """Example: an exception leaves the weights where they are."""

    def _end_pass(self):
        if self._away is not None and any(p.grad is None for p in self._away.parameters):
            self._away = None
        return super()._end_pass()

    def step(self, closure=None, *, scaler=None):
        def clean():
            loss = closure()
            if self._away is not None and closure.runs == closure.fails:
                raise AssertionError
            return loss

        def run():
            try:
                return clean()
            except RuntimeError:
                if self._away is not None:
                    self._away = None
                raise

        return super().step(run, scaler=scaler)


class Writes(Climbs):
    """Example: both passes leave their traces."""

    def _displace(self, traces):
        super()._displace(traces)
        traces._seen.clear()


class Draws(Climbs):
    """Example: the second pass draws anew."""

    def _displace(self, traces):
        super()._displace(traces)
        torch.rand(1)

    def step(self, closure=None, *, scaler=None):
        def run():
            torch.manual_seed(int(torch.randint(1000, ())) + (self._away is not None))
            return closure()

        return super().step(run, scaler=scaler)


class Overflows(Climbs):
    """Example: what is infinite is applied."""

    def _finish(self, away, *, fine):
        self.base_optimizer.step()


class HalfWay(Climbs):
    """Example: who left it half-way is left there."""

    def first_step(self, zero_grad=False):
        self._away = None
        super().first_step(zero_grad)


BREAKS = [
    (FromWeights, "zero_gradient"), (OtherList, "foreach"), (OneRate, "groups"), (OneRate, "schedule"),
    (OnlyDown, "maximize"), (Up, "convergence"), (Up, "dtypes"), (Forgets, "resume"), (Keeps, "state"),
    (Guesses, "older_state"), (ThroughMemory, "layouts"), (Keeps, "resume"), (Again, "closure"),
    (NoGradients, "closure"), (AnyRate, "bad_input"), (HandsOn, "base"),
    (HandsOn, "closure"), (OwnGroups, "shared_groups"), (OwnGroups, "schedule"), (Unscales, "scaler"),
    (Unscales, "scaled_closure"), (Divides, "zero_gradient"), (Divides, "overflow"), (Subtracts, "groups"),
    (StaysAway, "exception"), (Writes, "one_trace"), (Writes, "statistics"), (Draws, "one_trace"),
    (Overflows, "overflow"), (Overflows, "scaler"), (HalfWay, "half_way"),
]  # fmt: skip


def checks_of(cls):
    return dict((wrapper_checks if issubclass(cls, Wrapper) else optimizer_checks)(cls))


@pytest.mark.parametrize(("cls", "name"), BREAKS, ids=lambda value: getattr(value, "__name__", value))
def test_what_breaks_is_found(cls, name):
    with pytest.raises((AssertionError, RuntimeError, pickle.UnpicklingError)):
        checks_of(cls)[name]()


@pytest.mark.parametrize("cls", [Descends, Drives, Climbs])
def test_what_keeps_its_promises_passes(cls):
    for name, check in checks_of(cls).items():
        if name not in ("minimum", "compile", "ranks"):
            check()


def test_the_first_failure_names_class_and_check():
    with pytest.raises(AssertionError, match="AnyRate, bad_input: a rate below 0 was not refused"):
        check_optimizer(AnyRate, exempt=dict.fromkeys(("minimum", "compile", "ranks"), "not here"))
    with pytest.raises(AssertionError, match="HandsOn, closure: "):
        check_wrapper(HandsOn)


def test_a_class_that_does_not_say_how_it_is_built_is_refused():
    with pytest.raises(TypeError, match="builders: expected functions"):
        optimizer_checks(torch.optim.SGD)
    with pytest.raises(ValueError, match="exempt: expected names of checks"):
        optimizer_checks(Descends, exempt={"nothing": "no reason"})
