"""Pictures drawn from evidence, one a file."""
