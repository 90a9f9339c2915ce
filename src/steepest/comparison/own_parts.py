"""A user's own objective, model or metric, by ``module:name``."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from .errors import InputError, nearest


def imported(option: str, spec: str) -> Any:
    """The object of ``module:name``; modules in the current directory are found.

    Raises:
        InputError: the module cannot be imported or lacks the name.
    """
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
