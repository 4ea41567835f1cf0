"""Spectral layers on plain tensors; this package knows nothing of images."""
