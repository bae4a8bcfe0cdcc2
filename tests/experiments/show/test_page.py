"""report.html: what it shows, and that nothing in it comes from elsewhere or gets out of hand."""

import base64
import dataclasses
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import records
from records import run_results

from experiments.results import Run
from experiments.settings import Settings
from experiments.show import page

VOID = {"meta", "link", "img", "br", "hr", "input"}
"""The elements that HTML has no closing tag for."""

EVIL = "<script>alert(1)</script>\"'&"


class Page(HTMLParser):
    """A page taken apart: elements, attributes, texts; every tag has to be closed in its place."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def of(self, tag: str) -> list[str]:
        return [text for element, text in self.texts if element == tag]

    def table(self) -> dict[str, list[str]]:
        """The cells of all tables' rows, by their first."""
        return {first: rest for first, *rest in self.rows}


def config_of(dataset: str = "mnist", **settings) -> dict:
    """config.json of a run of these settings, the others MNIST's."""
    kept = dataclasses.replace(Settings(), **settings)
    return {
        "experiment": "mnist",
        "dataset": dataset,
        "data_sha256": "0123abcd",
        "settings": kept.changing_results(),
        "versions": {"python": "3.11.9", "jax": "0.10.2"},
        "device": "1 x cpu (2 cores)",
    }


RESULTS = run_results()

EPOCHS = [
    records.epoch(0, train_elbo=-300.0),
    records.epoch(
        1, train_elbo=-201.234, test_elbo=-202.0, kl_per_unit=[[0.75, 0.5], [0.002]],
        active_units=[2, 0],
    ),
    records.epoch(2, train_elbo=-150.678),
]  # fmt: skip

IMAGES = {name: b"\x89PNG of " + name.encode() for name in page.CAPTIONS}


COMMAND = "python -m experiments.mnist"


def render(config=None, command=COMMAND, results=RESULTS, images=IMAGES, epochs=EPOCHS):
    return page.render(Run(Path("run"), config or config_of(), epochs, results), command, images)


@pytest.mark.parametrize("results", [RESULTS, None])
@pytest.mark.parametrize("images", [IMAGES, {}])
def test_every_tag_is_closed_in_its_place(results, images):
    parsed = Page(render(results=results, images=images))
    assert parsed.tags[:3] == ["html", "head", "meta"]
    assert parsed.tags.count("img") == len(images)
    assert {"h1", "table", "pre"} <= set(parsed.tags)


def test_a_config_without_versions_gives_a_page_with_what_it_names():
    config = config_of()
    for name in ("data_sha256", "versions", "device"):
        del config[name]
    shown, whole = Page(render(config)).table(), Page(render()).table()
    left_out = {"SHA-256 of the data", "python", "jax", "first started on"}
    assert shown == {first: rest for first, rest in whole.items() if first not in left_out}
    assert shown["data set"] == ["mnist"]


def test_names_from_elsewhere_are_shown_as_they_are_and_make_no_element():
    harmless = Page(render())
    config = config_of(dataset=EVIL)
    config["settings"][EVIL] = config["settings"]["init_from"] = EVIL
    config["versions"][EVIL] = EVIL
    config["device"] = config["data_sha256"] = EVIL
    names = ("device", "seed", "eval_samples", "epochs")
    results = dataclasses.replace(RESULTS, **dict.fromkeys(names, EVIL))
    text = render(config, f"python {EVIL}", results)
    parsed = Page(text)
    assert "script" not in parsed.tags
    assert EVIL not in text
    assert set(parsed.attributes) == set(harmless.attributes)
    assert f"Ladder VAE with 5 layers on {EVIL}" in parsed.of("h1")
    assert f"Ladder VAE with 5 layers on {EVIL}" in parsed.of("title")
    assert parsed.of("pre") == [f"python {EVIL}"]
    assert parsed.table()["init_from"] == [EVIL]
    assert parsed.table()[EVIL] == [EVIL]
    assert parsed.table()["seed"] == ["0"]  # of the settings, which stand below the results
    assert ["seed", EVIL] in parsed.rows
    assert EVIL in parsed.of("sub")


def test_nothing_is_loaded_from_anywhere():
    text = render()
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "@import" not in text
    references = [value for _, name, value in Page(text).attributes if name in ("src", "href")]
    assert len(references) == len(IMAGES) + 1
    assert all(value.startswith("data:") for value in references)
    (policy,) = [v for _, name, v in Page(text).attributes if name == "content" and "-src" in v]
    assert "default-src 'none'" in policy
    assert not {"script", "iframe", "object"} & set(Page(text).tags)


def test_figures_stand_in_the_order_of_the_paper_with_their_own_bytes():
    sources = [
        value for tag, name, value in Page(render()).attributes if (tag, name) == ("img", "src")
    ]
    contents = [
        base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources
    ]
    assert contents == list(IMAGES.values())
    some = {name: IMAGES[name] for name in ("samples", "learning_curves")}
    parsed = Page(render(images=some))
    assert parsed.of("h3") == ["Learning curves", "Samples"]
    assert [value for tag, name, value in parsed.attributes if name == "alt"] == parsed.of("h3")
    assert "Figures" not in Page(render(images={})).of("h2")


def test_results_and_settings_and_data_are_shown():
    parsed = Page(render())
    assert parsed.of("strong") == ["-82.35 ± 0.23 nats"]
    assert parsed.of("sub")[0] == "5000"
    table = parsed.table()
    assert table["test ELBO, L_1"] == ["-85.43 nats"]
    assert table["train ELBO, L_1"] == ["-83.21 nats"]
    assert table["effective sample size"] == ["123 of 5000"]
    assert table["time"] == ["3,600 s of training, 4,001 s in all, on 1 x cpu (2 cores)"]
    assert "evaluated after epoch" not in table
    assert table["latent_sizes"] == ["64,32,16,8,4"]
    assert table["learning_rate"] == ["0.001"]
    assert table["batch_norm"] == ["True"]
    assert table["data set"] == ["mnist"]
    assert table["SHA-256 of the data"] == ["0123abcd"]
    assert table["jax"] == ["0.10.2"]
    names = set(config_of()["settings"]) - {"init_from"}  # which is not set
    assert names <= table.keys()
    assert "init_from" not in table


def test_an_epoch_chosen_by_validation_is_named():
    table = Page(render(results=run_results(chosen_epoch=1400))).table()
    assert table["evaluated after epoch"] == ["1400, by validation"]


def test_kl_and_units_of_every_layer_are_counted():
    table = Page(render()).table()
    assert table["z_1 (bottom)"] == ["1.75", "3", "3", "2"]
    assert table["z_2"] == ["2.01", "2", "1", "1"]
    assert table["z_5 (top)"] == ["0.00", "1", "0", "0"]
    one = run_results(kl_per_unit=[[1.0]], active_units=[1])
    parsed = Page(render(config_of(depth=1), results=one))
    assert [row[0] for row in parsed.rows if row[0].startswith("z_")] == ["z_1"]
    assert "Ladder VAE with 1 layer on mnist" in parsed.of("h1")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (config_of(), "-82.12 nats"),
        (config_of(seed=3), "-82.12 nats"),
        (config_of(epochs=10), "-82.12 nats, at its own settings"),
        (config_of(latent_sizes=(64, 32, 16, 8, 5)), None),
        (config_of(depth=4), None),
        (config_of(model="vae"), None),
        (config_of(warmup_epochs=0), None),
        (config_of(batch_norm=False), None),
        (config_of(init_from="elsewhere"), None),
        (config_of(dataset="fashion_mnist"), None),
        (config_of(dataset="digits"), None),
        (config_of(dataset="omniglot", epochs=1500), "-102.11 nats"),
    ],
)
def test_the_papers_number_stands_beside_the_papers_model_alone(config, expected):
    table = Page(render(config)).table()
    found = table.get("the paper's log-likelihood")
    assert found == (None if expected is None else [expected])
    elbo = table.get("the paper's test ELBO, L_1")
    on_mnist = expected and config["dataset"] == "mnist"
    assert elbo == ([expected.replace("-82.12", "-85.23")] if on_mnist else None)


def test_an_unfinished_run_says_how_far_it_is_and_shows_its_last_evaluation():
    config = config_of(depth=2)
    parsed = Page(render(config, results=None))
    (state,) = parsed.of("p")[:1]
    assert state == "Not finished: 3 of 2000 epochs. Train ELBO of the last one -150.68 nats."
    assert parsed.of("strong") == []
    assert parsed.table()["z_1 (bottom)"] == ["1.25", "2", "2", "2"]
    assert parsed.table()["z_2 (top)"] == ["0.00", "1", "0", "0"]
    # Before the first evaluation there are no layers to show.
    text = render(config, None, None, {}, EPOCHS[:1])
    assert "Layers" not in Page(text).of("h2")
    assert "Not finished: 1 of 2000 epochs." in text


RATES = {"mean": 12.345, "standard_error": 0.5}
PROBE = {
    "draws": 10,
    "active_units": [3],
    "representations": [
        {
            "name": name,
            "units": 3,
            "errors": {"100": {"knn": RATES, "logistic": RATES}},
            "information": [0.25, 1.5],
            "information_standard_error": [0.125, 0.0625],
        }
        for name in ("z_1", EVIL)
    ],
}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes the page of a folder, without figures, and returns it."""
    monkeypatch.setattr(page.drawing, "draw_metrics", lambda *_: None)

    def write() -> str:
        page.write(Run(tmp_path, config_of(), EPOCHS, None), None)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


def test_what_a_probe_found_is_a_section_with_its_table_and_picture(written, tmp_path):
    (tmp_path / "probe.json").write_text(json.dumps(PROBE))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "probe.png").write_bytes(b"PNG of probe")
    text = written()
    parsed = Page(text)
    assert "What each layer knows about the class" in parsed.of("h2")
    assert parsed.table()["z_1"] == ["3", "1.500 ± 0.062", "12.35 ± 0.50", "12.35 ± 0.50"]
    assert base64.b64encode(b"PNG of probe").decode() in text
    assert EVIL not in text
    assert parsed.tags.count("img") == 1


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", "{}", '{"a": 1}', '{"representations": []}', '{"representations": [{}]}'],
)
def test_a_probe_json_of_something_else_is_left_out_with_a_warning(
    content, written, tmp_path, capsys
):
    (tmp_path / "probe.json").write_text(content)
    assert "knows about the class" not in written()
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}/probe.json is not a file that experiments.probe wrote; report.html "
        "leaves it out\n"
    )


def test_a_probe_json_is_shown_and_a_missing_one_is_not_missed(written, tmp_path, capsys):
    assert "knows about the class" not in written()
    (tmp_path / "probe.json").write_text(json.dumps(PROBE))
    assert "knows about the class" in written()
    # Version 0.2.0 did not write the standard error.
    for entry in (old := json.loads(json.dumps(PROBE)))["representations"]:
        del entry["information_standard_error"]
    (tmp_path / "probe.json").write_text(json.dumps(old))
    assert Page(written()).table()["z_1"][1] == "1.500"
    assert capsys.readouterr().err == ""


def test_without_a_command_none_is_shown():
    assert "Command" in Page(render()).of("h2")
    assert "Command" not in Page(render(command=None)).of("h2")


def test_a_page_is_written_whole_with_the_figures_of_its_folder(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "samples.png").write_bytes(b"the samples")
    (tmp_path / "figures" / "of_my_own.png").write_bytes(b"another")
    epochs = [records.epoch(0, kl_per_unit=[[0.5]])]
    page.write(Run(tmp_path, config_of("ÄÖ", depth=1), epochs, None), None)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    parsed = Page(text)
    assert parsed.of("h3") == [
        "Learning curves", "KL of every unit over training", "KL by layer", "Samples",
    ]  # fmt: skip
    sources = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    files = ("learning_curves", "kl_per_unit", "kl_per_layer", "samples")
    for source, name in zip(sources, files, strict=True):
        assert base64.b64decode(source) == (tmp_path / "figures" / f"{name}.png").read_bytes()
    assert "Not finished: 1 of 2000 epochs." in html.unescape(text)
    assert "on ÄÖ" in parsed.of("h1")[0]


REPLICAS = [
    records.replica_results(
        seed=seed, test_log_likelihood=-82.0 - seed, test_elbo=-85.5 - seed,
        test_log_likelihood_standard_error=0.25, train_elbo=-83.0 + 2 * seed,
        active_units=[2 + seed, 1],
        kl_per_unit=[[1.5, 0.25, 0.02 * seed], [2.0 + seed, 0.009]],
    )
    for seed in (0, 1)
]  # fmt: skip

SEVERAL = run_results(*REPLICAS)


def several(results=SEVERAL, epochs=EPOCHS, **settings) -> str:
    return render(config_of(depth=2, replicas=2, **settings), results=results, epochs=epochs)


def test_replicas_are_shown_by_mean_and_deviation_and_a_row_each():
    parsed = Page(several())
    assert parsed.of("h1") == ["Ladder VAE with 2 layers on mnist, 2 replicas"]
    assert parsed.of("strong") == ["-82.50 ± 0.71 nats"]  # sqrt(1/2)
    text = "".join(text for _, text in parsed.texts)
    assert (
        "all test images; mean and standard deviation over replicas, which differ in: seed." in text
    )
    assert "says nothing about seeds" not in text
    table = parsed.table()
    assert table["test ELBO, L_1"] == ["-86.00 ± 0.71 nats"]
    assert table["train ELBO, L_1"] == ["-82.00 ± 1.41 nats"]
    assert table["seeds"] == ["0-1"]
    header = ["seed", "test log-likelihood", "test ELBO", "train ELBO"]
    rows = parsed.rows[parsed.rows.index(header) :][:3]
    assert rows == [
        header,
        ["0", "-82.00 ± 0.25", "-85.50", "-83.00"],
        ["1", "-83.00 ± 0.25", "-86.50", "-81.00"],
    ]
    assert table["z_1 (bottom)"] == ["1.76 ± 0.01", "3", "2.5 ± 0.7", "2.5 ± 0.7"]
    assert table["z_2 (top)"] == ["2.51 ± 0.71", "2", "1.0 ± 0.0", "1.0 ± 0.0"]


def test_what_replicas_differ_in_besides_the_seed_stands_in_their_rows():
    results = run_results(REPLICAS[0], dataclasses.replace(REPLICAS[1], chosen_epoch=1400))
    text = several(results, beta=(1.0, 0.5), learning_rate=(1e-3, 5e-4))
    parsed = Page(text)
    assert "which differ in: seed, beta, learning_rate." in text
    (first, second) = (row for row in parsed.rows if row[0] in ("0", "1") and len(row) == 7)
    assert first == ["0", "1.0", "0.001", "-82.00 ± 0.25", "-85.50", "-83.00", "2000"]
    assert second == ["1", "0.5", "0.0005", "-83.00 ± 0.25", "-86.50", "-81.00", "1400"]
    assert "evaluated after epoch" in parsed.of("th")
    assert parsed.table()["beta"] == ["1.0,0.5"]


def test_figures_say_what_they_show_of_replicas():
    captions = Page(several(seed=7)).of("figcaption")
    whole = "".join(captions)
    assert whole.count("Of the first replica, seed 7.") == len(page.CAPTIONS) - 2
    assert whole.count("Lines with markers: the mean over the replicas; thin lines") == 1
    assert whole.count("error bars: their standard deviation") == 1
    assert "replica" not in "".join(Page(render()).of("figcaption"))


def test_an_unfinished_run_with_replicas_shows_their_mean_and_last_evaluation():
    units = [replica.kl_per_unit for replica in REPLICAS]
    active = [replica.active_units for replica in REPLICAS]
    evaluated = [
        records.replica_epoch(kl_per_unit=kl, active_units=count)
        for kl, count in zip(units, active, strict=True)
    ]
    trained = [records.replica_epoch(train_elbo=elbo) for elbo in (-4.0, -6.0)]
    epochs = [records.epoch(0, *evaluated), records.epoch(1, *trained)]
    parsed = Page(several(None, epochs))
    assert parsed.of("p")[0] == (
        "Not finished: 2 of 2000 epochs. Train ELBO of the last one -5.00 ± 1.41 nats (mean and "
        "standard deviation over replicas)."
    )
    assert parsed.table()["z_2 (top)"] == ["2.51 ± 0.71", "2", "1.0 ± 0.0", "1.0 ± 0.0"]


def test_a_likelihood_of_part_of_the_test_set_says_so():
    for images, shown in ((1000, "the first 1,000 test images"), (700, "all test images")):
        text = render(config_of(eval_subset=1000), results=run_results(eval_images=images))
        assert f"importance-sampled, over {shown}; the standard error is over the images" in text
    assert "over all test images;" in render(results=run_results(eval_images=10_000))


def test_of_one_test_image_there_is_no_standard_error():
    alone = run_results(test_log_likelihood_standard_error=None, eval_images=1)
    text = render(config_of(eval_subset=1), results=alone)
    assert Page(text).of("strong") == ["-82.35 nats"]
    assert "over the first test image; a single image has no standard error." in text
    replicas = [
        dataclasses.replace(replica, test_log_likelihood_standard_error=None)
        for replica in REPLICAS
    ]
    text = several(run_results(*replicas, eval_images=1), eval_subset=1)
    assert "None" not in text
    assert ["0", "-82.00", "-85.50", "-83.00"] in Page(text).rows
    assert "standard error" not in text
