"""Runs side by side: the table holds what is in the runs' files, whatever they are called."""

import dataclasses
import json
import os
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import records
from PIL import Image
from tolerances import EPSILON_64, assert_close

from experiments import cli, compare, published
from experiments.compare import CompareSettings
from experiments.errors import SettingsError, WorkdirError
from experiments.results import EpochRecord, RunResults
from experiments.settings import Settings
from experiments.store.workdir import FORMAT, read_run

ROOT = Path(__file__).parents[2]

HEADER = [
    "run", "data set", "model", "epochs", "seed", "test log-likelihood", "the paper's",
    "test ELBO", "train ELBO", "KL of z_1, z_2, ...", "units with KL > 0.01", "training, s",
]  # fmt: skip


def write_run(
    path: Path,
    *,
    dataset: str = "mnist",
    finished: bool = True,
    evaluated: bool = True,
    epochs: int = 3,
    **settings,
) -> Path:
    """The JSON files of a run of three epochs, with numbers that depend on its path."""
    generator = np.random.default_rng(len(str(path)))
    kept = dataclasses.replace(Settings(), epochs=epochs, **settings)
    path.mkdir(parents=True)
    config = {"format": FORMAT, "dataset": dataset, "settings": kept.changing_results()}
    (path / "config.json").write_text(json.dumps(config))
    lines = []
    for number in range(3):
        fields = {
            "train_elbo": -100 * generator.random(),
            "kl_per_layer": generator.random(kept.depth).tolist(),
        }
        if evaluated and number == 1:
            fields["test_elbo"] = -100 * generator.random()
            fields["kl_per_unit"] = [[10 * generator.random(), 0.001]] * kept.depth
        lines.append(records.epoch(number, records.replica_epoch(**fields), seconds=700.5))
    results = records.run_results(
        test_log_likelihood=-100 * generator.random(),
        test_log_likelihood_standard_error=generator.random(),
        test_elbo=-100 * generator.random(),
        train_elbo=-100 * generator.random(),
        kl_per_unit=[[10 * generator.random(), 0.5, 0.002]] * kept.depth,
        active_units=[2] * kept.depth,
        eval_images=kept.eval_subset or 10_000,
        training_seconds=2103.0,
    )
    write_records(path, lines, results if finished else None)
    return path


def write_records(path: Path, epochs: list[EpochRecord], results: RunResults | None) -> None:
    lines = [json.dumps(epoch.to_json()) + "\n" for epoch in epochs]
    (path / "metrics.jsonl").write_text("".join(lines))
    if results:
        (path / "results.json").write_text(json.dumps(results.to_json()))


def files_of(path: Path) -> tuple[dict, list[dict], dict]:
    """config.json, metrics.jsonl and results.json."""
    config = json.loads((path / "config.json").read_text())
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    results = path / "results.json"
    return config, lines, json.loads(results.read_text()) if results.exists() else {}


def cells_of(markdown: str) -> list[list[str]]:
    """The cells of a Markdown table's rows, by the rules of Markdown."""
    rows = []
    for line in markdown.splitlines():
        assert line.startswith("| ")
        assert line.endswith(" |")
        cells, escaped = [""], False
        for letter in line[1:]:
            if escaped or letter not in "\\|":
                assert escaped or letter not in "<[`", "it opens a tag, a link or code"
                cells[-1] += (
                    letter if letter in string.punctuation or not escaped else "\\" + letter
                )
                escaped = False
            elif letter == "\\":
                escaped = True
            else:
                cells.append("")
        rows.append([cell.strip() for cell in cells[:-1]])
    return rows


def table_of(*paths: Path) -> list[dict[str, str]]:
    """The rows of the table by the names of its columns."""
    header, ruler, *rows = cells_of(compare.table([read_run(path) for path in paths]))
    assert header == HEADER
    assert all(set(cell) == {"-"} for cell in ruler)
    assert {len(row) for row in rows} == {len(HEADER)}
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_the_row_of_a_finished_run_holds_its_results(tmp_path):
    path = write_run(tmp_path / "five", seed=3)
    _, _, results = files_of(path)
    (row,) = table_of(path)
    assert row == {
        "run": "five",
        "data set": "mnist",
        "model": "lvae5",
        "epochs": "3",
        "seed": "3",
        "test log-likelihood": "{:.2f} ± {:.2f} (L_5000)".format(
            results["test_log_likelihood"], results["test_log_likelihood_standard_error"]
        ),
        "the paper's": "-82.12, at its own settings",
        "test ELBO": f"{results['test_elbo']:.2f}",
        "train ELBO": f"{results['train_elbo']:.2f}",
        "KL of z_1, z_2, ...": ", ".join(f"{sum(units):.2f}" for units in results["kl_per_unit"]),
        "units with KL > 0.01": "2, 2, 2, 2, 2",
        "training, s": "2,103",
    }


def test_what_an_unfinished_run_does_not_have_yet_is_left_empty(tmp_path):
    path = write_run(tmp_path / "half", depth=2, epochs=40, finished=False)
    _, lines, _ = files_of(path)
    (row,) = table_of(path)
    assert row["epochs"] == "3 of 40"
    assert row["training, s"] == "2,102"  # three epochs of 700.5 s
    assert row["test ELBO"] == f"{lines[1]['test_elbo']:.2f}"
    kl = ", ".join(f"{sum(units):.2f}" for units in lines[1]["kl_per_unit"])
    assert row["KL of z_1, z_2, ..."] == kl
    assert row["units with KL > 0.01"] == "1, 1"
    for name in ("test log-likelihood", "the paper's", "train ELBO"):
        assert row[name] == ""

    path = write_run(tmp_path / "new", depth=2, epochs=40, finished=False, evaluated=False)
    (row,) = table_of(path)
    empty = {name for name, cell in row.items() if cell == ""}
    assert empty == {
        "test log-likelihood", "the paper's", "test ELBO", "train ELBO", "KL of z_1, z_2, ...",
        "units with KL > 0.01",
    }  # fmt: skip


def test_a_model_whose_likelihood_the_paper_does_not_state_has_an_empty_cell(tmp_path):
    # Of a VAE of three layers on MNIST the paper has the ELBO alone.
    path = write_run(
        tmp_path / "vae",
        model="vae",
        depth=3,
        latent_sizes=(64, 32, 16),
        hidden_sizes=(512, 256, 128),
    )
    assert published.find(files_of(path)[0]).test_elbo is not None
    (row,) = table_of(path)
    assert row["the paper's"] == ""


def test_runs_are_named_by_their_folders_or_by_their_paths_where_these_are_alike(
    tmp_path, monkeypatch
):
    one, two = write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run", depth=2)
    assert [row["run"] for row in table_of(one)] == ["run"]
    assert [row["run"] for row in table_of(one, two)] == [str(one), str(two)]
    other = write_run(tmp_path / "other")
    assert [row["run"] for row in table_of(two, other)] == ["run", "other"]
    monkeypatch.chdir(other)
    assert [row["run"] for row in table_of(Path())] == ["other"]


@pytest.mark.parametrize(
    "name", ["a|b", "|", "||", r"a\|b", "line\nbreak", "*b*", r"c:\d", "<b>", "[a](b)", "`c`"]
)
def test_a_name_of_any_letters_stays_in_its_cell(name, tmp_path):
    path = write_run(tmp_path / name, dataset=name)
    (row,) = table_of(path)
    assert row["run"] == row["data set"] == name.replace("\n", " ")
    assert row["model"] == "lvae5"


def test_the_comparison_is_printed_and_written_with_both_figures(tmp_path, capsys):
    paths = [
        write_run(tmp_path / "one"),
        write_run(tmp_path / "_two", depth=2, finished=False),
        write_run(tmp_path / "three $", model="vae", finished=False, evaluated=False),
    ]
    output = tmp_path / "new" / "comparison"
    compare.compare(CompareSettings(output=str(output)), *map(str, paths))
    table = compare.table([read_run(path) for path in paths]) + f"\n{compare.NOTE}\n"
    printed = capsys.readouterr().out
    assert (
        printed == table + f"{output} holds this table, learning_curves.png and kl_per_layer.png.\n"
    )
    assert (output / "table.md").read_text(encoding="utf-8") == table
    assert {file.name for file in output.iterdir()} == {
        "table.md", "learning_curves.png", "kl_per_layer.png",
    }  # fmt: skip
    for name in ("learning_curves.png", "kl_per_layer.png"):
        with Image.open(output / name) as image:
            assert np.ptp(np.asarray(image.convert("L"))) > 200


def test_the_figures_show_each_runs_own_numbers(tmp_path, monkeypatch):
    drawn = {}

    def keep(name):
        original = getattr(compare.figures, name)
        monkeypatch.setattr(
            compare.figures, name, lambda runs: drawn.update({name: runs}) or original(runs)
        )

    keep("learning_curves")
    keep("kl_per_layer")
    deep = write_run(tmp_path / "deep")
    new = write_run(tmp_path / "new", depth=2, finished=False, evaluated=False)
    compare.compare(CompareSettings(output=str(tmp_path / "out")), str(deep), str(new))
    runs = {path.name: read_run(path) for path in (deep, new)}
    assert drawn["learning_curves"] == {name: run.epochs for name, run in runs.items()}
    results, last = files_of(deep)[2], files_of(new)[1][2]
    found = {name: record.kl_by_layer() for name, record in drawn["kl_per_layer"].items()}
    assert found == {
        # On the test set, at the end.
        "deep": [tuple(sum(units) for units in results["kl_per_unit"])],
        # On the training set, as nothing else is there yet.
        "new": [tuple(last["kl_per_layer"])],
    }


def test_what_is_no_run_or_has_no_epoch_yet_is_refused_and_nothing_written(tmp_path):
    settings = CompareSettings(output=str(tmp_path / "out"))
    fine = write_run(tmp_path / "fine")
    fresh = write_run(tmp_path / "fresh")
    (fresh / "metrics.jsonl").unlink()
    with pytest.raises(WorkdirError) as refusal:
        compare.compare(settings, str(fine), str(fresh))
    message = f"{fresh} has no finished epoch; leave it out, or wait if it trains"
    assert str(refusal.value) == message
    (fresh / "metrics.jsonl").write_text('{"epoch": 0, "trai')  # being written just now
    with pytest.raises(WorkdirError, match="has no finished epoch"):
        compare.compare(settings, str(fresh))
    for path in (tmp_path, tmp_path / "nowhere", fine / "config.json"):
        with pytest.raises(WorkdirError) as refusal:
            compare.compare(settings, str(fine), str(path))
        message = f"{path} holds no config.json; give a run's folder"
        assert str(refusal.value) == message
    with pytest.raises(SettingsError, match="no runs given"):
        compare.compare(settings)
    assert not (tmp_path / "out").exists()


def refusal_of(output: Path, run: Path, capsys) -> str:
    """The one line on standard error that ends a comparison, without its "error: "."""
    with pytest.raises(SystemExit) as end, cli.errors_in_one_line():
        compare.compare(CompareSettings(output=str(output)), str(run))
    line = capsys.readouterr().err
    assert end.value.code == 2
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    return line.removeprefix("error: ").removesuffix("\n")


def test_an_output_that_is_no_folder_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    assert refusal_of(tmp_path / "file", write_run(tmp_path / "run"), capsys) == (
        f"cannot use {tmp_path / 'file'} (File exists); repair it, or give another path"
    )
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.faults
@pytest.mark.parametrize(
    "name",
    ["run/config.json", "run/metrics.jsonl", "run/results.json", "out/table.md",
     "out/learning_curves.png", "out/kl_per_layer.png"],
)  # fmt: skip
def test_a_folder_in_place_of_a_file_is_one_line_that_names_it(name, tmp_path, capsys):
    run, path = write_run(tmp_path / "run"), tmp_path / name
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)
    assert refusal_of(tmp_path / "out", run, capsys) == (
        f"cannot use {path} (Is a directory); repair it, or give another path"
    )


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "reason"),
    [(300 * "a", "File name too long"), ("loop", "Too many levels of symbolic links")],
)
def test_a_path_that_the_system_refuses_is_one_line_that_names_it(name, reason, tmp_path, capsys):
    (tmp_path / "loop").symlink_to("loop")
    for output, run, path in (
        (tmp_path / "out", tmp_path / name, tmp_path / name / "config.json"),
        (tmp_path / name / "out", write_run(tmp_path / "run"), tmp_path / name / "out"),
    ):
        assert refusal_of(output, run, capsys) == (
            f"cannot use {path} ({reason}); repair it, or give another path"
        )


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.compare", *arguments],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_compares_runs(tmp_path):
    write_run(tmp_path / "runs" / "a")
    result = command("runs/a", "--output=out", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "out" / "table.md").read_text() in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (["a", "."], ". holds no config.json; give a run's folder"),
        (["a", "a/"], "a/ is given twice; name every run once"),
        ([], "no runs given; name workdirs: python -m experiments.compare RUN..."),
    ],
)
def test_what_cannot_be_compared_is_one_line_with_status_2(
    runs, message, tmp_path, monkeypatch, capsys
):
    write_run(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end, cli.errors_in_one_line():
        compare.compare(CompareSettings(), *runs)
    said = capsys.readouterr()
    assert (end.value.code, said.out, said.err) == (2, "", f"error: {message}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def write_replicas(path: Path, values: tuple[float, float], finished: bool = True, **settings):
    """A run of two replicas; all their numbers are the two values or made of them."""
    write_run(path, depth=1, seed=5, replicas=2, finished=False, **settings)
    found = [
        {
            "test_elbo": value - 1,
            "train_elbo": value - 2,
            "kl_per_layer": [1.0 - value],
            "kl_per_unit": [[-value, 1.0, 0.01 * i + 0.005]],
            "active_units": [3],
        }
        for i, value in enumerate(values)
    ]
    replicas = [
        records.replica_results(
            seed=5 + i, test_log_likelihood=value, test_log_likelihood_standard_error=9.9, **fields
        )
        for i, (value, fields) in enumerate(zip(values, found, strict=True))
    ]
    epoch = records.epoch(0, *(records.replica_epoch(**fields) for fields in found), seconds=2.0)
    results = records.run_results(*replicas, eval_images=100)
    write_records(path, [epoch], results if finished else None)
    return path


def test_the_row_of_a_run_with_replicas_holds_means_and_deviations_over_its_seeds(tmp_path):
    done = write_replicas(tmp_path / "done", (-10.0, -12.0))
    going_on = write_replicas(tmp_path / "going on", (-10.0, -12.0), finished=False)
    first, second = table_of(done, going_on)
    assert first["seed"] == second["seed"] == "5-6"
    assert first["test log-likelihood"] == "-11.00 ± 1.41 (L_5000, 2 seeds)"
    assert first["test ELBO"] == second["test ELBO"] == "-12.00 ± 1.41"
    assert first["train ELBO"] == "-13.00 ± 1.41"
    # 11.005 and 13.015: sums of units, in each replica by itself.
    assert first["KL of z_1, z_2, ..."] == second["KL of z_1, z_2, ..."] == "12.01 ± 1.42"
    assert first["units with KL > 0.01"] == "2.5 ± 0.7"
    assert (second["test log-likelihood"], second["train ELBO"]) == ("", "")


def test_a_row_says_what_replicas_differ_in_and_which_images_its_likelihood_is_of(tmp_path):
    path = write_replicas(tmp_path / "a", (-10.0, -12.0), beta=(1.0, 0.5), eval_subset=100)
    (row,) = table_of(path)
    assert row["test log-likelihood"] == (
        "-11.00 ± 1.41 (L_5000, 2 seeds, each with its beta, the first 100 test images)"
    )


def test_of_one_test_image_the_likelihood_stands_alone(tmp_path):
    path = write_run(tmp_path / "one", eval_subset=1)
    results = records.run_results(
        test_log_likelihood=-7.0, test_log_likelihood_standard_error=None, eval_images=1
    )
    write_records(path, read_run(path).epochs, results)
    (row,) = table_of(path)
    assert row["test log-likelihood"] == "-7.00 (L_5000, the first test image)"


def test_the_figures_of_a_run_with_replicas_are_drawn_beside_a_single_one(tmp_path):
    paths = [write_replicas(tmp_path / "two", (-10.0, -12.0)), write_run(tmp_path / "one")]
    compare.compare(CompareSettings(output=str(tmp_path / "out")), *map(str, paths))
    assert (tmp_path / "out" / "learning_curves.png").stat().st_size > 0
    layers = read_run(paths[0]).epochs[0].kl_by_layer()
    assert_close(layers, [[11.005], [13.015]], roundings=2, epsilon=EPSILON_64)
