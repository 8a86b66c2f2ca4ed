"""Rows that the package generates itself: `recipe:NAME` names a file of this folder."""
