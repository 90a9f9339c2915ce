"""How any member is constructed: numbers of numpy, misspelt keywords, a ``repr`` that tells the truth."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.arguments import Arguments, argument_names

Member = type[nn.Module]


def seed_torch(seed: int) -> None:
    """Torch's own generators from a seed; ``torch.manual_seed`` formats the stack each time, for devices not in use."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def same(a: Any, b: Any) -> bool:
    """Whether two entries of a state are equal, bit for bit."""
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


def given_arguments(cls: Member, make: Callable[[], object]) -> list[dict[str, Any]]:
    """The arguments of each instance of ``cls`` that ``make()`` constructs, by name."""
    calls: list[dict[str, Any]] = []
    original = cls.__init__

    @functools.wraps(original)
    def recording(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        if type(self) is cls:
            signature = inspect.signature(original)
            given = dict(signature.bind(self, *args, **kwargs).arguments)
            given.pop(next(iter(given)))
            further = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD and p.name in given]
            calls.append(given | {name: value for p in further for name, value in given.pop(p).items()})
        original(self, *args, **kwargs)

    own = "__init__" in vars(cls)
    cls.__init__ = recording  # type: ignore[method-assign]
    try:
        make()
    finally:
        if own:
            cls.__init__ = original  # type: ignore[method-assign]
        else:
            del cls.__init__
    assert calls, f"{cls.__name__}: nothing was constructed"
    return calls


def built(cls: Member, arguments: dict[str, Any]) -> Any:
    """An instance, whatever it draws drawn from one seed."""
    seed_torch(0)
    return cls(**arguments)


def check_numpy(cls: Member, make: Callable[[], object]) -> None:
    """Numbers of numpy do what Python's do, and none of them is kept."""
    for given in given_arguments(cls, make):
        parameters = inspect.signature(cls.__init__).parameters
        every = {name: p.default for name, p in parameters.items() if isinstance(p.default, (bool, int, float))} | given
        numbers, exact = as_numpy(every)
        member = built(cls, numbers)
        of_numpy = {name: value for name, value in vars(member).items() if _holds_numpy(value)}
        assert not of_numpy, f"kept as numpy's: {of_numpy}"
        _assert_alike(member, built(cls, exact))


def as_numpy(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same arguments with numbers of numpy, and with Python's of exactly these values."""
    narrow = {name: _as(value, np.float32) for name, value in arguments.items()}
    return narrow, {name: _as(value, np.float32, float) for name, value in arguments.items()}


def _as(value: Any, *floats: Callable[[Any], Any]) -> Any:
    """A float through the given types; a whole number and a bool are numpy's where the last of them is."""
    if type(value) in (list, tuple):
        return type(value)(_as(item, *floats) for item in value)
    numpy = floats[-1] is not float
    if isinstance(value, bool):
        return np.bool_(value) if numpy else value
    if isinstance(value, int):
        return np.int64(value) if numpy else value
    if isinstance(value, float):
        return functools.reduce(lambda number, kind: kind(number), floats, value)
    return value


def _holds_numpy(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_numpy, value.values()))
    return isinstance(value, np.generic) or (isinstance(value, (list, tuple)) and any(map(_holds_numpy, value)))


def _assert_alike(a: Any, b: Any) -> None:
    assert repr(a) == repr(b), f"{a!r} is not {b!r}"
    before, after = a.state_dict(), b.state_dict()
    assert before.keys() == after.keys() and all(same(before[k], after[k]) for k in before), "another state"


def check_keywords(cls: Member, make: Callable[[], object]) -> None:
    """A misspelt keyword is a ``TypeError`` that names the right one."""
    given = given_arguments(cls, make)[0]
    names = argument_names(cls)
    for name in names:
        wrong = name + "s" if len(name) < 3 else name[:-2] + name[-1] + name[-2]
        if wrong in names or len(name) < 2:
            continue
        try:
            cls(**{k: v for k, v in given.items() if k != name}, **{wrong: given.get(name, 1)})
        except TypeError as error:
            assert cls.__name__ in str(error) and f"did you mean {name!r}?" in str(error), f"{wrong}: {error}"
        else:
            raise AssertionError(f"the keyword {wrong!r} was taken")


def check_repr(cls: Member, make: Callable[[], object]) -> None:
    """``repr`` shows what was given; evaluated, it constructs the same again."""
    for given in given_arguments(cls, make):
        member = built(cls, given)
        text = Arguments.extra_repr(member)
        assert text in repr(member), f"{text!r} is not in {member!r}"
        plain = {name: value for name, value in given.items() if not isinstance(value, nn.Module)}
        for name, value in plain.items():
            assert f"{name}=" in text, f"{name} is not in {text!r}"
            if isinstance(value, (bool, int, float, str)):
                assert f"{name}={value!r}" in text, f"{name}={value!r} is not in {text!r}"
        if "<" in text or "..." in text or len(plain) < len(given):
            continue
        seed_torch(0)
        _assert_alike(member, evaluated(cls, text))


def evaluated(cls: Member, text: str, *first: object) -> Any:
    """What the text of arguments constructs, after some that have no text."""
    return eval(f"cls(*first, {text})", {"cls": cls, "first": first, "inf": math.inf, "nan": math.nan})


def constructor_checks(make: Callable[[Any], object]) -> tuple[Callable[[Any], None], ...]:
    """The checks of this file for a suite whose instances ``make(cls)`` constructs."""

    def bind(check: Callable[[Member, Callable[[], object]], None]) -> Callable[[Any], None]:
        @functools.wraps(check)
        def run(cls: Any) -> None:
            check(cls, lambda: make(cls))

        return run

    return tuple(map(bind, (check_numpy, check_keywords, check_repr)))
