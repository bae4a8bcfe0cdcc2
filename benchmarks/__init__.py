"""Measures the speed of lvae_jax, as ratios to references timed in the same run."""
