"""Cleaning: the rules that `clean` puts together.

rules    what a rule is, and those that need one call
layout   ligatures, hyphens, running heads, white space
names    international domain names and their labels
"""
