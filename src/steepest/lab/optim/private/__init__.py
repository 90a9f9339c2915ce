"""Experiments of ``steepest.optim.private``."""
