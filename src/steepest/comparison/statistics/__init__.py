"""How sure a score is, how to choose a model, and whether one method beats another."""

from .across import (
    FriedmanResult,
    WilcoxonResult,
    average_ranks,
    critical_difference,
    friedman,
    power_message,
    single_ranks,
    wilcoxon_holm,
)
from .bootstrap import bootstrap_632, bootstrap_632_plus, no_information_error, point_632, point_632_plus
from .five_by_two import (
    combined_f_5x2,
    combined_ftest_5x2cv,
    five_by_two_differences,
    paired_t_5x2,
    paired_ttest_5x2cv,
)
from .fixed_test_set import bootstrap_difference, bootstrap_metric_difference
from .holdout import holdout_interval, proportions_test
from .leaderboard import Elo, elo, improvability, win_rates
from .looks import ALPHA, LEAST_FOR_INTERVAL, LEAST_FOR_TEST, Look, next_look
from .multiplicity import BETTER, SAME, WORSE, holm, tiers
from .practical import PROBABILITIES, Practical, bayesian_correlated_ttest, practical
from .resampled import corrected_resampled_ttest
from .results import BootstrapError, BootstrapResult, PairedResult, TestResult
from .same_rows import cochran_q, mcnemar_test
from .selection import NestedResult, nested_cv, one_standard_error_rule

__all__ = [
    "ALPHA",
    "BETTER",
    "LEAST_FOR_INTERVAL",
    "LEAST_FOR_TEST",
    "SAME",
    "WORSE",
    "BootstrapError",
    "BootstrapResult",
    "Elo",
    "FriedmanResult",
    "Look",
    "NestedResult",
    "PROBABILITIES",
    "PairedResult",
    "Practical",
    "TestResult",
    "WilcoxonResult",
    "average_ranks",
    "bayesian_correlated_ttest",
    "bootstrap_632",
    "bootstrap_632_plus",
    "bootstrap_difference",
    "bootstrap_metric_difference",
    "cochran_q",
    "combined_f_5x2",
    "combined_ftest_5x2cv",
    "corrected_resampled_ttest",
    "critical_difference",
    "elo",
    "five_by_two_differences",
    "friedman",
    "holdout_interval",
    "holm",
    "improvability",
    "mcnemar_test",
    "nested_cv",
    "next_look",
    "no_information_error",
    "one_standard_error_rule",
    "paired_t_5x2",
    "paired_ttest_5x2cv",
    "point_632",
    "point_632_plus",
    "power_message",
    "practical",
    "proportions_test",
    "single_ranks",
    "tiers",
    "win_rates",
    "wilcoxon_holm",
]
