"""Vocabulary: terms that a tokenizer cuts.

mine, census, phrases    propose terms, by counts that need bounded memory
extend, scores           give them pieces of their own
fragments, cuts          what that did to a corpus
identity                 the version and the hash of a tokenizer
"""
