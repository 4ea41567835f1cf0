"""Factorisations: solved on every core, probed, and retried."""
