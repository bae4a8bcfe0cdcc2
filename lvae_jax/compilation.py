"""XLA's options by kind of program, restricted to those that the backend knows."""

import functools

import jax
import jax.numpy as jnp

Options = dict[str, str | bool]

# Names of XLA's debug options, which come and go with jaxlib versions.
CPU_OPTIONS: dict[str, Options] = {
    # Runs once, so compilation takes most of the time, mainly LLVM's passes over every draw.
    "once": {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True},
    # Use whole AVX-512 registers, if the processor has them; LLVM's default is half of them.
    "loop": {"xla_cpu_prefer_vector_width": "512"},
    # Do not fuse the decoder's products with the sum over pixels: exponentials and logarithms are
    # slower in such a kernel.
    "likelihood": {
        "xla_cpu_prefer_vector_width": "512",
        "xla_cpu_experimental_ynn_fusion_type": "",
    },
}
"""Options by kind: "once" for a program that runs once, "loop" for training, and "likelihood"."""


def compiler_options(kind: str) -> Options:
    """Options for `jax.jit(..., compiler_options=...)` on the default backend.

    Args:
      kind: the kind of program, one of `CPU_OPTIONS`.

    Returns:
      The options of that kind that this backend and jaxlib know; none on backends other than CPU.

    Raises:
      KeyError: there is no such kind.
    """
    options = CPU_OPTIONS[kind]
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in options.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: str | bool) -> bool:
    """Whether a trivial program compiles with the option; an unknown one is an error."""
    try:
        jax.jit(jnp.negative).lower(0.0).compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True
