"""Rows, tokens and batches: a file for what all sources share, then a file a source."""
