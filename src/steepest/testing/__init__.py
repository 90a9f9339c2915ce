"""The public conformance suites: what each contract promises, as checks that a third party can run on its own class."""

from .calibrator import calibrator_checks, check_calibrator
from .loss import check_loss, loss_checks
from .method import check_method, method_checks
from .objective import check_objective, objective_checks

__all__ = [
    "calibrator_checks",
    "check_calibrator",
    "check_loss",
    "check_method",
    "check_objective",
    "loss_checks",
    "method_checks",
    "objective_checks",
]
