"""Trained models for others: export, model cards, hubs, and checkpoints of other projects."""
