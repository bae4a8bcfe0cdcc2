"""Compiler options: what a backend knows is kept, what it does not is dropped."""

import jax
import jax.numpy as jnp
import pytest

from lvae_jax import compilation


@pytest.mark.parametrize("kind", list(compilation.CPU_OPTIONS))
def test_a_program_compiles_with_the_options_of_each_kind(kind):
    options = compilation.compiler_options(kind)
    double = jax.jit(lambda x: 2 * x, compiler_options=options)
    assert float(double(jnp.float32(1.5))) == 3.0


def test_an_option_that_the_backend_does_not_know_is_dropped(monkeypatch):
    known, unknown = ("xla_backend_optimization_level", "1"), ("xla_of_another_version", True)
    with pytest.raises(jax.errors.JaxRuntimeError):  # the reason why it has to be
        jax.jit(jnp.negative).lower(0.0).compile(compiler_options=dict([unknown]))
    monkeypatch.setitem(compilation.CPU_OPTIONS, "once", dict([known, unknown]))
    assert compilation.compiler_options("once") == dict([known])


def test_other_backends_get_no_options(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compilation.compiler_options("loop") == {}
