"""The model that a run leaves behind, loaded by a process that has the library alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from small_runs import SINGLE
from tolerances import assert_close

from experiments import digits

ROOT = Path(__file__).parents[2]

ELSEWHERE = """
import importlib.util, json, sys, zlib
sys.path[:0] = json.loads(sys.argv[1])
import jax
import numpy as np
import lvae_jax

assert importlib.util.find_spec("experiments") is None
x = np.load(sys.argv[2])
for argument in sys.argv[3:]:
    folder, seed = argument.rsplit(":", 1)
    model, variables = lvae_jax.load(folder)
    # As the README states it: fold_in of the name's CRC-32, then of the step 0.
    key = jax.random.fold_in(jax.random.key(int(seed)), zlib.crc32(b"log_likelihood"))
    key = jax.random.fold_in(key, 0)
    result = lvae_jax.evaluation.log_likelihood(model, variables, x, key, num_samples=20)
    print(float(np.mean(result.log_likelihood)))
"""


def likelihoods_elsewhere(tmp_path, *models_and_seeds: tuple[Path, int]) -> list[float]:
    """What a process finds that has `lvae_jax` and its dependencies on its path, and no more."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "lvae_jax").symlink_to(ROOT / "lvae_jax")
    path = [p for p in sys.path if p and not (Path(p) / "experiments").exists()]
    np.save(tmp_path / "x.npy", digits.load(SINGLE).test_x()[:40])
    arguments = [f"{model}:{seed}" for model, seed in models_and_seeds]
    paths = json.dumps([str(tmp_path / "library"), *path])
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ELSEWHERE, paths, tmp_path / "x.npy", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [float(line) for line in result.stdout.split()]


def test_a_runs_model_gives_its_log_likelihood_without_experiments(
    finished_run, finished_pair, tmp_path
):
    one, two = finished_run, finished_pair
    found = likelihoods_elsewhere(tmp_path, (one, 0), (two / "model/0", 4), (two / "model/1", 5))
    single = json.loads((one / "results.json").read_text())
    replicas = json.loads((two / "results.json").read_text())["replicas"]
    expected = [r["test_log_likelihood"] for r in (single, *replicas)]
    # Twice a sum of 64 log-probabilities, after a dozen layers.
    assert_close(found, expected, roundings=2 * (8 + 12))
    described = json.loads((two / "model/1/model.json").read_text())
    assert described["metadata"] == {
        "dataset": "digits",
        "epoch": replicas[1]["chosen_epoch"],
        "seed": 5,
    }
