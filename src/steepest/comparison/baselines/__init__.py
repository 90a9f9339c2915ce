"""Classical learners that a new objective or optimizer has to beat."""

from .base import Baseline, ConstantBaseline
from .boosting import BoostingBaseline, LightGBMBaseline, Validation, has_lightgbm
from .descent import gaussian_mixture, gradient_descent, proximal_gradient
from .flexible import (
    AdaBoostBaseline,
    ForestBaseline,
    KNNBaseline,
    MLPBaseline,
    SVMBaseline,
    TreeBaseline,
)
from .ladder import baseline_ladder, classical_learners, run_ladder, tuned_learners
from .linear import KernelRidgeBaseline, LassoBaseline, LDABaseline, LogisticBaseline, RidgeBaseline

__all__ = [
    "AdaBoostBaseline",
    "Baseline",
    "BoostingBaseline",
    "ConstantBaseline",
    "ForestBaseline",
    "KNNBaseline",
    "KernelRidgeBaseline",
    "LDABaseline",
    "LassoBaseline",
    "LightGBMBaseline",
    "LogisticBaseline",
    "MLPBaseline",
    "RidgeBaseline",
    "SVMBaseline",
    "TreeBaseline",
    "Validation",
    "baseline_ladder",
    "classical_learners",
    "gaussian_mixture",
    "gradient_descent",
    "has_lightgbm",
    "proximal_gradient",
    "run_ladder",
    "tuned_learners",
]
