"""Third stage of a comparison, from a design to finished cells.

Comes in: a Context, and its jobs.
Goes out: a Store: of each cell its scores inside and on the test rows, its cost, and what the model says of them.
"""
