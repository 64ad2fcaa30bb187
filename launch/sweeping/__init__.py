"""Sweeping: one recipe with several values, run after run.

axes      what is varied: lists of values and ranges, told from values that are lists themselves
jobs      each combination as a request with its plan, and what all of them cost
state     sweep.json: which runs there are and how each ended
runner    one after the other or several at once, each a `maskwright run` of its own
search    values that are drawn, by Optuna
ranking   which run is best, and by how much
"""
