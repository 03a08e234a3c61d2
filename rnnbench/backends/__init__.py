"""The frameworks: operations, devices and training steps; all framework code of rnnbench lives here."""
