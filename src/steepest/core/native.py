"""C++ functions for the CPU: compiled once by the system's compiler, kept in a folder of the user, called by ctypes.

A source file holds ``extern "C"`` functions over plain pointers, so that nothing of torch is compiled and a build takes
a second or two. A build is made for an instruction level, not for this machine's processor: the level that torch itself
uses, which ``$ATEN_CPU_CAPABILITY`` may lower. The compiler is ``$CXX``, else ``g++``. Without one, or where anything
fails, :func:`library` gives None and callers take their torch form; ``STEEPEST_NATIVE=0`` asks for that.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from itertools import product
from pathlib import Path
from threading import Lock

import torch

from .torch_private import is_avx2_supported, is_avx512_supported

FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-shared", "-fPIC", "-w")
LEVELS = {"default": "x86-64", "avx2": "x86-64-v3", "avx512": "x86-64-v4"}
"""Instruction levels of x86-64, the lowest first: torch's names and the compilers'."""
_THREADS = "-fopenmp"
_SECONDS = 120
_INCLUDE = re.compile(r'^#include "(.+)"$', re.MULTILINE)
_lock = Lock()


def library(*sources: Path) -> ctypes.CDLL | None:
    """The compiled library of C++ sources, read as one text in this order; None where it cannot be had.

    Args:
        sources: files of the package; a later one may use what an earlier one defines.

    Returns:
        The library for :func:`level`, the same object at every call. A build that failed is not tried again in this
        process.
    """
    with _lock:
        return _library(sources, level())


def level() -> str:
    """The key of ``LEVELS`` that ``$ATEN_CPU_CAPABILITY`` names, else torch uses, if the processor has as much."""
    wanted = os.environ.get("ATEN_CPU_CAPABILITY")
    if wanted not in LEVELS:
        wanted = torch.backends.cpu.get_cpu_capability().lower()
    if wanted not in LEVELS:  # another kind of processor
        return "default"
    had = levels()
    return wanted if wanted in had else had[-1]


@cache
def levels() -> tuple[str, ...]:
    """The keys of ``LEVELS`` that this processor has; the lowest alone where it is no x86-64."""
    if not _x86_64() or not is_avx2_supported():
        return ("default",)
    return tuple(LEVELS) if is_avx512_supported() else ("default", "avx2")


def _x86_64() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


@cache
def _library(sources: tuple[Path, ...], level: str) -> ctypes.CDLL | None:
    command = shlex.split(os.environ.get("CXX") or "g++")
    compiler = shutil.which(command[0])
    if compiler is None or os.environ.get("STEEPEST_NATIVE") == "0":
        return None
    try:
        text = "\n".join(map(_text, sources))
        flags = _flags(level)
        file = (
            folder() / f"{sources[-1].stem}-{level}-{_fingerprint(text, command, flags, Path(compiler).resolve())}.so"
        )
        if file.is_file():
            try:
                return ctypes.CDLL(str(file))
            except OSError:  # cut short or foreign: built anew
                pass
        return ctypes.CDLL(str(file)) if _build(command, flags, text, file) else None
    except (OSError, subprocess.SubprocessError):
        return None


def folder() -> Path:
    """Where libraries are kept: ``$XDG_CACHE_HOME/steepest`` or ``~/.cache/steepest``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "steepest"


def _text(source: Path) -> str:
    """A source with the files that it includes, by their places beside it."""
    return _INCLUDE.sub(lambda line: _text(source.parent / line[1]), source.read_text(encoding="utf-8"))


def _flags(level: str) -> list[tuple[str, ...]]:
    """What to build with, the best first: an old compiler may not know a level, another one may know no OpenMP."""
    names = list(LEVELS)[list(LEVELS).index(level) :: -1]
    targets = [(f"-march={LEVELS[name]}",) for name in names] if _x86_64() else [()]
    return [(*FLAGS, *target, *threads) for target, threads in product(targets, ((_THREADS,), ()))]


def _build(compiler: list[str], flags: list[tuple[str, ...]], text: str, file: Path) -> bool:
    """Compile into ``file``, which appears whole or not at all, with the first flags that succeed."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=file.parent) as here:
        source, built = Path(here, "source.cpp"), Path(here, "built.so")
        source.write_text(text, encoding="utf-8")
        for own in flags:
            command = [*compiler, *own, "-o", str(built), str(source)]
            if subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False).returncode == 0:
                os.replace(built, file)
                return True
    return False


def _fingerprint(text: str, command: list[str], flags: list[tuple[str, ...]], compiler: Path) -> str:
    """A word for source, flags, compiler and kind of machine: a folder may be shared between machines."""
    about = compiler.stat()
    parts = [text, *command, repr(flags), str(compiler), str(about.st_mtime_ns), platform.machine()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
