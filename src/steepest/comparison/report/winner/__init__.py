"""The winner of a comparison: chosen by inner validation, fitted on all rows, saved, asked for predictions.

Comes in: a Context and the Store of its cells, or the folder of a saved winner.
Goes out: a Winner, its folder, and the lines that use it.
"""
