"""Whether a small transformer is unstable at high rates as large ones are, and normalised queries and keys help.

Set-up of the claim: transformers on the characters of tiny Shakespeare, two widths, seven rates. What is changed:
widths are 16 and 32 with 2 blocks and heads of size 8, context 32, batches of 8 and 120 steps (card: 300 to 500), as
all rates and seeds must take little time; the rates are 0.001 to 1 (card: 0.0001 to 0.1), as so small a network is best
near 0.01 and the grid must have a decade above where the plain one fails. As in the publication: AdamW with betas 0.9
and 0.95, gradients clipped at 1, a twentieth of the run as warm-up, a cosine down to a hundredth; no decay.

Claims of the card: the sensitivity to the rate is lower with normalised queries and keys ("by a factor of 2 or so": the
effect is log2 of the ratio, size 1); without them the largest attention logit grows with the rate (log10 of that at the
highest over that at the lowest, size 1), and with them it is smaller at the highest (log10, size 1). All are means over
the widths. Ours: at the best rate normalised queries and keys cost at most 0.05 nats.

The baseline is fair: both arms have the same rates, windows and initial weights; at its best rate each width of the
plain one must come below 3 nats, which every seed checks.

That the sensitivity is lower is not shown. What may hide it, and was not checked: 120 steps are few, so that low rates,
which end alike in both arms, take part in the mean; and at the highest rate both fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ....watch.stability.small_scale_proxies import QKNorm, StabilityGrid, StabilitySweep
from ...experiment import Claim, Evidence
from ...figures import arms_figure
from ...optim.schedules._shakespeare import CONTEXT, characters
from ...settings import check_sane
from ._transformer import Block, Transformer

SEEDS = 5
WIDTHS, HEAD, STEPS, ROWS, WINDOW, SANITY = (16, 32), 8, 120, 8, 10, -3.0
RATES = tuple(10 ** (k / 2) for k in range(-6, 1))
PLAIN, NORMED = "plain", "normalised queries and keys"
CLAIMS = (
    Claim("sensitivity", "normalised queries and keys lower the sensitivity to the rate (log2 of the ratio)", size=1.0),
    Claim("growth", "without them the largest logit grows with the rate (log10)", size=1.0),
    Claim("bounded", "with them it is smaller at the highest rate (log10)", size=1.0),
    Claim("cost", "at the best rate they cost at most 0.05 nats", 0.05, threshold=0.05, greater=False, ours=True),
)


def run(scale: str, seed: int) -> Evidence:
    """Losses and largest logits over rates and widths, of both."""
    full = scale == "full"
    steps, rows_of_batch = (STEPS, ROWS) if full else (4, 2)
    text, _ = characters(not full)
    order = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - CONTEXT, (steps + 1, rows_of_batch, 1), generator=order)
    windows = text[starts + torch.arange(CONTEXT + 1)]

    def loss(outputs_of: Callable[..., Any], step: int) -> Tensor:
        logits = outputs_of(windows[step, :, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), windows[step, :, 1:].flatten())

    grids: dict[str, StabilityGrid] = {}
    rows: list[dict[str, Any]] = []
    for arm, norm in ((PLAIN, None), (NORMED, QKNorm)):
        sweep = StabilitySweep(
            partial(_model, norm, full),
            loss,
            RATES if full else (1e-3, 1e-2, 1e-1),
            WIDTHS if full else (8, 16),
            steps=steps,
            warmup=steps // 20,
            floor=0.01,
            measures={"logit": partial(largest_logit, windows=windows[-1, :, :-1])},
            window=min(WINDOW, steps),
            seed=seed,
        )
        grid = grids[arm] = sweep.run()
        for width, losses, logits in zip(grid.widths, grid.end_losses.tolist(), grid.measured["logit"].tolist()):
            rows += [
                {"arm": f"{arm}, width {width}", "rate": rate, "loss": min(end, 99.0), "largest logit": min(logit, 1e9)}
                for rate, end, logit in zip(grid.lrs, losses, logits)
                if end == end  # of one that is not finite there is no row
            ]
        rows += [
            {"arm": f"{arm}, width {width}", "sensitivity": value}
            for width, value in zip(grid.widths, grid.sensitivity.tolist())
        ]
    if full:
        for width, best in zip(WIDTHS, grids[PLAIN].end_losses.nan_to_num(99.0).amin(1).tolist()):
            check_sane(f"loss of the plain one of width {width}, negative", -best, SANITY)
    best = {arm: grid.end_losses.nan_to_num(99.0).amin(1) for arm, grid in grids.items()}
    logits = {arm: grid.measured["logit"].nan_to_num(1e9).clamp(max=1e9).log10() for arm, grid in grids.items()}
    ratio = grids[PLAIN].sensitivity / grids[NORMED].sensitivity
    effects = {
        "sensitivity": float(ratio.log2().mean()),
        "growth": float((logits[PLAIN][:, -1] - logits[PLAIN][:, 0]).mean()),
        "bounded": float((logits[PLAIN][:, -1] - logits[NORMED][:, -1]).mean()),
        "cost": float((best[NORMED] - best[PLAIN]).mean()),
    }
    return Evidence(rows, effects)


def _model(norm: Callable[[int], nn.Module] | None, full: bool, width: int) -> Transformer:
    model = Transformer(2, width, width // HEAD if full else 2, norm_of_heads=norm)
    if not full:  # drawn in float64, which is alike on each processor
        for p in model.double().parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=width**-0.5)
    return model


def largest_logit(model: Transformer, windows: Tensor) -> float:
    """The largest size of an attention logit, over all pairs of positions that attend."""
    x = model.symbols(windows) + model.places.weight[: windows.shape[1]]
    largest = 0.0
    for block in model.blocks:
        assert isinstance(block, Block)
        q, k = block.queries_and_keys(block.attention_norm(x))
        logits = (q @ k.mT / q.shape[-1] ** 0.5).tril()
        largest = max(largest, float(logits.abs().amax()))
        x = block(x)
    return largest


def figure(evidence: Sequence[Evidence]) -> Figure:
    """The loss over the rate."""
    by_rate = [Evidence([row for row in of_seed.rows if "rate" in row], {}) for of_seed in evidence]
    drawn: Figure = arms_figure(by_rate, x="rate", y="loss")
    drawn.axes[0].set_xscale("log")
    return drawn
