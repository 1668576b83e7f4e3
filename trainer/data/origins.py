"""Where the rows of built pairs come from: what `trainer build-pairs` writes as `origins` beside each pair."""

from __future__ import annotations

KNOWN = "known"
"""A duplicate that the tickets themselves name."""
SAID = ("duplicates", "resolution", "title-body", "notes")
"""The sources of labels in what tickets say of themselves, and the origin of their rows; but a pair of known duplicates
is KNOWN."""
BY_WORDS = ("tfidf", "both")
"""Taken from a band of TF-IDF cosines."""
BY_MODEL = "model"
"""A negative that an encoder takes for a positive."""
ALTERED = ("deletion", "edit", "translation")
"""A train pair again, its second text altered."""
ORIGINS = frozenset({KNOWN, *SAID, *BY_WORDS, "encoder", BY_MODEL, *ALTERED})
