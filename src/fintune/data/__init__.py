"""Rows: read, checked, split, audited."""
