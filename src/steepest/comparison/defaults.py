"""Defaults that the command line shows before anything slow is imported."""

OUT = "steepest-runs"
"""Where run folders live."""

BUDGET = "10m"
"""The time that a comparison may take."""

MODEL = "auto"
"""The network: chosen by what there is time for."""
