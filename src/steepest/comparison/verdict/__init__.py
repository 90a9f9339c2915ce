"""Fourth stage of a comparison, from finished cells to what they prove.

Comes in: a Context, and the Store of its cells.
Goes out: results: tiers, differences with intervals and tests, the sentence on top; or those over several data sets.
"""
