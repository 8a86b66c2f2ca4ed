"""Rows, text and batches: from files to arrays (floor 2)."""
