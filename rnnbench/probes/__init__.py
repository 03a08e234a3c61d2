"""What can be recorded of a model while it stands still: probes, and the signals that they declare."""
