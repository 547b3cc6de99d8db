import csv
import json

import numpy as np
import pytest

from transformers_deebert import ExitTable
from transformers_deebert.analysis import OperatingPoint, exit_curve, format_table, write_csv, write_json
from transformers_deebert.analysis.tables import threshold_text


ROWS = [{"model": "full", "saving": 0.0, "time": 1.5}, {"model": "early exit", "saving": 0.255, "time": None}]
COLUMNS = {"model": ("model", ""), "saving": ("layer saving", ".1%"), "time": ("seconds", ".2f")}


def test_plain_text():
    assert format_table(ROWS, COLUMNS).splitlines() == [
        "model       layer saving  seconds",
        "----------  ------------  -------",
        "full                0.0%     1.50",
        "early exit         25.5%        -",
    ]


def test_markdown():
    assert format_table(ROWS, COLUMNS, markdown=True).splitlines() == [
        "| model      | layer saving | seconds |",
        "| ---------- | -----------: | ------: |",
        "| full       |         0.0% |    1.50 |",
        "| early exit |        25.5% |       - |",
    ]


def test_all_columns_by_default_and_absent_values_are_dashes():
    assert format_table([{"a": 1}, {"b": float("nan")}]).splitlines()[2:] == ["  1    -", "  -    -"]


def test_json_is_valid_whatever_is_in_it(tmp_path):
    point = OperatingPoint((0.1, 0.2), {"f1": float("nan")}, 0.5, 0.5, (1, 1))
    data = {"points": [point], 1: np.float32(0.5), "array": np.arange(2), "infinite": float("inf"), "flag": True}
    write_json(tmp_path / "new" / "numbers.json", data)
    read = json.loads((tmp_path / "new" / "numbers.json").read_text())
    assert read["points"][0]["threshold"] == [0.1, 0.2]
    assert read["points"][0]["scores"] == {"f1": None}
    assert (read["1"], read["array"], read["infinite"], read["flag"]) == (0.5, [0, 1], None, True)


def test_csv_keeps_full_precision_and_every_column(tmp_path):
    write_csv(tmp_path / "rows.csv", [{"a": 1 / 3}, {"b": None, "a": "x, y"}])
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["a"]) == 1 / 3
    assert rows[1] == {"a": "x, y", "b": ""}


def test_nothing_to_lay_out_leaves_the_headings():
    assert format_table([], COLUMNS).splitlines()[0] == "model  layer saving  seconds"


def test_a_format_that_does_not_fit_raises():
    with pytest.raises(ValueError, match="format"):
        format_table([{"saving": 0.5}], {"saving": ("saving", "zz")})


def test_thresholds_in_writing_give_the_same_exits():
    generator = np.random.default_rng(0)
    # A confident model: most entropies near 0, many of them close to each other.
    logits = generator.normal(size=(400, 3, 2)) * np.array([4, 8, 12])[:, None]
    table = ExitTable.from_logits(logits, logits[:, -1].argmax(-1))
    for threshold in exit_curve(table).thresholds:
        written = float(threshold_text(float(threshold)))
        assert np.array_equal(table.exits_at(written)[0], table.exits_at(threshold)[0])
    assert threshold_text((0.25, 1e-5)) == "0.25, 1e-05"
