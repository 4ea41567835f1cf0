"""Gradient rules: the Loewner matrix of a derivative."""
