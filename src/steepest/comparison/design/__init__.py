"""Second stage of a comparison, from data to a design that is fixed before the first training.

Comes in: a table or images, and the request.
Goes out: a Context (settings, folds, trials, tensors of each part of a fold), its jobs, and a plan of what they cost.
"""
