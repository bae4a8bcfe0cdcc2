"""Runs of lvae_jax: a short module per data set, each started with `python -m experiments.NAME`."""
