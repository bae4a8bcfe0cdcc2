"""Speed of lvae_jax, as ratios against references measured in the same run."""
