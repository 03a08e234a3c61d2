"""What to make of results: pure functions from records and signals to tables, pictures and findings."""
