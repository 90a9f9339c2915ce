"""Experiments of ``steepest.optim.distributed``."""
