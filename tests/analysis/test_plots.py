import builtins
import struct
import subprocess
import sys
from io import BytesIO

import pytest
from made_tables import class_table

from transformers_deebert.analysis import (
    OperatingPoint,
    Slice,
    plot_exit_depths,
    plot_layer_scores,
    plot_reliability,
    plot_slices,
    plot_trade_off,
    reliability_bins,
    slice_report,
)


def point(threshold, accuracy, saving):
    return OperatingPoint(threshold, {"accuracy": accuracy}, 1 - saving, saving, (1, 1))


POINTS = [point(0.0, 0.9, 0.0), point(0.3, 0.88, 0.4), point(0.1, 0.9, 0.2)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig

    def keep(self, *args, **kwargs):
        figures.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_the_picture_shows_score_against_saving_in_percent(tmp_path, drawn):
    path = tmp_path / "new" / "curve.png"
    plot_trade_off(POINTS, path, "accuracy", 0.9, chosen=[POINTS[1]], title="SST-2")
    (axes,) = drawn[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("layer saving (%)", "accuracy (%)", "SST-2")
    curve = next(line for line in axes.lines if line.get_label() == "early exit")
    assert curve.get_xdata() == pytest.approx([0, 20, 40])  # ordered by saving
    assert curve.get_ydata() == pytest.approx([90, 90, 88])
    level = next(line for line in axes.lines if line.get_label() == "full depth")
    assert level.get_ydata() == pytest.approx([90, 90])
    assert [text.get_text() for text in axes.texts] == ["0.3"]

    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert min(struct.unpack(">II", header[16:24])) >= 500


def test_curves_differ_in_colour_and_in_marker(tmp_path, drawn):
    curves = dict.fromkeys(("cls", "mean", "attention"), POINTS)
    plot_trade_off(curves, tmp_path / "curves.png", "accuracy", 0.9, others={"DistilBERT": (0.5, 0.87)})
    (axes,) = drawn[0].axes
    lines = [line for line in axes.lines if line.get_label() != "full depth"]
    assert [line.get_label() for line in lines] == ["cls", "mean", "attention", "DistilBERT"]
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 4


def test_the_band(tmp_path, drawn):
    plot_trade_off(POINTS, tmp_path / "curve.svg", "accuracy", 0.9, band=([0.0, 0.4], [0.89, 0.85], [0.91, 0.9]))
    (area,) = drawn[0].axes[0].collections
    (box,) = area.get_paths()
    assert box.vertices.min(0) == pytest.approx([0, 85])
    assert box.vertices.max(0) == pytest.approx([40, 91])
    assert b"<svg" in (tmp_path / "curve.svg").read_bytes()


def test_exit_depths(tmp_path, drawn):
    plot_exit_depths((1, 0, 3), tmp_path / "depths.png", title="SST-2")
    (axes,) = drawn[0].axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([25, 0, 75])
    assert [text.get_text() for text in axes.texts] == ["25", "0", "75"]
    assert axes.get_legend().get_texts()[0].get_text() == "mean 2.50"
    assert axes.get_title() == "SST-2"


def test_layer_scores(tmp_path, drawn):
    plot_layer_scores([0.5, 0.75, 0.9], tmp_path / "layers.png", "macro_f1", taken=[None, 1.0, 0.8])
    (axes,) = drawn[0].axes
    everything, taken = axes.lines
    assert everything.get_ydata() == pytest.approx([50, 75, 90])
    assert (list(taken.get_xdata()), list(taken.get_ydata())) == ([2, 3], [100, 80])
    assert axes.get_ylabel() == "macro f1 (%)"


def test_reliability(tmp_path, drawn):
    table = class_table(rows=200, layers=20)
    diagrams = {f"exit {layer}": {"as trained": reliability_bins(table, layer)} for layer in range(1, 21)}
    plot_reliability(diagrams, tmp_path / "reliability.png")
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert len(titles) == 12
    assert (titles[0], titles[-1]) == ("exit 1", "exit 20")
    line = drawn[0].axes[0].lines[1]
    bins = diagrams["exit 1"]["as trained"]
    assert line.get_xdata() == pytest.approx([100 * one.confidence for one in bins])
    assert line.get_ydata() == pytest.approx([100 * one.accuracy for one in bins])
    plot_reliability({"empty": {"as trained": [], "scaled": []}}, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000


def part(name, change, worse=False):
    return Slice(name, 10, 2.0, 0.5, 0.9 + change, 0.9, change, 1, worse)


def test_slices_with_names_of_any_kind(tmp_path, drawn):
    names = ["$5 to $10", r"$\frac$", "a very long name that ends with 1", "a very long name that ends with 2", "a\nb"]
    plot_slices([part(name, -0.1, worse=index == 1) for index, name in enumerate(names)], tmp_path / "slices.png")
    left, right = drawn[0].axes
    shown = [label.get_text() for label in left.get_yticklabels()]
    assert shown[:2] == ["$5 to $10 (10)", r"$\frac$ (10)"]
    assert len(set(shown)) == 5
    assert max(map(len, shown)) < 35
    assert shown[4] == "a b (10)"
    assert [bar.get_width() for bar in right.patches] == pytest.approx([-10] * 5)
    colours = [bar.get_facecolor() for bar in right.patches]
    assert len(set(colours)) == 2
    assert colours[1] not in colours[2:]


def test_numbers_beside_the_bars_stay_inside(tmp_path, drawn):
    for changes in ([-0.01, 0.0], [0.5, -0.5], [0.0, 0.0], [-0.3333, 0.1]):
        plot_slices([part(f"part {index}", change) for index, change in enumerate(changes)], tmp_path / "slices.png")
        axes = drawn[-1].axes[1]
        drawn[-1].canvas.draw()
        frame = axes.get_window_extent()
        for text in axes.texts:
            box = text.get_window_extent()
            assert frame.x0 <= box.x0 < box.x1 <= frame.x1


@pytest.mark.parametrize("form", ["png", "svg"])
@pytest.mark.parametrize(("layers", "classes"), [(2, 2), (24, 64)])
def test_every_picture_of_any_size(form, layers, classes):
    table = class_table(rows=100, layers=layers, classes=classes)
    counts = [0] * (layers - 1) + [100]
    diagrams = {str(layer): {"one": reliability_bins(table, layer)} for layer in range(1, layers + 1)}
    draw = [
        lambda path: plot_exit_depths(counts, path, form=form),
        lambda path: plot_layer_scores([0.5] * layers, path, taken=[None] * (layers - 1) + [1.0], form=form),
        lambda path: plot_reliability(diagrams, path, form=form),
        lambda path: plot_slices(slice_report(table, 0.3), path, form=form),
    ]
    for one in draw:
        buffer = BytesIO()
        one(buffer)
        assert {"png": b"\x89PNG", "svg": b"<svg"}[form] in buffer.getvalue()[:1000]


def test_malformed_input_names_argument_value_and_remedy(tmp_path):
    with pytest.raises(
        ValueError, match=r"`points` has no operating point for 'early exit'\. Pass what sweep_thresholds"
    ):
        plot_trade_off([], tmp_path / "curve.png", "accuracy", 0.9)
    with pytest.raises(ValueError, match=r"`score_name` must be one of \['accuracy'\], got 'f1'"):
        plot_trade_off(POINTS, tmp_path / "curve.png", "f1", 0.9)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install transformers-deebert\[analysis\]"):
        plot_trade_off(POINTS, tmp_path / "curve.png", "accuracy", 0.9)


@pytest.mark.slow
def test_importing_the_analysis_does_not_import_matplotlib():
    code = "import sys, transformers_deebert.analysis; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
