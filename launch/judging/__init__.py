"""Judging: metrics of a masked language model on evaluation rows, as accumulators of exact sums.

scored      what a model says at the targets: negative log likelihoods and ranks
passes      rows with something hidden, and what a model makes of them
metrics     metrics of targets and spans, each an `evaluate.Metric` over arrays
counts      metrics that count
words       words by their text, and how often the training rows hold them
terms       occurrences of listed terms
lengths     hidden runs of characters by their length
yardsticks  what counting makes of the occurrences of terms
groups      targets by corpus, by frequency of the word, by place in a name
fragments   how the tokenizer cuts words and terms
cutting     texts as rows of their own
corpora     the evaluation rows, and a general corpus beside them
probe       a linear classifier on frozen features
suite       all that is measured, in one call
build       a suite from a recipe
"""
