"""Optimizers, and techniques that change the update."""
