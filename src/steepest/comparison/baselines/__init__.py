"""Classical learners that a new objective or optimizer has to beat."""

from .base import Baseline, ConstantBaseline
from .descent import gaussian_mixture, gradient_descent, proximal_gradient
from .flexible import (
    AdaBoostBaseline,
    BoostingBaseline,
    ForestBaseline,
    KNNBaseline,
    MLPBaseline,
    SVMBaseline,
    TreeBaseline,
)
from .ladder import baseline_ladder, classical_learners, run_ladder
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
    "LogisticBaseline",
    "MLPBaseline",
    "RidgeBaseline",
    "SVMBaseline",
    "TreeBaseline",
    "baseline_ladder",
    "classical_learners",
    "gaussian_mixture",
    "gradient_descent",
    "proximal_gradient",
    "run_ladder",
]
