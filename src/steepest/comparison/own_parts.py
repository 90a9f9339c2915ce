"""A user's own objective, model or metric, by ``module:name``: imported only where the present call names it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Collection
from typing import Any

from .errors import InputError, nearest

Trust = bool | Collection[str]
"""Whether names of own parts may be imported: all, none, or exactly these."""


def trusted(spec: str, trust: Trust) -> bool:
    """Whether a name may be imported.

    >>> trusted("os:system", False), trusted("my:net", {"my:net"}), trusted("os:system", {"my:net"})
    (False, True, False)
    """
    return trust if isinstance(trust, bool) else spec in trust


def imported(option: str, spec: str, *, trust: Trust) -> Any:
    """The object of ``module:name``; modules in the current directory are found.

    Importing runs the module, so a name that was read from a file is imported only if the user trusts it.

    Args:
        option: what names it, for errors.
        spec: ``module:name``.
        trust: see :data:`Trust`; what the present command line or call itself names is trusted.

    Raises:
        InputError: it is not trusted, the module cannot be imported or lacks the name.
    """
    if not trusted(spec, trust):
        raise InputError(
            f"{option.lstrip('-')} {spec!r} is not built in: its module would be imported, which runs it; if you trust "
            f"where it comes from, say --trust (in Python trust=True)"
        )
    module_name, _, name = spec.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(f"{option} {spec!r}: cannot import {module_name!r}: {error}") from error
    finally:
        sys.path.remove(here)
    if not hasattr(module, name):
        public = [n for n in dir(module) if not n.startswith("_")]
        raise InputError(f"{option} {spec!r}: {module_name!r} has no {name!r}{nearest(name, public)}")
    return getattr(module, name)
