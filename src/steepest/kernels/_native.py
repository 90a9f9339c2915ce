"""C++ functions for the CPU: compiled once by the system's compiler, kept in a folder of the user, called by ctypes.

A source file holds ``extern "C"`` functions over plain pointers, so that nothing of torch is compiled and a build takes
a second or two. The compiler is ``$CXX``, else ``g++``. Without one, or where anything fails, :func:`library` gives
None and callers take their torch form; ``STEEPEST_NATIVE=0`` asks for that.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from threading import Lock

FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-w")
_THREADS = "-fopenmp"
_SECONDS = 120
_lock = Lock()


def library(*sources: Path) -> ctypes.CDLL | None:
    """The compiled library of C++ sources, read as one text in this order; None where it cannot be had.

    Args:
        sources: files of the package; a later one may use what an earlier one defines.

    Returns:
        The library, the same object at every call. A build that failed is not tried again in this process.
    """
    with _lock:
        return _library(sources)


@cache
def _library(sources: tuple[Path, ...]) -> ctypes.CDLL | None:
    command = shlex.split(os.environ.get("CXX") or "g++")
    compiler = shutil.which(command[0])
    if compiler is None or os.environ.get("STEEPEST_NATIVE") == "0":
        return None
    try:
        text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
        file = folder() / f"{sources[-1].stem}-{_fingerprint(text, command, Path(compiler).resolve())}.so"
        if file.is_file():
            try:
                return ctypes.CDLL(str(file))
            except OSError:  # cut short or foreign: built anew
                pass
        return ctypes.CDLL(str(file)) if _build(command, text, file) else None
    except (OSError, subprocess.SubprocessError):
        return None


def folder() -> Path:
    """Where libraries are kept: ``$XDG_CACHE_HOME/steepest`` or ``~/.cache/steepest``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "steepest"


def _build(compiler: list[str], text: str, file: Path) -> bool:
    """Compile into ``file``, which appears whole or not at all; without threads where the compiler knows no OpenMP."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=file.parent) as here:
        source, built = Path(here, "source.cpp"), Path(here, "built.so")
        source.write_text(text, encoding="utf-8")
        for flags in ((*FLAGS, _THREADS), FLAGS):
            command = [*compiler, *flags, "-o", str(built), str(source)]
            if subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False).returncode == 0:
                os.replace(built, file)
                return True
    return False


def _fingerprint(text: str, command: list[str], compiler: Path) -> str:
    """A word for source, flags, compiler and kind of processor: a folder may be shared between machines."""
    about = compiler.stat()
    parts = [text, *command, *FLAGS, _THREADS, str(compiler), str(about.st_mtime_ns), platform.machine(), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _processor() -> str:
    """What ``-march=native`` depends on."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    first = info.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    return "\n".join(line for line in first.splitlines() if line.startswith(wanted))
