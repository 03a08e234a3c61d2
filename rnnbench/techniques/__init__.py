"""Stabilization techniques, by the stage of training at which they act."""
