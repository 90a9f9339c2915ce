"""Experiments on layers of graphs."""
