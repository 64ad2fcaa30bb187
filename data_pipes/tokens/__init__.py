"""Tokens: pieces and where words and sentences begin.

words        whole columns of text at once
lexicon      each distinct stretch of text is tokenised once, where that is exact
boundaries   word starts and sentence starts
characters   classes of code points; documents as code points
"""
