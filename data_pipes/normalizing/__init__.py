"""Normalising: what `normalize` puts together.

changes      replaced spans of a text, from which the new text and the align map are made
terms        terms of several words become one: term_rules reads their files, term_words spells them and
             term_search finds them
keys         the strict reading of a rule file
shipped/     rule files that come along
"""
