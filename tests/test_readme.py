"""What the README shows works as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_library_example_runs_and_gives_the_shapes_it_says():
    names: dict = {}
    exec(EXAMPLE, names)
    assert names["elbo"].shape == (100,)
    assert [kl.shape for kl in names["kl"]] == [(5, 100, units) for units in (64, 32)]
    assert names["log_px"].shape == names["sample_size"].shape == (100,)
    assert names["images"].shape == (16, 784)


def test_a_type_checker_accepts_the_library_example(tmp_path):
    (tmp_path / "example.py").write_text(EXAMPLE)
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "example.py"],
        env={**os.environ, "MYPYPATH": str(ROOT)},
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
