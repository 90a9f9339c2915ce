"""What every test starts from: one thread, or as many as ``$STEEPEST_TEST_THREADS`` says, a known random state, this
tree in every process that a test starts, Triton kernels that are interpreted where there is no GPU, no telemetry; and
changes of values as a file may hold them."""

from __future__ import annotations

import copy
import gc
import importlib.util
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from steepest.testing._constructor import seed_torch

# Triton reads it once, when it is first imported, and many modules import triton: no test's order may decide.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Read once too, when a library of theirs is first imported: trainers of TRL would tell a server that they begin.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# Processes inherit it: they import the tree under test from any folder, not what happens to be installed.
_spec = importlib.util.find_spec("steepest")
assert _spec is not None
assert _spec.origin is not None
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(_spec.origin).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)

NASTY = [
    None, True, False, "", "x", "1", "0.5", -1, 0, 1, 2, 3, 99, 10**12, -(10**18), 10**400, 1e308, -1e-308, 1e-320,
    -0.5, math.nan, math.inf, [], {}, [[]], ["a"], [0.0], {"a": 1}, "os:system", "steepest_canary:net", "\ud800",
    "a\0b", "a\nb",
]  # fmt: skip
"""What may stand where something else belongs; ``steepest_canary`` is a module that nothing may import."""


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a tree, as its holder and its key there; long lists count as one value."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)) and len(tree[key]) < 100:
            yield from places(tree[key])


def change_somewhere(tree: Any, rng: random.Random, values: Sequence[Any] = NASTY) -> None:
    """One change of a random kind at a random place of a tree of dicts and lists."""
    holder, key = rng.choice(list(places(tree)))
    kind = rng.randrange(9)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder[key], (int, float)):
        holder[key] = rng.choice([holder[key] * 1.5, str(holder[key]), [holder[key]], -holder[key], holder[key] + 1])
    elif kind == 2:
        holder[key] = {"x": holder[key]}
    elif kind == 3 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif kind == 3:
        holder[rng.choice(["more", "Format", f"{key}_"])] = holder[key]
    elif kind == 4:
        other, place = rng.choice(list(places(tree)))
        other[place] = copy.deepcopy(holder[key])
    else:
        holder[key] = copy.deepcopy(rng.choice(values))


@pytest.fixture(scope="session")
def change() -> Callable[..., None]:
    """``change(tree, rng)`` makes one random change; ``values`` may stand where something else belongs."""
    return change_somewhere


@pytest.fixture(autouse=True)
def _known_start() -> None:
    """Threads and seed 0."""
    torch.set_num_threads(int(os.environ.get("STEEPEST_TEST_THREADS", "1")))
    seed_torch(0)


@pytest.fixture
def chrome(tmp_path: Path) -> Iterator[Any]:
    """A headless Chromium that keeps its console log; tests that need one skip where none is installed."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (
        "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
        "--disable-sync --no-first-run --disable-quic --disable-dev-shm-usage --hide-scrollbars "
        f"--user-data-dir={tmp_path / 'profile'}"
    ).split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield window
    window.quit()


def processor_seconds() -> float:
    """Processor time so far, of this process and of those it started and waited for."""
    return sum(os.times()[:4])


class Seconds:
    """Seconds of processor time a test, set-up included, written where ``$STEEPEST_SECONDS`` says, as JSON."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.tests: dict[str, dict[str, Any]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        before = processor_seconds()
        item.user_properties.append(("slugs", [marker.args[0] for marker in item.iter_markers("holds")]))
        item.user_properties.append(("slow", item.get_closest_marker("slow") is not None))
        item.user_properties.append(("began", before))
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            said = dict(report.user_properties)
            seconds = round(said["ended"] - said["began"], 3)
            self.tests[report.nodeid] = {"seconds": seconds, "slugs": said["slugs"], "slow": said["slow"]}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        yield
        item.user_properties.append(("ended", processor_seconds()))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):
            self.file.write_text(json.dumps(self.tests), encoding="utf-8")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What collecting leaves (modules, items: a million objects) stays to the end: no search for garbage walks it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_sessionfinish() -> None:
    """What libraries look for at the end is found."""
    gc.unfreeze()


def pytest_configure(config: pytest.Config) -> None:
    if file := os.environ.get("STEEPEST_SECONDS"):
        config.pluginmanager.register(Seconds(file))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A PostgreSQL server; where none is installed its tests are skipped, unless ``$STEEPEST_POSTGRES`` is set."""
    spec = importlib.util.spec_from_file_location(
        "_postgres", Path(__file__).parents[1] / "benchmarks" / "_postgres.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.programs()
    if found is None and not os.environ.get("STEEPEST_POSTGRES"):
        pytest.skip("no PostgreSQL here")
    server = module.PostgresServer(found)
    yield server
    server.stop()
