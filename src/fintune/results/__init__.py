"""Finished runs: written, read again, compared, reported."""
