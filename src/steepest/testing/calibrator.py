"""Conformance of a calibrator, on logits of an over-confident classifier."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.calibrator import Calibrator
from ._common import close, refused
from ._constructor import constructor_checks
from ._suite import bound, run_all


def logits_of(
    rows: int = 240, classes: int = 4, scale: float = 4.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Logits that are ``scale`` times too large, and labels drawn from the probabilities without that factor."""
    generator = torch.Generator().manual_seed(0)
    true = 1.5 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    target = torch.multinomial(true.softmax(1), 1, generator=generator).squeeze(1)
    return (scale * true).to(dtype), target


@functools.cache
def _fitted(cls: type[Calibrator]) -> list[Calibrator]:
    instances = cls.instances()
    for calibrator in instances:
        assert calibrator.fit(*logits_of()) is calibrator, "fit returns self"
    return instances


def fitted(cls: type[Calibrator]) -> list[Calibrator]:
    """A copy of each instance, fitted on ``logits_of()``."""
    return copy.deepcopy(_fitted(cls))  # type: ignore[arg-type]


def check_declaration(cls: type[Calibrator]) -> None:
    """A name, a docstring with an example, instances to check."""
    assert cls.name.isidentifier() and cls.name == cls.name.lower(), "name: snake_case"
    assert cls.__doc__ and "Example" in cls.__doc__, "docstring with an example"
    assert cls.instances(), "instances"


def check_probabilities(cls: type[Calibrator]) -> None:
    """Rows are probabilities, in the width of the logits; half logits give float32; each row stands for itself."""
    logits, _ = logits_of()
    for calibrator in fitted(cls):
        p = calibrator.transform(logits)
        assert p.shape == logits.shape and not p.requires_grad
        assert bool((p >= 0).all()), "negative"
        close(p.sum(1), torch.ones(len(logits)), 1e-5, "rows sum to 1")
        assert calibrator.transform(logits.bfloat16()).dtype == torch.float32, "half logits"
        close(calibrator.transform(logits[5:6]), p[5:6], 1e-6, "a row alone")


def check_call(cls: type[Calibrator]) -> None:
    """A calibrator is called as it transforms."""
    assert cls.forward is Calibrator.forward, "forward is transform; what differs has a name of its own"
    logits, _ = logits_of()
    for calibrator in fitted(cls):
        assert torch.equal(calibrator(logits), calibrator.transform(logits)), (
            "a call gives something else than transform"
        )


def check_decision(cls: type[Calibrator]) -> None:
    """Where it is declared, the most probable class is that of the largest logit."""
    if cls.keeps_decision:
        logits, _ = logits_of()
        for calibrator in fitted(cls):
            p = calibrator.transform(logits)
            best = p.gather(1, logits.argmax(1, keepdim=True)).squeeze(1)
            assert bool((best >= p.max(1).values - 1e-9).all()), "another class became the most probable"


def check_extremes(cls: type[Calibrator]) -> None:
    """Logits of ±1e4 give finite probabilities."""
    for calibrator in fitted(cls):
        wild = torch.tensor([[1e4, -1e4, 0.0, 0.0], [-1e4] * 4, [0.0] * 4], dtype=torch.float64)
        p = calibrator.transform(wild)
        assert bool(torch.isfinite(p).all()), "not finite"


def check_helps(cls: type[Calibrator]) -> None:
    """On logits that are four times too large, fresh rows get a lower negative log-likelihood."""
    logits, target = logits_of(480)
    half = len(logits) // 2
    for calibrator in cls.instances():
        p = calibrator.fit(logits[:half], target[:half]).transform(logits[half:])
        rows = torch.arange(half)
        own = -p[rows, target[half:]].clamp_min(1e-30).log().mean()
        raw = torch.nn.functional.cross_entropy(logits[half:], target[half:])
        assert own < raw, f"negative log-likelihood {own:.3g}, uncalibrated {raw:.3g}"


def check_state_dict(cls: type[Calibrator]) -> None:
    """What was fitted goes through ``state_dict``; the same fit gives the same bits."""
    logits, target = logits_of()
    for first, second, third in zip(fitted(cls), cls.instances(), cls.instances()):
        wanted = first.transform(logits)
        assert torch.equal(second.fit_transform(logits, target), wanted), "other bits from the same fit"
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        third.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(third.transform(logits), wanted), "loaded, other numbers"


def check_bad_input(cls: type[Calibrator]) -> None:
    """Wrong input is refused; transforming before fitting too."""
    logits, target = logits_of()
    for calibrator in cls.instances():
        try:
            calibrator.transform(logits)
        except RuntimeError as error:
            assert "fit" in str(error)
        else:
            raise AssertionError("transform before fit was not refused")
        refused("a list", calibrator.fit, logits.tolist(), target)
        refused("integer logits", calibrator.fit, logits.long(), target)
        refused("a target too short", calibrator.fit, logits, target[:-1])
        refused("a label out of range", calibrator.fit, logits, target + 9)
        refused("no rows", calibrator.fit, logits[:0], target[:0])
        refused("NaN", calibrator.fit, logits * float("nan"), target)


CHECKS: tuple[Callable[[type[Calibrator]], None], ...] = (
    check_declaration, check_probabilities, check_call, check_decision, check_extremes, check_helps, check_state_dict,
    check_bad_input,
    *constructor_checks(lambda cls: cls.instances()),
)  # fmt: skip


def calibrator_checks(cls: type[Calibrator]) -> list[tuple[str, Callable[[], None]]]:
    """``(name, check)`` for every check that ``cls`` is not exempt from."""
    return bound(CHECKS, cls)


def check_calibrator(cls: type[Calibrator]) -> None:
    """Run the whole suite on a class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    run_all(calibrator_checks(cls), cls)
