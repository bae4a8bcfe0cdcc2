"""PyTorch, an optional dependency: benchmarks compare with it if it is installed."""

import functools
import os
from types import ModuleType

from experiments.run.devices import cores

NO_PYTORCH = 'PyTorch is left out, since it is not installed (pip install "lvae-jax[benchmarks]")'


@functools.cache
def pytorch() -> ModuleType | None:
    """`benchmarks.pytorch` with one thread per core; None if PyTorch is not installed."""
    # Otherwise a second run reads compiled code from disk instead of compiling it.
    os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(cores())
    if torch.cuda.is_available():
        # On a GPU, JAX's float32 products run in tf32; make PyTorch do the same.
        torch.set_float32_matmul_precision("high")
    from benchmarks import pytorch as module

    return module
