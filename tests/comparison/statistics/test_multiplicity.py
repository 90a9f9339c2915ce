import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from steepest.comparison.statistics import PairedResult, holm, tiers


@pytest.mark.parametrize("count", [1, 4, 11])
def test_holm_agrees_with_statsmodels(count):
    pvalues = np.random.default_rng(count).integers(0, 40, count) / 400  # ties and zeros among them
    assert holm(pvalues) == pytest.approx(multipletests(pvalues, method="holm")[1], abs=1e-15)


@pytest.mark.holds("model-evaluation", 7)
def test_holm_of_the_card():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_rejects_exactly_what_the_step_down_procedure_rejects():
    generator = np.random.default_rng(0)
    for count in range(1, 13):
        pvalues = generator.random(count) ** 4
        rejected = set()
        for step, place in enumerate(np.argsort(pvalues)):
            if pvalues[place] > 0.05 / (count - step):
                break
            rejected.add(int(place))
        assert set(np.flatnonzero(holm(pvalues) <= 0.05).tolist()) == rejected


def test_holm_of_none_and_refusals():
    assert holm([]).shape == (0,)
    for bad in ([0.1, np.nan], [1.1], [-0.1]):
        with pytest.raises(ValueError, match=r"pvalues: expected .*numbers"):
            holm(bad)


def result(mean):
    return PairedResult(mean, mean - 1, mean + 1, 0.5, 4, 0.1, 0.3)


def test_tiers_follow_direction_and_level():
    results, adjusted = [result(0.2), result(-0.2), result(0.2), result(0.0)], [0.05, 0.01, 0.051, 0.0]
    assert tiers(results, adjusted) == ["better", "worse", "not told apart", "not told apart"]
    assert tiers(results, adjusted, greater_is_better=False)[:2] == ["worse", "better"]
    assert tiers(results, adjusted, alpha=0.02)[0] == "not told apart"
    with pytest.raises(ValueError, match=r"holm_p: expected numbers of shape \(4,\)"):
        tiers(results, [0.1])
