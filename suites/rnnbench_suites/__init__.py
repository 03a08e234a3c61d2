"""What to run: the suites that come with rnnbench, one TOML file each."""
