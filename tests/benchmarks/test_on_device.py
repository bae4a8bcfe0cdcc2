"""The day of an accelerator, rehearsed on the CPU at a tiny scale."""

import contextlib
import json
import signal
import subprocess
import sys
import threading

import pytest

from benchmarks import on_device, startup
from benchmarks.on_device import Plan, Step
from benchmarks.sizes import Sizes
from experiments.paper import plan as paper_plan

TIMED = {
    "default": Step(),
    "two": Step(2, "float32"),
    "unknown": Step(2, options=(("xla_of_another_version", True),)),
}


@pytest.fixture
def plan(tmp_path):
    return Plan(
        tmp_path / "results", tmp_path / "data", sizes=Sizes(12, (4,), (8,)), steps=2, rounds=2,
        timed=TIMED, num_samples=4, seeds=2, scale=0.0005,
    )  # fmt: skip


def test_a_part_with_a_result_is_not_repeated_and_one_that_had_to_stop_is(plan):
    started = []

    def part(name, *results):
        remaining = list(results)

        def start():
            started.append(name)
            return remaining.pop(0)

        return start

    chosen = {"whole": part("whole", {"found": 1}), "long": part("long", None, {"found": 2})}
    assert on_device.measure(plan, chosen) == ["long"]
    assert on_device.measure(plan, chosen) == []
    assert on_device.measure(plan, chosen) == []
    assert started == ["whole", "long", "long"]
    assert json.loads((plan.results / "long.json").read_text())["found"] == 2


def test_a_part_that_failed_is_repeated_and_said(plan, capsys):
    results = [{"status": 2}, {"status": 0}]
    chosen = {"mistyped": lambda: results.pop(0), "tests": lambda: {"passed": False}}
    assert on_device.measure(plan, chosen) == ["mistyped"]
    assert on_device.measure(plan, chosen) == []
    assert results == []
    capsys.readouterr()
    # Tests that fail on a device would fail again.
    assert on_device.measure(plan, chosen) == []
    path = plan.results / "tests.json"
    assert capsys.readouterr().out == f"tests failed on this device: see {path}\n"


def test_numeric_tests_that_take_too_long_end_and_are_left_for_the_next_start(
    plan, monkeypatch, tmp_path
):
    (tmp_path / "test_slow.py").write_text("import time\ntime.sleep(1000)")
    monkeypatch.setattr(on_device, "TESTS", (str(tmp_path / "test_slow.py"),))
    assert on_device.parts(plan._replace(minutes=0.001))["tests"]() is None


def started(monkeypatch, tmp_path, *flags):
    folders = [f"--results={tmp_path}", f"--tfds_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["benchmarks.on_device", *folders, *flags])
    on_device.main()


def test_the_status_tells_whether_something_is_left(monkeypatch, tmp_path, capsys):
    for result, status in (None, 1), ({}, 0):
        monkeypatch.setattr(on_device, "_likelihood", lambda _, found=result: found)
        with pytest.raises(SystemExit) if status else contextlib.nullcontext() as ended:
            started(monkeypatch, tmp_path, "--only=likelihood")
        assert not status or ended.value.code == status
    said = capsys.readouterr().out.splitlines()
    assert said[1::2] == ["stopped or failed: likelihood", "all parts are done"]


@pytest.mark.parametrize(
    ("flag", "advice"),
    [
        ("--only=step5", "give the beginning of one of tests, steps, likelihood, table1"),
        ("--at_once=0", "give at least 1"),
    ],
)
def test_a_choice_without_parts_is_refused(monkeypatch, tmp_path, capsys, flag, advice):
    with pytest.raises(SystemExit) as ended:
        started(monkeypatch, tmp_path, flag)
    assert ended.value.code == 2
    assert f"{flag}: {advice}" in capsys.readouterr().err


def test_parts_share_the_device_where_the_plan_says_so(plan):
    both = threading.Barrier(2)

    def part():
        both.wait(timeout=60)  # passes if the other part has started as well
        return {}

    assert on_device.measure(plan._replace(at_once=2), {"one": part, "other": part}) == []


def test_steps_and_the_likelihood_are_timed(plan):
    wanted = ("steps", "likelihood")
    found = on_device.parts(plan)
    assert on_device.measure(plan, {name: found[name] for name in wanted}) == []
    results = [json.loads((plan.results / f"{name}.json").read_text()) for name in wanted]
    assert all(result["machine"]["device"] for result in results)
    steps, likelihood = results
    for times in (
        steps["default"]["step_seconds"],
        steps["two"]["step_seconds"],
        *likelihood["seconds"].values(),
    ):
        assert 0 < times["min"] <= times["median"]
    assert (steps["two"]["replicas"], steps["two"]["precision"]) == (2, "float32")


def test_an_option_that_xla_does_not_know_is_reported(plan):
    found = on_device.steps(plan)["unknown"]
    assert "xla_of_another_version" in found["refused"]
    assert "step_seconds" not in found


def test_what_stops_the_numeric_tests_is_in_their_result(plan, monkeypatch, tmp_path):
    broken = tmp_path / "test_broken.py"
    broken.write_text("import absent_package")
    monkeypatch.setattr(on_device, "TESTS", (str(broken),))
    result = on_device.parts(plan)["tests"]()
    assert result["passed"] is False
    assert "absent_package" in "".join(result["said"])


@pytest.mark.slow
def test_a_run_is_made_from_prepared_images_where_the_paper_looks_for_it(plan):
    startup.write_random_images(plan.tfds_dir, 512, 4)
    # The paper's batch of 256, one epoch of two steps, two seeds in one program.
    plan = plan._replace(flags=("--matmul_precision=tf32",))
    name = "figure3-mnist-vae-bn-wu-1"
    result = on_device.parts(plan)[name]()
    log = (plan.results / f"{name}.log").read_text()
    assert result is not None, log
    assert result["status"] == 0, log
    assert result["results"]["."]["dataset"] == "mnist"
    paper = paper_plan.PaperSettings(
        scale=plan.scale, eval_samples=plan.num_samples, replicas=plan.seeds,
        matmul_precision="tf32", workdir=str(plan.results / "runs" / "figure3"),
    )  # fmt: skip
    runs = {planned.name: planned for planned in paper_plan.plan(paper, "figure3")}
    found = paper_plan.results_of(runs["mnist-vae-bn-wu-1"])
    assert found is not None
    assert found.each("seed") == [0, 1]


@pytest.mark.parametrize("ends_with", [128 + signal.SIGTERM, -signal.SIGTERM])
def test_a_run_is_stopped_when_its_time_is_over_and_left_for_the_next_start(
    plan, monkeypatch, ends_with
):
    class Slow:
        """A process that ends only when it is told to."""

        def __init__(self, command, **_):
            self.status = None
            assert f"--tfds_dir={plan.tfds_dir}" in command

        def wait(self, timeout=None):
            if self.status is None:
                raise subprocess.TimeoutExpired("run", timeout)
            return self.status

        def send_signal(self, number):
            assert number == signal.SIGTERM
            self.status = ends_with

    monkeypatch.setattr(subprocess, "Popen", Slow)
    assert on_device.measure(plan, {"table1": on_device.parts(plan)["table1"]}) == ["table1"]
    assert not (plan.results / "table1.json").exists()


def test_runs_of_figure_3_are_the_papers_variants(plan):
    found = on_device.parts(plan._replace(scale=1.0, seeds=8, num_samples=5000))
    figure_3 = [name for name in found if name.startswith("figure3-")]
    # Three kinds of VAE at five depths, the ladder at four, and one ladder without batch norm.
    assert len(figure_3) == 3 * 5 + 4 + 1
    # Five layers, 2,000 epochs, N_t = 200 and L_5000 are the command's own defaults.
    for name, flags in (
        ("vae-5", {"--model=vae", "--nobatch_norm", "--warmup_epochs=0"}),
        ("vae-bn-wu-1", {"--model=vae", "--depth=1"}),
        ("lvae-bn-wu-4", {"--depth=4"}),
        ("lvae-wu-5", {"--nobatch_norm"}),
    ):
        module, *given = found[f"figure3-mnist-{name}"].args[1]
        assert module == "experiments.mnist"
        assert set(given) == flags | {"--replicas=8", "--eval_every=40"}
