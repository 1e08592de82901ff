"""Recorded lengths of pairs whose text may not be passed on."""
