"""Layers, heads and small networks."""
