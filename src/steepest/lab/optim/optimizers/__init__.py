"""Experiments of ``steepest.optim.optimizers``."""
