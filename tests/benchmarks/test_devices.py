"""Collectives are counted in a real program on real (virtual) devices."""

import json
import os
import subprocess
import sys

from benchmarks import devices

PROGRAM = """
import json, os
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from benchmarks import devices

mesh = jax.make_mesh((1, 2), ("replica", "data"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

def step(w, x):  # the gradient's sum over the batch is all that crosses devices
    return w - jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w)

program = jax.jit(
    step,
    in_shardings=(NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))),
    out_shardings=NamedSharding(mesh, P()),
).lower(jnp.ones((6, 5)), jnp.ones((8, 6))).compile()
alone = devices.make_all_reduces(mesh, [30, 30, 7], steps=3)
sums = [np.asarray(a).tolist() for a in alone()]
print(json.dumps([devices.all_reduce_sizes(program.as_text()), [len(s) for s in sums], sums]))
"""


def test_all_reduces_are_those_of_the_compiled_program_and_run_alone():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    sizes, lengths, sums = json.loads(result.stdout)
    assert sizes == [6 * 5]
    assert lengths == [7, 30]  # one array for the two of a size, which is summed twice a step
    assert all(value == 0 for array in sums for value in array)


def test_numbers_of_tuples_scalars_and_asynchronous_all_reduces_are_counted():
    program = """
      %a = f32[] all-reduce(%b), channel_id=1, to_apply=%add
      %c = (f32[64]{0}, f32[2,3]{1,0}) all-reduce(%d, %e), to_apply=%add
      %f = f32[10]{0} all-reduce-start(%g), to_apply=%add
      %h = f32[10]{0} all-reduce-done(%f)
      %i = f32[99]{0} add(%j, %k)
    """
    assert devices.all_reduce_sizes(program) == [1, 70, 10]
