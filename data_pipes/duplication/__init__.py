"""Duplication: texts twice, exactly (hashes, duplicates, runs) or nearly (near, shingles, signatures)."""
