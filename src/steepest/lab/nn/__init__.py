"""Experiments on layers, at the same relative path as their systems."""
