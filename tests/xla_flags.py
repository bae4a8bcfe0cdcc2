"""XLA's flags for the tests' own process, which reads them once, and for those that it starts."""

import os
import subprocess
import sys

SOONER = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
"""A small program is compiled in half the CPU time: without a pipeline of MLIR for every kernel,
and without a module of LLVM for each of up to 32 parts."""

COMPILE = "import jax; jax.numpy.zeros(2) + 1"


def compile_sooner() -> None:
    """Adds `SOONER` to this process's flags, where jaxlib knows it: an unknown flag ends a process.

    To be called before JAX compiles anything. Processes inherit the flags, workers as well.
    """
    if SOONER in os.environ.get("XLA_FLAGS", ""):
        return
    flags = _joined(SOONER)
    probe = [sys.executable, "-c", COMPILE]
    if subprocess.run(probe, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True).returncode:
        return
    os.environ["XLA_FLAGS"] = flags


def with_cpu_devices(count: int) -> str:
    """This process's flags, and a number of CPU devices."""
    return _joined(f"--xla_force_host_platform_device_count={count}")


def _joined(flags: str) -> str:
    return f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
