"""The wheel: it holds the library alone, which works with only its own dependencies present."""

import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SCRIPT = """
import importlib.util
import sys

import jax
import jax.numpy as jnp

import lvae_jax
from lvae_jax import Gaussian, LadderVAE, distributions, schedules
from lvae_jax.networks import MLP

assert lvae_jax.__file__.startswith(sys.argv[1]), lvae_jax.__file__
for absent in ("experiments", "tensorflow_datasets", "sklearn", "tqdm", "pytest"):
    assert importlib.util.find_spec(absent) is None, absent

q = Gaussian(jnp.float32(1.0), jnp.float32(2.0))
p = Gaussian(jnp.float32(0.0), jnp.float32(2.0))
assert abs(float(distributions.kl(q, p)) - 0.25) < 1e-6
posterior = distributions.precision_weighted(q, p)
assert (float(posterior.mean), float(posterior.variance)) == (0.5, 1.0)
assert schedules.warm_up(3, 4) == 0.75

x = jnp.ones((2, 5), jnp.float32)
mlp = MLP(sizes=(4, 3), activation="tanh", batch_norm=False)
assert mlp.apply(mlp.init(jax.random.key(0), x, False), x, False).shape == (2, 3)
model = LadderVAE(data_dim=5, latent_sizes=(3, 2), hidden_sizes=(4, 4))
keys = {"params": jax.random.key(0), "sample": jax.random.key(1)}
terms = model.apply(model.init(keys, x), x, rngs={"sample": jax.random.key(2)})
assert bounds.elbo(terms).shape == (2,)
print("works")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy: building leaves folders behind."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.rstrip("\0").split("\0")  # fmt: skip
    for file in filter(lambda file: (ROOT / file).is_file(), files):
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        (copy / file).write_bytes((ROOT / file).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, copy],
        check=True,
        capture_output=True,
    )
    (built,) = out.glob("*.whl")
    return built


def requirements_of(distribution: str) -> set[str]:
    """Names of what a distribution requires without extras, itself and indirect ones included."""
    found: set[str] = set()
    waiting = [distribution]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform or Python
            continue
        found.add(name)
        waiting += [re.match(r"[\w.-]+", r)[0] for r in requires if "extra ==" not in r]
    return found


def test_the_wheel_holds_the_library_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"lvae_jax"}
    assert {"lvae_jax/py.typed", "lvae_jax/data/mnist.py", "lvae_jax/models.py"} <= set(names)


def test_the_library_requires_jax_flax_optax_jaxtyping_and_safetensors_alone(wheel):
    (path,) = (n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".dist-info/METADATA"))
    lines = zipfile.ZipFile(wheel).read(path).decode().splitlines()
    required = {
        re.match(r"Requires-Dist: ([\w-]+)", line)[1]
        for line in lines
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    }
    assert required == {"jax", "flax", "optax", "jaxtyping", "safetensors"}


def test_a_script_elsewhere_works_with_only_the_librarys_own_dependencies(wheel, tmp_path):
    # A folder with the wheel unpacked, and one with links to what it requires and nothing else.
    installed, dependencies = tmp_path / "installed", tmp_path / "dependencies"
    zipfile.ZipFile(wheel).extractall(installed)
    dependencies.mkdir()
    for name in requirements_of("lvae-jax") - {"lvae-jax"}:
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            link = dependencies / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = f"import sys; sys.path[:0] = [{str(installed)!r}, {str(dependencies)!r}]; "
    run_script = f"sys.argv = ['', {str(installed)!r}]; exec(open({str(script)!r}).read())"
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", path + run_script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "works\n"), result.stderr
