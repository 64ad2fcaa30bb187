"""Watching: what a run logs, and what a person sees of it here, elsewhere and in a tracker.

track                   every event, once, into metrics.jsonl and to those who look
view, flags             how a run stands; what looks wrong, in words
panel, display          drawn live; plain lines without a terminal
status, watch, runs     the same of a run elsewhere, and of all runs
trackers, tracker_kinds, wandb_log, courier   TensorBoard and its like
"""
