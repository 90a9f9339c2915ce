"""The names under which two experiments import what chooses the learning rates of stacked arms."""

from .settings import UNREPORTED, Split, best_rates

__all__ = ["UNREPORTED", "Split", "best_rates"]
