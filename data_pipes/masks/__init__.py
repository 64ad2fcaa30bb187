"""Masks: the parts of `masking`.

draws      random numbers by key, without state
units      what may be hidden: words, pieces, characters, with or without public suffixes
choice     which of them are
spans      runs of them
suffixes   public suffixes of domain names
weights    listed terms, hidden more often
"""
