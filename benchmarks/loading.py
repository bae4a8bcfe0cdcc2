"""`python -m benchmarks.loading --data_dir=DIR`: seconds to load each data set, first and again."""

import argparse
import tempfile
import time
from pathlib import Path

from lvae_jax.data import binarized_mnist, digits, fashion_mnist, mnist, omniglot, small_norb


def main() -> None:
    """Prepares each data set whose files are at hand, and times its loading."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="holds a folder a data set")
    parser.add_argument("--rounds", type=int, default=5, help="later loads, of which the median")
    arguments = parser.parse_args()
    print(f"{'data set':20}{'images':>10}{'first, s':>12}{'later, s':>12}")
    for module in (mnist, binarized_mnist, fashion_mnist, omniglot, small_norb):
        name = module.__name__.rpartition(".")[2]
        folder = arguments.data_dir / name
        if not folder.is_dir():
            print(f"{name:20}{'(not in --data_dir)':>34}")
            continue
        with tempfile.TemporaryDirectory() as tfds_dir:
            times = []
            for _ in range(1 + arguments.rounds):
                start = time.perf_counter()
                dataset = module.load(folder, tfds_dir)
                times.append(time.perf_counter() - start)
        images = len(dataset.train_images) + len(dataset.test_images)
        later = sorted(times[1:])[arguments.rounds // 2]
        print(f"{dataset.name:20}{images:10,}{times[0]:12.2f}{later:12.2f}")
    start = time.perf_counter()
    images = sum(len(part) for part in (digits.load().train_images, digits.load().test_images))
    print(f"{'digits':20}{images:10,}{time.perf_counter() - start:12.2f}{'':>12}")


if __name__ == "__main__":
    main()
