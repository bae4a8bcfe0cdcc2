"""Runs of lvae_jax: one short module a data set, each started with `python -m experiments.NAME`."""
