"""Experiments, at the same relative path as their systems."""
