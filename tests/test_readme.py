"""What the README shows works as it stands."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_library_example_runs_and_gives_the_shapes_it_says():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names["elbo"].shape == (100,)
    assert [kl.shape for kl in names["kl"]] == [(5, 100, units) for units in (64, 32)]
    assert names["log_px"].shape == names["sample_size"].shape == (100,)
    assert names["images"].shape == (16, 784)
