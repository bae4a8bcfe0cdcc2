"""A run: its set-up, the loop, devices and signals."""
