"""The report: its numbers are those of the other half, and its page is one file that nothing can break out of."""

import base64
import json
import math
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from made_tables import class_table
from sklearn.metrics import f1_score

from transformers_deebert import ExitCriterion, make_report, pick_threshold
from transformers_deebert.analysis import (
    LatencyProfile,
    RuntimeBenchmark,
    RuntimeFigure,
    expected_calibration_error,
    layer_report,
    reliability_bins,
    slice_report,
    thresholds_by_saving,
)
from transformers_deebert.models.exit_criteria_deebert import read_criterion


HOSTILE = "</script><script>alert(1)</script>"
QUOTED = "\"><img src=x onerror='alert(1)'>&amp; {{ 7 * 7 }}"
PROFILE = LatencyProfile((3, 40), np.array([[1.0, 2, 3, 4, 5], [2, 4, 6, 8, 10]]), 1, {"device": "cpu"})


class Page(HTMLParser):
    """Elements, attributes and texts of a page; every element that is opened is closed in turn."""

    void = ("meta", "img", "br", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else None, data))

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self):
        return " ".join(data for tag, data in self.texts if tag not in ("script", "style"))

    def numbers(self):
        return json.loads("".join(data for tag, data in self.texts if tag == "script"))


def first_label(candidate):
    """A score of a user's own: the probability of the first label."""
    return candidate.logits.softmax(-1)[:, 0]


def read(report, tmp_path):
    path = tmp_path / "new" / "report.html"
    report.save(path)
    return Page(path.read_text(encoding="utf-8"))


def check_page(page, pictures):
    """One file: nothing is loaded from anywhere, no script runs, all pictures are there."""
    assert page.named("script") == [{"type": "application/json", "id": "numbers"}]
    assert not page.named("link")
    assert not page.named("iframe")
    images = page.named("img")
    assert len(images) == pictures
    for attributes in images:
        kind, data = attributes["src"].split(",")
        assert kind == "data:image/svg+xml;base64"
        assert b"</svg>" in base64.b64decode(data, validate=True)
        assert attributes["alt"]
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name == "href" for name in attributes)
        assert not any("http" in value.lower() for name, value in attributes.items() if name != "src")
    style = "".join(data for tag, data in page.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    assert "nan" not in page.text().lower().split()


@pytest.fixture(scope="module")
def table():
    return class_table(rows=500, layers=5, classes=2, strength=(0.3, 2.0))


@pytest.fixture(scope="module")
def report(table):
    return make_report(
        table,
        title="A title",
        facts={"model": "tiny", "data": "made up"},
        max_metric_drop=0.02,
        columns={"source": [f"s{row % 3}" for row in range(500)]},
        latency=PROFILE,
    )


def test_numbers_are_those_of_the_other_half(table, report):
    choosing, reading = table.split(0)
    choice = pick_threshold(table, max_metric_drop=0.02, latency=PROFILE)
    assert report.choice.threshold == choice.threshold
    assert report.choice.score_change_interval == choice.score_change_interval
    assert (report.rows, report.read_rows) == (500, 250)
    exits, answers = reading.exits_at(choice.threshold)
    assert report.choice.score == pytest.approx((answers == reading.labels).mean())
    assert report.choice.layer_saving == pytest.approx(1 - exits.mean() / 5)
    assert report.layers == layer_report(reading, choice.threshold)
    assert report.slices["class"] == slice_report(reading, choice.threshold)
    assert report.slices["length"] == slice_report(reading, choice.threshold, "length")
    assert report.slices["source"] == slice_report(reading, choice.threshold, [f"s{row % 3}" for row in reading.ids])
    assert [point.threshold for point in report.points] == sorted(
        {0.0, choice.threshold, *thresholds_by_saving(reading)}
    )
    for point in [*report.points, *report.curve]:
        exits, answers = reading.exits_at(point.threshold)
        assert point.scores["accuracy"] == pytest.approx((answers == reading.labels).mean())
        assert point.exit_counts == tuple(np.bincount(exits, minlength=6)[1:])
        assert point.latency_ms == pytest.approx(PROFILE.at(reading.lengths)[np.arange(250), exits - 1].mean())
    fit = report.temperatures
    assert (fit.fitted_rows, fit.read_rows) == (250, 250)
    assert fit.error_before[1] == expected_calibration_error(reading, 2)
    assert report.reliability["own head"] == {"as trained": reliability_bins(reading, 5)}
    first = next(iter(report.reliability.values()))
    assert first["scaled"] == reliability_bins(reading.with_temperatures(fit.temperatures), 1)
    assert len(report.reliability) == 5


def test_the_choices_and_the_other_ways(table, report):
    choosing, reading = table.split(0)
    for drop, name in ((0.0, "nothing lost"), (0.005, "at most 0.5 points lost"), (0.01, "at most 1 point lost")):
        expected = pick_threshold(choosing, max_metric_drop=drop, evaluate_on=reading, latency=PROFILE)
        assert report.choices[name] == expected
    guaranteed = report.choices["at most 2 points lost, guaranteed with 95 % confidence"]
    assert guaranteed == pick_threshold(table, max_metric_drop=0.02, confidence=0.95, latency=PROFILE)
    one, scaled, each, ensemble = report.alternatives.values()
    assert one == report.choice
    assert scaled.temperatures == report.temperatures.temperatures
    assert len(each.threshold) == 4
    assert each.full_score == one.full_score
    exits, answers = reading.ensemble().exits_at(ensemble.threshold)
    assert ensemble.score == pytest.approx((answers == reading.labels).mean())
    redundant = [layer.redundant for layer in report.layers[:-1]]
    if report.without_redundant is not None:
        assert [value == 0 for value in report.without_redundant.threshold] == redundant
    assert any(redundant) == (report.without_redundant is not None)


def test_the_band_is_around_the_curve(table, report):
    savings, low, high = report.band
    assert savings == sorted(savings)
    assert savings[0] == 0
    assert low[0] == high[0] == pytest.approx(report.choice.full_score)  # no change, whatever is drawn
    curve = {round(point.layer_saving, 9): point.scores["accuracy"] for point in report.curve}
    scores = [curve[round(saving, 9)] for saving in savings]
    inside = [one <= score <= other for one, score, other in zip(low, scores, high, strict=True)]
    assert np.mean(inside) > 0.95
    # Half the width of a 95 % interval is twice the standard error of the mean of the paired differences.
    _, reading = table.split(0)
    saving = max(savings)
    exits, answers = reading.exits_at(9.0)
    assert 1 - exits.mean() / 5 == pytest.approx(saving)
    changes = (answers == reading.labels).astype(float) - (reading.answers[:, -1] == reading.labels)
    width = 2 * 1.96 * changes.std() / math.sqrt(250)
    assert high[-1] - low[-1] == pytest.approx(width, rel=0.25)


def test_each_half_has_its_own_part(table):
    """Labels of the half that is read on change no choice; those of the other change no figure at given thresholds."""
    choosing, reading = table.split(0)

    def relabelled(half):
        labels = table.labels.copy()
        labels[half.ids] = 1 - labels[half.ids]
        return make_report(replace(table, labels=labels), max_metric_drop=0.02)

    report, other = make_report(table, max_metric_drop=0.02), relabelled(reading)
    assert other.choice.threshold == report.choice.threshold
    assert other.choice.score != report.choice.score
    assert other.temperatures.temperatures == report.temperatures.temperatures
    for name, choice in report.choices.items():
        if "guaranteed" not in name:
            assert other.choices[name].threshold == choice.threshold
    for name, choice in report.alternatives.items():
        assert other.alternatives[name].threshold == choice.threshold

    other = relabelled(choosing)
    assert other.choice.threshold != report.choice.threshold
    assert other.curve == report.curve
    assert other.band == report.band
    assert other.temperatures.error_before == report.temperatures.error_before
    assert [layer.score for layer in other.layers] == [layer.score for layer in report.layers]
    assert other.reliability["own head"] == report.reliability["own head"]
    # A saving can be had without a label.
    saving = make_report(table, target_saving=0.3)
    labels = table.labels.copy()
    labels[choosing.ids] = 0
    same = make_report(replace(table, labels=labels), target_saving=0.3)
    for name in ("choice", "points", "curve", "band", "layers", "slices"):
        assert getattr(same, name) == getattr(saving, name)


def test_the_page(report, tmp_path):
    page = read(report, tmp_path)
    check_page(page, pictures=4 + 3)
    assert page.numbers() == json.loads(json.dumps(report.to_dict(), allow_nan=False))
    text = page.text()
    assert f"saves {100 * report.choice.layer_saving:.1f} % of the layers" in text
    assert f"{report.choice.latency_ms:.2f} ms" in text
    for expected in ("A title", "model: tiny · data: made up", "By source", "The threshold ", report.choice.reason):
        assert expected in text
    assert "curve" not in page.numbers()
    assert page.numbers()["choice"]["threshold"] == report.choice.threshold


@pytest.mark.parametrize(
    ("score", "patience"), [("entropy", 1), ("entropy", 2), ("margin", 1), ("disagreement", 2), (first_label, 1)]
)
def test_any_criterion_and_exit_layers(tmp_path, score, patience):
    """What the page tells people to copy gives the exits of its figures; pictures have the layers of the exits."""
    table = class_table(rows=400, layers=4)
    table = replace(table, exit_layers=(0, 2, 5, 6)).with_score(score, patience)
    if score is first_label:  # as `collect_exits` stores it
        table = replace(table, stored_scores=table.scores)
    report = make_report(table, target_saving=0.1)
    assert report.choice.met
    page = read(report, tmp_path)
    code = next(data for tag, data in page.texts if tag == "code")
    names = {"first_label": first_label, "ExitCriterion": ExitCriterion}
    given = eval(f"dict({code[len('model(**inputs, ') : -1]})", names)
    places = table.places_at(report.choice.threshold).tolist()
    if "early_exit_entropy" in given:
        assert table.places_at(given["early_exit_entropy"]).tolist() == places
    else:
        criterion = read_criterion(given["exit_criterion"])
        assert (criterion.score, criterion.patience) == (score, patience)
        assert table.places_at(criterion.threshold).tolist() == places
    assert getattr(score, "__name__", score).replace("_", " ") in page.text()
    assert ("nats" in page.text()) == (score == "entropy")
    pictures = [base64.b64decode(image["src"].split(",")[1]).decode() for image in page.named("img")]
    assert all("<!-- 0 -->" in pictures[index] and "<!-- 3 -->" not in pictures[index] for index in (1, 2))


def test_a_plain_report(tmp_path):
    table = class_table(rows=60, layers=2, classes=2, lengths=False)
    report = make_report(table)
    assert "length" not in report.slices
    assert "loses" not in report.choice.reason
    assert "1 point " in report.choice.reason
    page = read(report, tmp_path)
    check_page(page, pictures=4 + 1)
    assert "expected ms" not in page.text()


def test_hostile_names(tmp_path):
    table = class_table(rows=80, layers=3, classes=3)
    table = replace(table, label_names=(HOSTILE, QUOTED, r"$\frac$"))
    report = make_report(
        table,
        title=HOSTILE,
        facts={QUOTED: HOSTILE},
        columns={
            HOSTILE: [QUOTED, HOSTILE] * 40,
            "x/../ ü$%": [1, None] * 40,
            "": list(range(80)),
            "-->": ["<!--"] * 80,
        },
    )
    page = read(report, tmp_path)
    check_page(page, pictures=4 + 2 + 4)
    assert page.text().count("alert(1)") > 5  # as words
    assert "{{ 7 * 7 }}" in page.text()
    numbers = page.numbers()
    assert numbers["title"] == HOSTILE
    assert numbers["slices"][HOSTILE][1]["name"] in (HOSTILE, QUOTED)
    assert [one["name"] for one in numbers["slices"]["class"]][1:] == list(table.label_names)


def test_many_classes_f1_and_broken_logits(tmp_path):
    table = class_table(rows=400, layers=4, classes=64, strength=(1.5, 3))
    logits = table.logits.copy()
    logits[::7, 0] = np.nan
    logits[::11, 1, 5] = np.inf
    logits[:, 2] = np.nan
    table = replace(table, logits=logits)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        report = make_report(table, metric="f1", max_metric_drop=0.05)
        page = read(report, tmp_path)
    check_page(page, pictures=4 + 2)
    assert report.classes == 64
    _, reading = table.split(0)
    _, answers = reading.exits_at(report.choice.threshold)
    expected = f1_score(reading.labels, answers, average="macro", labels=range(64), zero_division=0)
    assert report.choice.score == pytest.approx(expected)
    assert report.band[1][0] == report.band[2][0] == pytest.approx(report.choice.full_score)
    assert not any("guaranteed" in name for name in report.choices)
    assert report.layers[2].exited == 0
    assert report.layers[0].score < report.layers[3].score
    json.dumps(page.numbers(), allow_nan=False)


def test_a_table_with_temperatures():
    """They stay with the choice, and new ones are absolute."""
    table = class_table(rows=300, layers=3)
    scaled = table.with_temperatures([3.0, 0.5])
    report = make_report(scaled)
    assert report.choice.temperatures == (3.0, 0.5)
    assert report.choice.threshold == pick_threshold(scaled, max_metric_drop=0.01).threshold
    plain = make_report(table)
    assert report.temperatures.temperatures == pytest.approx(plain.temperatures.temperatures, rel=1e-3)


def test_a_target_that_cannot_be_met(tmp_path):
    report = make_report(class_table(rows=60, layers=3), target_saving=0.9)
    page = read(report, tmp_path)
    assert not report.choice.met
    assert "The target cannot be met." in page.text()
    check_page(page, pictures=6)


def test_off_ramps_that_are_evaluated_without_the_redundant_ones(tmp_path):
    """Rows that would have exited at a redundant off-ramp stay active, and later off-ramps are evaluated."""
    table = class_table(rows=600, layers=5, strength=(2.0, 3.5))
    logits = table.logits.copy()
    logits[:, 1] = logits[:, 0]  # off-ramps 1 and 2 say the same
    report = make_report(replace(table, logits=logits), target_saving=0.3)
    _, reading = replace(table, logits=logits).split(0)
    point = report.without_redundant
    assert point is not None
    exits, _ = reading.exits_at(point.threshold)
    asked = sum(((exits >= layer) & (value > 0)).mean() for layer, value in enumerate(point.threshold, start=1))
    before, _ = reading.exits_at(report.choice.threshold)
    evaluated = np.minimum(before, 4).mean()
    text = " ".join(read(report, tmp_path).text().split())
    assert f"{asked:.2f} off-ramps are evaluated for a row instead of {evaluated:.2f}" in text


def test_measured_times(tmp_path, table):
    figure = RuntimeFigure(0.3, 32, 8, (0.2,), 0.2, 0.4, 2.0, 0.5, 0.55, 0.45, 0.38, 1.9, 0.9, 0.01, 0.02)
    runtime = RuntimeBenchmark((figure,), {8: 0.125}, "batches <b>padded</b>", {"device": "cpu", "threads": 1}, 32)
    report = make_report(table, runtime=runtime)
    page = read(report, tmp_path)
    check_page(page, pictures=6)
    for expected in (
        "Measured time",
        "6.250",
        "0.125 ms a row at batch size 8",
        "batches <b>padded</b>",
        "device cpu",
    ):
        assert expected in page.text()
    assert page.numbers()["runtime"]["figures"][0]["speed_up"] == 2.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"source": ["a"] * 29}}, "`columns` has 29 values of 'source' for 30 rows"),
        ({"target_saving": 0.3, "max_metric_drop": 0.01}, "exactly one"),
        ({"target_saving": 3}, "`target_saving`"),
        ({"metric": "f2"}, "`metric` must be one of"),
        (
            {"latency": LatencyProfile((3,), np.ones((1, 7)), 1, {})},
            "`latency` is of a model with 7 layers .*`table` of one with 6",
        ),
    ],
)
def test_bad_input(settings, message):
    with pytest.raises(ValueError, match=message):
        make_report(class_table(rows=30), **settings)


def test_too_few_rows():
    with pytest.raises(ValueError, match="`table` has 19 rows, and a report needs at least 20"):
        make_report(class_table(rows=19))
    assert make_report(class_table(rows=20, layers=2)).read_rows == 10
