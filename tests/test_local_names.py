"""Names of local variables don't count in the hash over a system's code; everything else does."""

import re

import pytest

from steepest.sources import _python

SCALED = """
import math
def scaled(values, *, by=1.0, **rest):
    largest = max(values)
    factor = by / math.fabs(largest)
    return [factor * value for value in values], rest
"""


def code(text):
    return _python(text)[0]


def renamed(text, names):
    """Every word of the text that has another name in ``"old>new old>new"``, at once."""
    new = dict(pair.split(">") for pair in names.split())
    return re.sub(r"\b[a-z_]+\b", lambda word: new.get(word[0], word[0]), text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (SCALED, "largest>greatest value>v factor>largest"),
        ("def f(x):\n    for i, (a, *b) in x: a += i\n    else: del b", "i>j a>b b>c"),
        ("def f(x):\n    with x as a: pass\n    return a", "a>b"),
        ("def f(x):\n    try: x()\n    except OSError as a: print(a)", "a>b"),
        ("def f(x):\n    match x:\n        case [a, *b] | {1: a, **b}: return a, b", "a>b b>a"),
        ("def f(x):\n    a = 1\n    def g(y):\n        nonlocal a\n        a += y\n    return g", "a>b"),
        ("def f(x):\n    if any((a := v) for v in x): return a", "a>v v>a"),
        ("def f(x):\n    a = 2\n    return lambda y, z=a: y + a + z", "a>b"),
        ("def f(x):\n    a = 1\n    class C:\n        b = a\n        def g(self): return a", "a>c"),
        ("A = {k: [v for v in w] for k, w in B}", "k>v v>w w>k"),
        ("async def f(x):\n    return [a async for a in x]", "a>b"),
    ],
)
def test_a_local_variable_may_have_another_name(text, names):
    assert renamed(text, names) != text
    assert code(renamed(text, names)) == code(text)


@pytest.mark.parametrize(
    "inside",
    [
        "return [a for a in x]",
        "def g():\n        a = 1\n        return a",
        "class C:\n        a = 2\n        def g(self): return OUTER",
        "def g():\n        import a\n        return a",
        "def g():\n        global a\n        return a",
        "def g():\n        def a(): return 1\n        return a",
    ],
)
def test_each_scope_has_its_own_variables(inside):
    outer = [f"def f(x):\n    OUTER = x\n    {inside}\n    return OUTER".replace("OUTER", name) for name in "ab"]
    assert code(outer[0]) == code(outer[1])


@pytest.mark.parametrize("names", ["values>x", "by>x", "rest>x", "math>x", "fabs>x", "scaled>x"])
def test_names_that_others_see_count(names):
    assert code(renamed(SCALED, names)) != code(SCALED)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("def f(x):\n    return lambda a: a", "a>b"),
        ("def f(x):\n    global a\n    a = x", "a>b"),
        ("def f(x):\n    def a(): return x\n    return a", "a>b"),
        ("def f(x):\n    from m import a\n    return a", "a>b"),
        ("a = 1\ndef f(): return a", "a>b"),
        ("class C:\n    a = 1", "a>b"),
        ("def f():\n    class C:\n        a = 1\n    return C", "a>b"),
        ("def f(x):\n    a = x\n    return x(a=a)", "a>b"),
        ("def f(x):\n    a = x\n    return x.a", "a>b"),
        ("def f(x):\n    a = x\n    return f'{a=}'", "a>b"),
        ("def f(x):\n    return [a for a in x], a", "a>b"),
    ],
)
def test_what_is_no_local_variable_counts(text, names):
    assert code(renamed(text, names)) != code(text)


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        (SCALED, "1.0", "2.0"),
        (SCALED, "by /", "by *"),
        (SCALED, "factor * value", "value * factor"),
        (SCALED, "factor * value", "largest * value"),
        ("def f(x):\n    a, b = x\n    return a - b", "a - b", "b - a"),
        ("def f(x):\n    a = x\n    return lambda b: a", "lambda b", "lambda a"),
        ("def f(x):\n    a, b = x\n    return [a for b in x]", "[a", "[b"),
        ("def f(x):\n    a = 1\n    def g(y):\n        nonlocal a\n        a = y\n    return a", "nonlocal a", "pass"),
        (
            "def f():\n    a = b = 1\n    def g():\n        nonlocal a\n        a = 2",
            "l a\n        a",
            "l b\n        b",
        ),
        ("def f(a, b):\n    a += 1\n    return a", "a += 1\n    return a", "b += 1\n    return b"),
        ("def f():\n    b = 1\n    class C:\n        a = 2\n        def g(self): return b", "return b", "return a"),
    ],
)
def test_another_computation_counts(text, old, new):
    assert old in text
    assert code(text.replace(old, new)) != code(text)
