"""Experiments of ``steepest.optim.mup``."""
