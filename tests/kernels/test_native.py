"""C++ on demand: it is built once, kept, shared by processes, and its absence is no error."""

from __future__ import annotations

import ctypes
import shutil

import pytest

from steepest.kernels import _native

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
TEXT = 'extern "C" double twice(double x) { return 2 * x; }\n'


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source file, and a cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("STEEPEST_NATIVE", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    file = tmp_path / "twice.cpp"
    file.write_text(TEXT)
    return file


def twice(library, x=21.0):
    library.twice.restype = ctypes.c_double
    library.twice.argtypes = [ctypes.c_double]
    return library.twice(x)


def again(source):
    """The library as another process would get it."""
    return _native._library.__wrapped__((source,))


@needs_compiler
def test_it_is_built_once_and_kept(source, monkeypatch):
    assert twice(_native.library(source)) == 42.0
    assert _native.library(source) is _native.library(source)
    kept = list(_native.folder().iterdir())
    assert [file.suffix for file in kept] == [".so"]  # and no remains of the build
    monkeypatch.setattr(_native, "_build", lambda *_: pytest.fail("built again"))
    assert twice(again(source)) == 42.0


@needs_compiler
def test_a_changed_source_is_another_library(source):
    again(source)
    source.write_text(TEXT.replace("2 *", "3 *"))
    assert twice(again(source)) == 63.0
    assert len(list(_native.folder().iterdir())) == 2


@needs_compiler
def test_sources_are_read_as_one(source, tmp_path):
    more = tmp_path / "more.cpp"
    more.write_text('extern "C" double four_times(double x) { return twice(twice(x)); }\n')
    library = _native.library(source, more)
    library.four_times.restype = ctypes.c_double
    library.four_times.argtypes = [ctypes.c_double]
    assert library.four_times(2.0) == 8.0


@needs_compiler
def test_a_broken_file_is_built_anew(source):
    again(source)
    (kept,) = _native.folder().iterdir()
    kept.unlink()
    kept.write_bytes(b"cut short")
    assert twice(again(source)) == 42.0


@needs_compiler
def test_a_compiler_without_openmp_serves(source, tmp_path, monkeypatch):
    script = tmp_path / "compiler"
    script.write_text('#!/bin/sh\ncase "$*" in *-fopenmp*) exit 1 ;; esac\nexec g++ "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    assert twice(again(source)) == 42.0


@pytest.mark.parametrize(("name", "value"), [("CXX", "no-such-compiler"), ("STEEPEST_NATIVE", "0")])
def test_without_a_compiler_there_is_none(source, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert again(source) is None


def test_wrong_source_gives_none(source):
    source.write_text("this is no C++")
    assert again(source) is None


def test_a_cache_that_cannot_be_written_gives_none(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert again(source) is None
