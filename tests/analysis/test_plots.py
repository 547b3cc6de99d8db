import builtins
import struct
import subprocess
import sys

import pytest

from transformers_deebert.analysis import OperatingPoint, plot_trade_off


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
    assert [text.get_text() for text in axes.texts] == ["S = 0.3"]

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


def test_importing_the_analysis_does_not_import_matplotlib():
    code = "import sys, transformers_deebert.analysis; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
