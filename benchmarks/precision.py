"""`python -m benchmarks.precision`: what less precise products do to the ELBO, on any device.

A CPU multiplies in float32 whatever `--matmul_precision` says. So the inputs of every product of
a linear layer, forward and backward, are rounded to the mantissa of tf32 or bf16 here, and the sums
left in float32: what tensor cores compute. Trained on scikit-learn's digits, evaluated alike, with
several seeds: a difference that is smaller than theirs says nothing.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MANTISSA_BITS = {"float32": 23, "tf32": 10, "bf16": 7}


def round_products(mantissa_bits: int) -> None:
    """Rounds the inputs of every `jax.lax.dot_general` from here on, gradients' too."""
    import jax

    exact: Any = jax.lax.dot_general

    def rounded(a: jax.Array) -> jax.Array:
        return jax.lax.reduce_precision(a, exponent_bits=8, mantissa_bits=mantissa_bits)

    def dot_general(x: jax.Array, w: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
        @jax.custom_vjp
        def dot(x: jax.Array, w: jax.Array) -> jax.Array:
            return exact(rounded(x), rounded(w), dimensions, **options)

        def forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, Any]:
            return jax.vjp(lambda x, w: exact(x, w, dimensions, **options), rounded(x), rounded(w))

        def backward(gradients: Any, g: jax.Array) -> Any:
            return gradients(rounded(g))

        dot.defvjp(forward, backward)
        return dot(x, w)

    vars(jax.lax)["dot_general"] = dot_general


def train(mantissa_bits: int, epochs: int, replicas: int, workdir: str) -> dict[str, Any]:
    """Results of a run of several replicas whose products are rounded."""
    if mantissa_bits < MANTISSA_BITS["float32"]:
        round_products(mantissa_bits)
    from experiments import digits
    from experiments.run.loop import run

    settings = dataclasses.replace(
        digits.DEFAULTS,
        epochs=epochs,
        warmup_epochs=epochs // 4,
        eval_every=0,
        replicas=replicas,
        workdir=workdir,
    )
    run(settings, digits.load(digits.DEFAULTS))
    return json.loads(Path(workdir, "results.json").read_text())


def main() -> None:
    """A process for each precision, and a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--replicas", type=int, default=5, help="seeds, at least 2")
    parser.add_argument("--mantissa_bits", type=int, help="train in this process, and print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.mantissa_bits:
            results = train(
                arguments.mantissa_bits, arguments.epochs, arguments.replicas, f"{folder}/run"
            )
            print(json.dumps(results))
            return
    print("| products | test ELBO, nats | test log-likelihood, nats | train ELBO, nats |")
    print("| --- | --- | --- | --- |")
    for name, bits in MANTISSA_BITS.items():
        command = [sys.executable, "-m", "benchmarks.precision", *sys.argv[1:]]
        command.append(f"--mantissa_bits={bits}")
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        results = json.loads(out.splitlines()[-1])
        numbers = [
            f"{results[number]:.2f} ± {results['standard_deviation'][number]:.2f}"
            for number in ("test_elbo", "test_log_likelihood", "train_elbo")
        ]
        print(f"| {name} | {' | '.join(numbers)} |", flush=True)


if __name__ == "__main__":
    main()
