"""The examples, each run as an outsider would: by the installed wheel, without a checkout."""

import json
import re

import installed_wheel
import pytest

EXAMPLES = sorted((installed_wheel.ROOT / "examples").glob("*.py"))

# What each needs besides the wheel, and what it prints.
NEEDS = {"numpyro_guide": "numpyro"}
NUMBER = r"-\d+\.\d"
PRINTS = {
    "own_loop": rf"(epoch \d+: train ELBO {NUMBER} nats\n){{3}}log p\(x\) is about {NUMBER} nats\n",
    "own_module": rf"log p\(x\) is about {NUMBER} nats; accuracy \d+%\n",
    "conv": rf"train ELBO {NUMBER}, log p\(x\) about {NUMBER}\nsamples: \(4, 28, 28\)\n",
    "condition": rf"log p\(x \| y\) is about {NUMBER} nats, and {NUMBER} for another label\n"
    r"\d+% of the samples' pixels are those of the class\n",
    "nnx": rf"ELBO {NUMBER} nats; log p\(x\) is about {NUMBER}\n",
    "numpyro_guide": rf"ELBO per image from {NUMBER} to {NUMBER} nats\n",
    "load_and_sample": r"LadderVAE with layers \(4, 2\)\n16 images of 64 variables.*\n"
    rf"(with z_\d at zero, .*\n){{2}}reconstructed to .*\nlog p\(x\) is about {NUMBER}\d nats\n",
}
ANYTHING = r"(.+\n)+"


def test_every_example_is_there_and_short():
    assert PRINTS.keys() <= {path.stem for path in EXAMPLES}
    for path in EXAMPLES:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 80, path


TOGETHER = """
import contextlib, io, json, runpy, sys, traceback

printed = {}
for script, *arguments in json.loads(sys.argv[1]):
    sys.argv = [script, *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_path(script, run_name="__main__")
        except BaseException:
            traceback.print_exc(file=out)
    printed[script] = out.getvalue()
print(json.dumps(printed))
"""
"""Runs scripts one after the other, each in a namespace of its own, and prints what each prints:
importing JAX and compiling alike models again for each would take longer than they do."""


@pytest.mark.parametrize("needed", [None, *NEEDS.values()])
def test_the_examples_work_with_the_wheel_installed(needed, wheel, finished_run, tmp_path):
    scripts = [path for path in EXAMPLES if NEEDS.get(path.stem) == needed]
    lines = json.dumps([[str(path), str(finished_run)] for path in scripts])
    together = tmp_path / "together.py"
    together.write_text(TOGETHER)
    path = installed_wheel.install(wheel, tmp_path, *([needed] if needed else []))
    printed = json.loads(installed_wheel.run(path, together, lines, cwd=tmp_path))
    expected = {str(path): PRINTS.get(path.stem, ANYTHING) for path in scripts}
    assert printed.keys() == expected.keys()
    others = [text for path, text in printed.items() if not re.fullmatch(expected[path], text)]
    assert not others, "\n".join(others)
