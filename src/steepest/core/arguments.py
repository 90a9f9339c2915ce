"""What all members share in how they are constructed: plain numbers, suggestions, a ``repr`` that tells the truth."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .checks import describe
from .errors import nearest
from .scalars import plain

_SIMPLE = (bool, int, float, str, type(None))


class _Words(str):
    """Words that stand in a ``repr`` for a value that has none of one line."""

    def __repr__(self) -> str:
        return str(self)


class Arguments:
    """Base of members: derive from it before ``nn.Module``. It changes no signature, and nothing is to be called.

    Numbers of numpy reach ``__init__`` as Python's. An unknown keyword is a ``TypeError`` that names the nearest known
    one. ``repr`` shows the arguments that were given, and what has been set since under the name of an argument.
    """

    _arguments: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls.__init__, "takes_arguments"):
            cls.__init__ = _taking(cls.__init__)  # type: ignore[method-assign]

    def extra_repr(self) -> str:
        """The arguments, as one would write them; submodules stand below in ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self._shown().items())

    def _shown(self) -> dict[str, Any]:
        given = self.__dict__.get("_arguments", {})
        shown = {}
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            default = given.get(name, parameter.default)
            now = getattr(self, name, default)
            # an attribute of the argument's name and type is that argument; of another, something made from it
            value = now if isinstance(now, _SIMPLE) and type(now) is type(default) else default
            if name in given or (value is not default and value != default):
                shown[name] = value
        return shown | {name: value for name, value in given.items() if name not in shown}


def argument_names(cls: type) -> list[str]:
    """The keywords of a constructor, and of those to which it hands further ones on."""
    names: list[str] = []
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
            names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
    return list(dict.fromkeys(names))


def _taking(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)
    variable = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())

    @functools.wraps(init)
    def taking(self: Arguments, /, *args: Any, **kwargs: Any) -> None:
        unknown = [] if variable else [name for name in kwargs if name not in signature.parameters]
        if unknown:
            names = argument_names(type(self))
            hint = nearest(unknown[0], names) or (f"; it takes {', '.join(names)}" if names else "; it takes none")
            raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {unknown[0]!r}{hint}")
        args, kwargs = plain(args), {name: plain(value) for name, value in kwargs.items()}
        if "_arguments" not in self.__dict__:  # the outermost constructor, not one that it calls
            self.__dict__["_arguments"] = _simple(signature, self, args, kwargs)
        init(self, *args, **kwargs)

    taking.takes_arguments = True  # type: ignore[attr-defined]
    return taking


def _simple(signature: inspect.Signature, owner: object, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments as they can be shown: no tensor and no module is held."""
    try:
        bound = signature.bind(owner, *args, **kwargs).arguments
    except TypeError:  # Python's own words are better, and come next
        return {}
    simple: dict[str, Any] = {}
    for name, value in list(bound.items())[1:]:
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            simple |= {key: _shown(item) for key, item in value.items() if not isinstance(item, nn.Module)}
        elif not isinstance(value, nn.Module):
            simple[name] = _shown(value)
    return simple


def _shown(value: Any) -> Any:
    if isinstance(value, _SIMPLE):
        return value
    if isinstance(value, Tensor):
        return _Words(f"<{describe(value)}>")
    if callable(value):
        return _Words(getattr(value, "__name__", describe(value)))
    return _Words(describe(value))
