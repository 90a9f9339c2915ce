"""The public conformance suites: what each contract promises, as checks that a third party can run on its own class."""

from .objective import check_objective, objective_checks

__all__ = ["check_objective", "objective_checks"]
