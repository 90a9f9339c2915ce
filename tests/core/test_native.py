"""C++ on demand: it is built once, kept, shared by processes, and its absence is no error."""

from __future__ import annotations

import ctypes
import shutil

import pytest
import torch

from steepest.core import native

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
    return native._library.__wrapped__((source,), native.level())


@needs_compiler
def test_it_is_built_once_and_kept(source, monkeypatch):
    assert twice(native.library(source)) == 42.0
    assert native.library(source) is native.library(source)
    kept = list(native.folder().iterdir())
    assert [file.suffix for file in kept] == [".so"]  # and no remains of the build
    monkeypatch.setattr(native, "_build", lambda *_: pytest.fail("built again"))
    assert twice(again(source)) == 42.0


@needs_compiler
def test_a_changed_source_is_another_library(source):
    again(source)
    source.write_text(TEXT.replace("2 *", "3 *"))
    assert twice(again(source)) == 63.0
    assert len(list(native.folder().iterdir())) == 2


@needs_compiler
def test_sources_are_read_as_one(source, tmp_path):
    more = tmp_path / "more.cpp"
    more.write_text('extern "C" double four_times(double x) { return twice(twice(x)); }\n')
    library = native.library(source, more)
    library.four_times.restype = ctypes.c_double
    library.four_times.argtypes = [ctypes.c_double]
    assert library.four_times(2.0) == 8.0


@needs_compiler
def test_an_included_file_is_part_of_the_source(source):
    header = source.with_name("factor.h")
    header.write_text("constexpr double FACTOR = 2;\n")
    source.write_text('#include "factor.h"\n' + TEXT.replace("2 *", "FACTOR *"))
    assert twice(again(source)) == 42.0
    header.write_text("constexpr double FACTOR = 3;\n")
    assert twice(again(source)) == 63.0


@needs_compiler
def test_a_broken_file_is_built_anew(source):
    again(source)
    (kept,) = native.folder().iterdir()
    kept.unlink()
    kept.write_bytes(b"cut short")
    assert twice(again(source)) == 42.0


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Make ``$CXX`` a g++ that refuses what a shell pattern matches, and notes how it was called at last."""

    def refuse(pattern):
        script = tmp_path / "compiler"
        refusal = f'case "$*" in {pattern}) exit 1 ;; esac'
        script.write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/called\n{refusal}\nexec g++ "$@"\n')
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return tmp_path / "called"

    return refuse


@needs_compiler
def test_a_compiler_without_openmp_serves(source, compiler):
    called = compiler("*-fopenmp*")
    assert twice(again(source)) == 42.0
    target = next((part for part in called.read_text().split() if part.startswith("-march=")), "")
    assert target == (f"-march={native.LEVELS[native.level()]}" if native._x86_64() else "")


@needs_compiler
def test_a_compiler_that_knows_no_levels_builds_the_lowest(source, compiler):
    called = compiler("*x86-64-v*")
    assert twice(again(source)) == 42.0
    assert "-fopenmp" in called.read_text()


@pytest.mark.parametrize("name", native.LEVELS)
def test_the_level_follows_the_variable_as_far_as_the_processor_goes(name, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", name)
    assert native.level() == (name if name in native.levels() else native.levels()[-1])


@pytest.mark.parametrize("value", [None, "AVX2", "sse"])
@pytest.mark.parametrize("torchs", ["DEFAULT", "AVX2", "AVX512", "SVE256"])
def test_without_the_variable_the_level_is_that_of_torch(value, torchs, monkeypatch):
    """As in torch, a value that is none of the names counts for nothing."""
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    if value is not None:
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", value)
    monkeypatch.setattr(native, "levels", lambda: tuple(native.LEVELS))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: torchs)
    assert native.level() == ("default" if torchs == "SVE256" else torchs.lower())


@pytest.mark.parametrize(
    ("machine", "avx2", "avx512", "wanted"),
    [
        ("x86_64", False, False, ("default",)),
        ("AMD64", True, False, ("default", "avx2")),
        ("x86_64", True, True, ("default", "avx2", "avx512")),
        ("aarch64", True, True, ("default",)),
    ],
)
def test_levels_are_those_of_the_processor(machine, avx2, avx512, wanted, monkeypatch):
    monkeypatch.setattr(native.platform, "machine", lambda: machine)
    monkeypatch.setattr(native, "is_avx2_supported", lambda: avx2)
    monkeypatch.setattr(native, "is_avx512_supported", lambda: avx512)
    assert native.levels.__wrapped__() == wanted
    (*_, last) = native._flags("default")
    assert ("-march=x86-64" in last) == (machine != "aarch64")


@needs_compiler
def test_each_level_has_a_build_of_its_own(source, monkeypatch):
    width = "\n#if defined(__AVX512F__)\n8\n#elif defined(__AVX__)\n4\n#else\n2\n#endif\n"
    source.write_text(TEXT.replace("2 *", f"{width}*"))
    values = {"default": 2.0, "avx2": 4.0, "avx512": 8.0}
    for name in native.levels():
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", name)
        assert twice(native.library(source), 1.0) == values[name]
    kept = sorted(file.name.rsplit("-", 1)[0] for file in native.folder().iterdir())
    assert kept == sorted(f"twice-{name}" for name in native.levels())


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
