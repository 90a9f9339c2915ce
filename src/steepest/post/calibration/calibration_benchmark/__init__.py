"""Measures of calibration, temperature scaling, and the study of which measures rank classifiers alike."""

from __future__ import annotations

from .measures import BINS, classwise_ece, ece, ece_equal_mass, kde_calibration_error, ks_calibration_error, mce, mmce
from .study import TemperatureCalibrator, calibration_report, calibration_study, temperature_scale

__all__ = [
    "BINS",
    "TemperatureCalibrator",
    "calibration_report",
    "calibration_study",
    "classwise_ece",
    "ece",
    "ece_equal_mass",
    "kde_calibration_error",
    "ks_calibration_error",
    "mce",
    "mmce",
    "temperature_scale",
]
