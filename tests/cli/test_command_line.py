"""The frame of `deebert`: exit codes, errors in one line, and what it does not load."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, fields
from typing import ClassVar

import pytest
from conftest import make_model
from transformers import BertTokenizer

from transformers_deebert import cli
from transformers_deebert.cli import options
from transformers_deebert.cli.inputs import read_inputs
from transformers_deebert.cli.options import DataOptions
from transformers_deebert.models.exit_scores_deebert import SCORES


@dataclass(kw_only=True)
class Probe(DataOptions):
    """A command that reads its inputs and answers with a number; or does `what` instead."""

    what: ClassVar = None

    def run(self):
        if self.what is not None:
            return type(self).what()
        inputs = read_inputs(self)
        sys.stdout.write(f"{len(inputs.rows)} {sum(inputs.encoded['labels'])}\n")
        return cli.FINE


@pytest.fixture
def probe(monkeypatch):
    def install(what=None):
        monkeypatch.setattr(Probe, "what", what)
        monkeypatch.setitem(cli.COMMANDS, "probe", Probe)

    return install


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    make_model().save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def fail(error):
    def what():
        raise error

    return what


PROGRAMS = ["transformers_deebert.cli", "transformers_deebert_cli"]  # the second is what `deebert` runs


def run_process(*arguments, program=PROGRAMS[0], **settings):
    return subprocess.run(
        [sys.executable, "-m", program, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        **settings,
    )


def test_reads_what_the_options_name(probe, checkpoint, tmp_path, capsys):
    probe()
    (tmp_path / "rows.jsonl").write_text('{"text": "good", "label": 2}\n{"text": "bad", "label": 1}\n' * 3)
    assert cli.main(["probe", checkpoint, str(tmp_path / "rows.jsonl")]) == 0
    output = capsys.readouterr()
    assert output.out == "6 9\n"
    assert "texts: text; labels: label" in output.err
    assert cli.main(["probe", checkpoint, str(tmp_path / "rows.jsonl"), "--max-rows", "4", "--seed", "3"]) == 0
    assert capsys.readouterr().out.startswith("4 ")


@pytest.mark.parametrize("code", [0, 1])
def test_the_commands_exit_code_is_the_programs(code, probe):
    probe(lambda: code)
    assert cli.main(["probe", "checkpoint", "data"]) == code


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("`x` is\n  wrong"), "deebert: `x` is wrong\n"),
        (OSError("not there\nIf this is a private repository …"), "deebert: not there\n"),
        (ImportError("`y` needs more packages: pip install …"), "deebert: `y` needs more packages: pip install …\n"),
        (ValueError(), "deebert: ValueError\n"),
    ],
)
def test_errors_are_one_line_and_exit_2(error, expected, probe, capsys):
    probe(fail(error))
    assert cli.main(["probe", "checkpoint", "data"]) == 2
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'ours'", name="ours"), TypeError("ours")])
def test_mistakes_of_the_program_keep_their_traceback(error, probe):
    probe(fail(error))
    with pytest.raises(type(error)):
        cli.main(["probe", "checkpoint", "data"])


def test_interrupted(probe, capsys):
    probe(fail(KeyboardInterrupt()))
    assert cli.main(["probe", "checkpoint", "data"]) == 130
    assert capsys.readouterr().err == ""


def test_a_missing_package_is_named_with_its_extra(probe, tmp_path, monkeypatch, capsys):
    probe()
    (tmp_path / "rows.csv").write_text("text,label\ngood,1\n")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert cli.main(["probe", "checkpoint", str(tmp_path / "rows.csv")]) == 2
    error = capsys.readouterr().err
    assert "pip install 'transformers-deebert[analysis]'" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["convert"],
        ["probe", "c", "d", "--max-rows"],
        ["probe", "c", "d", "--nope"],
        ["probe", "c", "d", "--max-rows", "0"],
        ["probe", "c", "d", "--batch-size", "x"],
    ],
)
def test_usage_errors(arguments, probe, capsys):
    probe()
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert "usage: deebert" in capsys.readouterr().err


def test_both_spellings_of_swap_labels():
    for spelling in ("--swap-labels", "--swap_labels"):
        assert cli.parse(["convert", "old", "new", spelling, "1", "2"]).swap_labels == (1, 2)
    assert cli.parse(["convert", "old", "new"]).swap_labels is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--thresholds", "0.1", "0.2", "--json"], {"thresholds": [0.1, 0.2], "json": True}),
        (["--text-columns", "a", "b", "--fractions", "1"], {"text_columns": ["a", "b"], "fractions": [1.0]}),
        (["--fractions", "0.1", "--fractions", "0.2"], {"fractions": [0.1, 0.2]}),
        (["--criterion", "margin", "--patience", "2"], {"asked": {"score": "margin", "patience": 2}}),
        (["--device", "mps", "--seed=3"], {"device": "mps", "seed": 3, "thresholds": None}),
    ],
)
def test_options_and_their_values(words, expected):
    command = cli.parse(["sweep", "checkpoint", "data", *words])
    assert {name: getattr(command, name) for name in expected} == expected
    assert (command.checkpoint, command.data) == ("checkpoint", "data")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--thresholds", "0.1", "-0.2"], "argument --thresholds: must be finite and not negative, got -0.2"),
        (["--thresholds", "--json"], "argument --thresholds: must be a number, got '--json'"),
        (["--thresholds", "0.1", "--quantiles"], "argument --quantiles: not allowed with argument --thresholds"),
    ],
)
def test_usage_errors_name_the_option(words, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["sweep", "checkpoint", "data", *words])
    assert f"\ndeebert sweep: error: {message}\n" in capsys.readouterr().err


def test_options_of_several_values():
    several = {
        f"--{one.name.replace('_', '-')}"
        for command in cli.COMMANDS.values()
        for one in fields(command)
        if "list[" in str(one.type)
    }
    assert several == set(cli.SEVERAL)


def test_help_names_every_score():
    assert all(name in options.SCORES for name in SCORES)


@pytest.mark.parametrize("arguments", [["-h"], *([name, "--help"] for name in cli.COMMANDS), ["pick"], ["nothing"]])
def test_help_and_usage_errors_load_no_torch(arguments):
    code = (
        "import sys, transformers_deebert_cli as program\n"
        f"sys.argv = ['deebert', *{arguments}]\n"
        "try:\n    program.main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    settings = {"env": {**os.environ, "PYTHONIOENCODING": "ascii"}}  # as on a terminal that knows no more
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **settings)
    assert process.stdout.splitlines()[-1] == "[]", process.stderr
    assert "codec" not in process.stderr
    assert "usage: deebert " in (process.stdout + process.stderr).lower()


def test_the_program_knows_the_models(checkpoint, tmp_path):
    """It runs the package that it had put off."""
    (tmp_path / "rows.jsonl").write_text('{"text": "good", "label": 2}\n{"text": "bad", "label": 1}\n' * 3)
    words = ["sweep", checkpoint, str(tmp_path / "rows.jsonl"), "--criterion", "margin", "--json"]
    process = run_process(*words, program=PROGRAMS[1], stdout=subprocess.PIPE)
    assert (process.returncode, json.loads(process.stdout)["rows"]) == (0, 6), process.stderr


@pytest.mark.parametrize("program", [pytest.param(PROGRAMS[0], marks=pytest.mark.slow), PROGRAMS[1]])
def test_as_a_program(program, tmp_path):
    words = ["convert", str(tmp_path / "old"), str(tmp_path / "new")]
    process = run_process(*words, program=program, stdout=subprocess.PIPE)
    assert process.returncode == 2
    assert process.stderr.startswith("deebert: ")
    assert process.stderr.count("\n") == 1
    assert process.stdout == ""


@pytest.mark.slow
def test_nobody_reads_what_it_writes():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = run_process("--help", stdout=writer, env={**os.environ, "PYTHONUNBUFFERED": ""})
    finally:
        os.close(writer)
    assert (process.returncode, process.stderr) == (141, "")


def test_help_loads_no_package_of_an_extra():
    code = (
        "import sys; from transformers_deebert.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        # pyarrow may come with pandas, which transformers loads where it is installed.
        "print([name for name in ('datasets', 'matplotlib') if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "convert" in process.stdout
    assert process.stdout.splitlines()[-1] == "[]", process.stderr
