"""ONNX files, against the PyTorch model."""

import itertools
import json
import logging
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import (
    ENCODERS,
    EXPORTED,
    LENGTHS,
    NUM_LAYERS,
    make_batch,
    make_model,
    off_ramp_answers,
    spread_thresholds,
    take_rows,
)
from random_batches import FEW, MANY, check_random_batches, feeds_of, open_file, run_file
from transformers import AutoConfig, BertConfig, BertTokenizer, pipeline

from transformers_deebert import (
    EarlyExitPredictor,
    OnnxEarlyExitModel,
    apply_threshold,
    collect_exits,
    export_onnx,
    pick_threshold,
)
from transformers_deebert.cli import main
from transformers_deebert.inference.exported_folder import write_config
from transformers_deebert.inference.onnx import export


# Exporting takes seconds a layer: BERT is always tested, the others with the slow tests.
FAMILIES = [pytest.param(name, marks=pytest.mark.slow) for name in ENCODERS if name != "bert"]
TEMPERATURES = EXPORTED["off_ramp_temperatures"]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def make_bert():
    return make_model(**EXPORTED)


def tempered_thresholds(model, **batch):
    """Thresholds that no entropy is close to, of logits divided by the temperatures."""
    logits, _ = off_ramp_answers(model, **batch)
    if model.config.off_ramp_temperatures is not None:
        logits = logits / torch.tensor([*model.config.off_ramp_temperatures, 1.0])[:, None]
    log_probabilities = logits.log_softmax(-1)
    return spread_thresholds(-(log_probabilities.exp() * log_probabilities).sum(-1))


@pytest.fixture(scope="module")
def folder(exported_bert):
    return exported_bert


@pytest.fixture(scope="module")
def model(folder):
    return OnnxEarlyExitModel.from_pretrained(folder, num_threads=1)


@pytest.fixture(scope="module")
def segments(exported_bert):
    """The same without its single file."""
    model = OnnxEarlyExitModel.from_pretrained(exported_bert, num_threads=1)
    model.single_file = None
    return model


@pytest.fixture
def case():
    """The PyTorch model, a batch, thresholds, and their answer, in which at least three exit layers occur."""
    reference, batch = make_bert(), make_batch()
    thresholds = tempered_thresholds(reference, **batch)
    expected = reference(**batch, early_exit_entropy=thresholds)
    assert len(expected.exit_layers.unique()) >= 3
    return reference, batch, thresholds, expected


def check_same(output, expected):
    assert output.exit_layers.tolist() == expected.exit_layers.tolist()
    torch.testing.assert_close(output.logits, expected.logits, **CLOSE)


def check_single(path, batch, thresholds, expected):
    """The single file, for the whole batch."""
    logits, layers = run_file(open_file(path), batch, thresholds)
    assert layers.tolist() == expected.exit_layers.tolist()
    torch.testing.assert_close(torch.from_numpy(logits), expected.logits, **CLOSE)


# ---- every family


@pytest.mark.parametrize("name", FAMILIES)
def test_families_give_the_answers_of_pytorch(name, tmp_path):
    # ModernBERT's layers take turns: there an even number of them.
    reference = make_model(name, num_layers=NUM_LAYERS if name == "modernbert" else 3)
    folder = export_onnx(reference, tmp_path / name)
    model = OnnxEarlyExitModel.from_pretrained(folder, num_threads=1)
    batch = make_batch(name)
    thresholds = tempered_thresholds(reference, **batch)
    expected = reference(**batch, early_exit_entropy=thresholds)
    assert len(expected.exit_layers.unique()) >= 3
    left = make_batch(name, side="left", width=15)
    check_random_batches(folder / "model.onnx", reference, FEW, name)
    for _ in range(2):  # in the single file, and in segments
        for given in (batch, left):
            check_same(model(**given, early_exit_entropy=thresholds), expected)
            check_same(model(**given), reference(**given))
        model.single_file = None


# ---- segments, in detail


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("lengths", "width"), [(LENGTHS, 20), ((7,), None)])
def test_batches_and_widths_that_the_exporter_never_saw(segments, case, side, lengths, width):
    reference, _, thresholds, _ = case
    batch = make_batch(lengths=lengths, width=width, side=side, seed=2)
    check_same(segments(**batch, early_exit_entropy=thresholds), reference(**batch, early_exit_entropy=thresholds))
    check_same(segments(**batch), reference(**batch))


def spy_on(model, monkeypatch, note):
    """A list that grows by the note of what every segment is fed."""
    seen = []

    class Spy:
        def __init__(self, session):
            self.session = session

        def run(self, outputs, feeds):
            seen.append(note(feeds))
            return self.session.run(outputs, feeds)

    for segment in model.segments.values():
        monkeypatch.setattr(segment, "session", Spy(segment.session))
    return seen


def test_segments_drop_exited_rows_and_columns(segments, case, monkeypatch):
    _, batch, thresholds, expected = case
    seen = spy_on(segments, monkeypatch, lambda feeds: feeds["attention_mask"].shape)
    check_same(segments(**batch, early_exit_entropy=thresholds), expected)
    active = [int((expected.exit_layers >= layer).sum()) for layer in range(1, NUM_LAYERS + 1)]
    assert [rows for rows, _ in seen] == active
    lengths = batch["attention_mask"].sum(1)
    assert [width for _, width in seen] == [
        int(lengths[expected.exit_layers >= layer].max()) for layer in range(1, NUM_LAYERS + 1)
    ]
    seen.clear()
    segments(**batch, early_exit_entropy=9.0)
    assert len(seen) == 1  # no row is active in layer 2


@pytest.mark.parametrize("form", ["model", "segments"])
def test_every_threshold(form, case, request):
    reference, batch, thresholds, _ = case
    model = request.getfixturevalue(form)
    assert model(**batch, early_exit_entropy=0.0).exit_layers.tolist() == [NUM_LAYERS] * len(LENGTHS)
    assert model(**batch, early_exit_entropy=math.log(3) + 0.01).exit_layers.tolist() == [1] * len(LENGTHS)
    switched_off = [0.0, *thresholds[1:]]
    for setting in (0.0, 2.0, switched_off, np.float32(0.0)):
        check_same(model(**batch, early_exit_entropy=setting), reference(**batch, early_exit_entropy=setting))


def test_a_score_that_compares_exits(model, case):
    reference, batch, *_ = case
    expected = reference(**batch, exit_criterion={"score": "disagreement", "threshold": 0.5})
    assert len(expected.exit_layers.unique()) >= 2
    check_same(model(**batch, exit_criterion={"score": "disagreement", "threshold": 0.5}), expected)


def test_layers_and_all_exits(model, case):
    reference, batch, thresholds, expected = case
    for layer in range(1, NUM_LAYERS + 1):
        check_same(model(**batch, exit_layer=layer), reference(**batch, exit_layer=layer))
    output = model(**batch, early_exit_entropy=thresholds, output_off_ramp_logits=True)
    check_same(output, expected)
    torch.testing.assert_close(
        output.off_ramp_logits, reference(**batch, output_off_ramp_logits=True).off_ramp_logits, **CLOSE
    )


def test_configuration_decides_where_the_call_says_nothing(folder, case, tmp_path):
    """In a plain client of the file as well."""
    _, batch, thresholds, expected = case
    model = OnnxEarlyExitModel.from_pretrained(folder, num_threads=1)
    assert run_file(open_file(folder / "model.onnx"), batch)[1].tolist() == [NUM_LAYERS] * len(LENGTHS)
    model.config.early_exit_entropy = thresholds
    check_same(model(**batch), expected)
    model.save_pretrained(tmp_path / "copy")
    check_same(OnnxEarlyExitModel.from_pretrained(tmp_path / "copy", num_threads=1)(**batch), expected)
    check_single(tmp_path / "copy" / "model.onnx", batch, None, expected)


def test_a_default_of_another_criterion(folder, case, tmp_path, caplog):
    """The segments follow it; the single file runs the full depth."""
    reference, batch, _, _ = case
    model = OnnxEarlyExitModel.from_pretrained(folder, num_threads=1)
    model.config.exit_criterion = {"score": "disagreement", "threshold": 0.5}
    model.save_pretrained(tmp_path / "copy")
    assert "knows the score 'entropy' with patience 1, the configuration's threshold is of" in caplog.text
    check_single(tmp_path / "copy" / "model.onnx", batch, None, reference(**batch))
    copy = OnnxEarlyExitModel.from_pretrained(tmp_path / "copy", num_threads=1)
    check_same(copy(**batch), reference(**batch, exit_criterion=model.config.exit_criterion))


def test_other_libraries_know_the_configuration(folder):
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is BertConfig
    assert config.off_ramp_temperatures == TEMPERATURES
    assert OnnxEarlyExitModel.from_pretrained(folder, num_threads=1).config.to_dict() == make_bert().config.to_dict()


def test_the_configuration_names_no_code(tmp_path):
    """A stock pipeline would ask for the code of a checkpoint, which the exported folder has not."""
    make_model().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert {"auto_map", "custom_pipelines"} <= config.to_diff_dict().keys()
    write_config(config, tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert not {"auto_map", "custom_pipelines"} & saved.keys()


def single_rows(batch):
    lengths = batch["attention_mask"].sum(1).tolist()
    return [
        {name: tensor[row : row + 1, :length] for name, tensor in batch.items()} for row, length in enumerate(lengths)
    ]


def collect(model, batch):
    """The table of the rows of a batch, one at a time."""
    lengths = batch["attention_mask"].sum(1).tolist()
    rows = [
        {"input_ids": ids[:length], "labels": torch.tensor(row % 3)}
        for row, (ids, length) in enumerate(zip(batch["input_ids"], lengths, strict=True))
    ]
    return collect_exits(model, rows, batch_size=1, progress=False)


def test_a_chosen_threshold_is_the_folders_own(folder, case, tmp_path):
    _, batch, _, _ = case
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    table = collect(OnnxEarlyExitModel.from_pretrained(copy, num_threads=1), batch)
    choice = pick_threshold(table, target_saving=0.3)
    assert choice.temperatures == tuple(TEMPERATURES)
    expected = table.exits_at(choice.threshold)[0].tolist()
    assert len(set(expected)) >= 3
    apply_threshold(copy, choice)
    model = OnnxEarlyExitModel.from_pretrained(copy, num_threads=1)
    assert model(**batch).exit_layers.tolist() == expected
    assert model.config.off_ramp_temperatures == TEMPERATURES
    assert json.loads((copy / "numbers.json").read_text())["threshold_choice"] == choice.to_dict()
    assert not (copy / "README.md").exists()  # it would show how to load a checkpoint
    session = open_file(copy / "model.onnx")
    assert np.concatenate([run_file(session, row)[1] for row in single_rows(batch)]).tolist() == expected

    other = OnnxEarlyExitModel.from_pretrained(folder, num_threads=1)
    apply_threshold(other, choice)
    assert other(**batch).exit_layers.tolist() == expected


def test_temperatures_of_the_graphs_stay(folder, case, tmp_path):
    _, batch, _, _ = case
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    model = OnnxEarlyExitModel.from_pretrained(copy, num_threads=1)
    table = collect(model, batch)
    for temperatures in ([1.5, 0.5, 2.5], None):
        choice = pick_threshold(table.with_temperatures(temperatures), target_saving=0.3)
        for place in (copy, model):
            with pytest.raises(ValueError, match=r"`choice` is .* are \[1\.5, 0\.5, 2\.0\].*export that again"):
                apply_threshold(place, choice)
    assert model.config.early_exit_entropy is None
    assert json.loads((copy / "config.json").read_text())["early_exit_entropy"] is None
    assert not (copy / "numbers.json").exists()
    # What is noted are those that the exits have, not what somebody wrote into the configuration.
    model.config.off_ramp_temperatures = None
    again = collect(model, batch)
    np.testing.assert_array_equal(again.logits, table.logits)
    assert again.temperatures == table.temperatures == tuple(TEMPERATURES)


def test_arrays_segments_labels_and_tuples(model, case):
    reference, batch, thresholds, expected = case
    arrays = {name: tensor.numpy().astype(np.int32) for name, tensor in batch.items()}
    check_same(model(**arrays, early_exit_entropy=thresholds), expected)
    check_same(model(input_ids=batch["input_ids"][2:3, :7]), reference(input_ids=batch["input_ids"][2:3, :7]))
    others = torch.ones_like(batch["input_ids"])
    labels = torch.arange(len(LENGTHS)) % 3
    asked = {"token_type_ids": others, "labels": labels, "early_exit_entropy": thresholds}
    output, wanted = model(**batch, **asked), reference(**batch, **asked)
    assert (wanted.logits - expected.logits).abs().max() > 0.01  # the segments count
    check_same(output, wanted)
    torch.testing.assert_close(output.loss, wanted.loss, **CLOSE)
    assert torch.equal(model(**batch, return_dict=False)[0], model(**batch).logits)


def test_no_rows(model, case):
    _, batch, thresholds, _ = case
    output = model(**take_rows(batch, slice(0)), early_exit_entropy=thresholds)
    assert output.logits.shape == (0, 3)
    assert output.exit_layers.shape == (0,)


def test_masks_with_holes(model, case):
    reference, batch, thresholds, _ = case
    batch["attention_mask"][:, 1] = 0
    check_same(model(**batch, early_exit_entropy=thresholds), reference(**batch, early_exit_entropy=thresholds))


@pytest.mark.parametrize("setting", [{"early_exit_entropy": 0.0}, {"exit_layer": 2}, {}])
def test_the_predictor_runs_segments(model, case, setting):
    """Rows of several batches continue together there as well; `{}` stands for one at each off-ramp."""
    _, batch, thresholds, _ = case
    limits = setting or {"early_exit_entropy": thresholds}
    rows = [
        {"input_ids": ids[mask == 1].tolist()}
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    answers = EarlyExitPredictor(model, batch_size=3).predict(rows, **limits)
    wanted = model(**batch, **limits)
    torch.testing.assert_close(answers.logits, wanted.logits, **CLOSE)
    assert answers.exit_layers.tolist() == wanted.exit_layers.tolist()


def test_exits_are_collected_and_shown_by_the_pipeline(model, case, tmp_path, caplog):
    reference, batch, thresholds, _ = case
    rows = [
        {"input_ids": batch["input_ids"][row, :length], "labels": torch.tensor(row % 3)}
        for row, length in enumerate(LENGTHS)
    ]
    tables = [collect_exits(each, rows, batch_size=1, progress=False) for each in (model, reference)]
    np.testing.assert_allclose(tables[0].logits, tables[1].logits, **CLOSE)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(5, 100))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"), model_max_length=20)
    texts = [" ".join(f"word{(7 * row + word) % 90 + 5}" for word in range(row % 9 + 1)) for row in range(20)]
    logging.getLogger("transformers.pipelines.base").addHandler(caplog.handler)
    results = [
        pipeline("text-classification", model=each, tokenizer=tokenizer, batch_size=4)(
            texts, early_exit_entropy=thresholds
        )
        for each in (model, reference)
    ]
    assert "not supported" not in caplog.text
    pipeline("text-classification", model=reference.base_model, tokenizer=tokenizer)  # has no head
    assert "'DeeBertModel' is not supported for text-classification" in caplog.text
    assert len({result["exit_layer"] for result in results[1]}) >= 3
    assert [result["exit_layer"] for result in results[0]] == [result["exit_layer"] for result in results[1]]
    assert [result["score"] for result in results[0]] == pytest.approx(
        [result["score"] for result in results[1]], abs=1e-4
    )


# ---- the single file


@pytest.mark.parametrize("cases", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_random_batches(folder, cases):
    assert check_random_batches(folder / "model.onnx", make_bert(), cases) == {1, 2, 3, 4}


BARE = """
import json, sys
for name in ("torch", "transformers", "transformers_deebert"):
    sys.modules[name] = None  # importing it is an error
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
for ids, mask, thresholds in json.load(sys.stdin):
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": numpy.zeros_like(ids)}
    feeds = {name: numpy.array(values, dtype=numpy.int64) for name, values in feeds.items()}
    if thresholds is not None:
        feeds["exit_threshold"] = numpy.array(thresholds, dtype=numpy.float32)
    logits, layers = session.run(None, feeds)
    print(json.dumps([logits.tolist(), layers.tolist()]))
"""


def check_elsewhere(command, case):
    """Another process takes the exits of the single file, at several settings."""
    reference, batch, thresholds, _ = case
    settings = [thresholds, [0.0], [2.0], [0.0, *thresholds[1:]], None]
    arrays = [batch[name].tolist() for name in ("input_ids", "attention_mask")]
    given = json.dumps([(*arrays, setting) for setting in settings])
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    for setting, line in zip(settings, done.stdout.splitlines(), strict=True):
        logits, layers = json.loads(line)
        setting = None if setting is None else setting if len(setting) > 1 else setting[0]
        wanted = reference(**batch, early_exit_entropy=setting)
        assert layers == wanted.exit_layers.tolist()
        torch.testing.assert_close(torch.tensor(logits), wanted.logits, **CLOSE)


def test_bare_runtime_takes_the_exits_of_the_single_file(folder, case):
    check_elsewhere([sys.executable, "-c", BARE, str(folder / "model.onnx")], case)


def operators_run(path, feeds_of, tmp_path):
    """Names of the operators that a run of a file computes, and the shapes of their first outputs."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.log_severity_level = 3
    options.profile_file_prefix = str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(path, options)
    session.run(None, feeds_of(session))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    details = [event["args"] for event in events if event.get("args", {}).get("op_name")]
    return [(one["op_name"], next(iter(one["output_type_shape"][0].values()), None)) for one in details]


def test_single_file_computes_active_rows_only(folder, case, tmp_path):
    """And the columns that they need, no layer behind the last exit, and gathers where some rows exit."""
    _, batch, thresholds, expected = case
    lengths, exits = batch["attention_mask"].sum(1), expected.exit_layers
    batch = make_batch(side="left", width=17)
    for given, layers in ((thresholds, exits), ([0.0], torch.full_like(exits, 4)), ([9.0], torch.ones_like(exits))):
        run = operators_run(
            folder / "model.onnx", lambda session, given=given: feeds_of(session, batch, given), tmp_path
        )
        active = [layers >= layer for layer in range(1, int(layers.max()) + 1)]
        sizes = [[int(rows.sum()), int(lengths[rows].max()), 32] for rows in active]
        norms = [shape for name, shape in run if "LayerNormalization" in name]
        # One normalisation of the embeddings, and two of each layer.
        assert norms == [sizes[0], *(size for size in sizes for _ in range(2))]
        names = [name for name, _ in run]
        some = sum(int(rows.sum()) < int(before.sum()) for before, rows in itertools.pairwise(active))
        assert names.count("NonZero") == 2 * some


def test_off_ramps_that_are_switched_off_are_not_computed(folder, case, tmp_path):
    """One entropy, with its logarithm, for each off-ramp that is."""
    _, batch, _, _ = case
    for thresholds, evaluated in (([0.0], 0), ([1e-6], 3), ([0.0, 1e-6, 0.0], 1)):
        run = operators_run(
            folder / "model.onnx", lambda session, given=thresholds: feeds_of(session, batch, given), tmp_path
        )
        assert [name for name, _ in run].count("LogSoftmax") == evaluated
    hidden = np.zeros((2, 5, make_bert().config.hidden_size), np.float32)
    feeds = {"hidden": hidden, "attention_mask": np.ones((2, 5), np.int64)}
    for evaluate in (False, True):
        given = feeds | {"evaluate": np.array([evaluate])}
        run = operators_run(folder / "segment_02.onnx", lambda session, given=given: given, tmp_path)
        assert [name for name, _ in run].count("LogSoftmax") == evaluate


def test_what_a_call_loads(folder, case):
    """The single file alone, until a call needs segments."""
    _, batch, thresholds, _ = case
    model = OnnxEarlyExitModel.from_pretrained(folder, num_threads=1)
    for setting in ({}, {"early_exit_entropy": thresholds}, {"exit_layer": NUM_LAYERS}, {"early_exit_entropy": 0}):
        model(**batch, **setting)
    model(**batch, exit_criterion={"score": "entropy", "threshold": 0.5, "patience": 1})
    assert model.loaded_segments is None
    model(**batch, exit_criterion={"score": "entropy", "threshold": 0.5, "patience": 2})
    assert sorted(model.loaded_segments) == [1, 2, 3, 4]


def test_weights_are_stored_once(folder):
    weights = 4 * sum(parameter.numel() for parameter in make_bert().parameters())
    graphs = (folder / "model.onnx").stat().st_size - weights
    assert graphs < 60_000


def test_weights_beside_the_file(folder, case, tmp_path, monkeypatch):
    """As those above 2 GB; the default threshold changes there too."""
    _, batch, thresholds, expected = case
    monkeypatch.setattr(export, "LARGEST_FILE", 1000)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    noted = export.write_graph(onnx.load(copy / "model.onnx"), copy / "model.onnx")
    assert noted["data"] == "model.onnx.data"
    assert (copy / "model.onnx").stat().st_size < (copy / "model.onnx.data").stat().st_size
    check_single(copy / "model.onnx", batch, thresholds, expected)
    model = OnnxEarlyExitModel.from_pretrained(copy, num_threads=1)
    model.config.early_exit_entropy = thresholds
    model.save_pretrained(tmp_path / "again")
    check_single(tmp_path / "again" / "model.onnx", batch, None, expected)


@pytest.mark.parametrize("off_ramp", range(1, NUM_LAYERS))
def test_only_exits_of_the_plan_are_evaluated(segments, case, monkeypatch, off_ramp):
    reference, batch, _, _ = case
    seen = spy_on(segments, monkeypatch, lambda feeds: bool(feeds.get("evaluate", [True])[0]))
    setting = [1e-6 if layer == off_ramp else 0.0 for layer in range(1, NUM_LAYERS)]
    segments(**batch, early_exit_entropy=setting)
    assert [layer for layer, evaluated in enumerate(seen, 1) if evaluated] == [off_ramp, NUM_LAYERS]
    seen.clear()
    segments(**batch, exit_layer=off_ramp)
    assert seen == [False] * (off_ramp - 1) + [True]
    seen.clear()
    segments(**batch, output_off_ramp_logits=True)
    assert all(seen)


@pytest.mark.parametrize("wrong", [[0.1, 0.2], [0.1] * NUM_LAYERS])
def test_single_file_refuses_other_numbers_of_thresholds(folder, case, wrong):
    with pytest.raises(Exception, match=r"(?i)expand|shape"):
        run_file(open_file(folder / "model.onnx"), case[1], wrong)


# ---- int8


@pytest.fixture(scope="module")
def int8_folder(exported):
    return exported["int8"]


def all_nodes(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def test_int8_is_for_the_layers_only(folder, int8_folder):
    assert json.loads((int8_folder / "onnx.json").read_text())["dtype"] == "int8"
    for path in sorted(int8_folder.glob("*.onnx")):
        whole, quantised = (list(all_nodes(onnx.load(at / path.name).graph)) for at in (folder, int8_folder))
        layers = NUM_LAYERS if path.name == "model.onnx" else 1
        # Query, key, value, what follows attention, and two of the feed-forward.
        assert sum(node.op_type == "MatMulInteger" for node in quantised) == 6 * layers
        exits = [[node.op_type for node in nodes].count("Gemm") for nodes in (whole, quantised)]
        assert exits[0] == exits[1] == 2 * layers
        assert not onnx.load(path).metadata_props


def check_int8(folder, reference, batch):
    """Both forms agree row by row, are near the model in float32, and are not it."""
    model = OnnxEarlyExitModel.from_pretrained(folder, num_threads=1)
    rows = single_rows(batch)
    table = collect(model, batch)
    wanted = torch.stack(reference(**batch, output_off_ramp_logits=True).off_ramp_logits, 1)
    assert np.isfinite(table.logits).all()
    difference = np.abs(table.logits - wanted.numpy())
    assert 0.001 < difference.mean() < 0.1
    thresholds = spread_thresholds(torch.from_numpy(table.entropies))
    session, model.single_file = open_file(folder / "model.onnx"), None
    answers = [model(**row, early_exit_entropy=thresholds) for row in rows]
    layers = torch.cat([answer.exit_layers for answer in answers])
    assert len(layers.unique()) >= 3
    assert layers.tolist() == table.exits_at(thresholds)[0].tolist()
    for row, (answer, given) in enumerate(zip(answers, rows, strict=True)):
        logits, layer = run_file(session, given, thresholds)
        assert layer.tolist() == answer.exit_layers.tolist(), row
        np.testing.assert_allclose(logits, answer.logits, **CLOSE)
    assert pick_threshold(table, target_saving=0.3).met


def test_int8_exits(int8_folder, case):
    check_int8(int8_folder, case[0], case[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "bert"])
def test_int8_exits_of_every_family(name, tmp_path):
    reference = make_model(name, num_layers=NUM_LAYERS if name == "modernbert" else 3)
    check_int8(export_onnx(reference, tmp_path / name, dtype="int8"), reference, make_batch(name))


@pytest.mark.slow
def test_a_default_threshold_that_goes_along_to_int8(tmp_path, caplog):
    model = make_model(num_layers=1, early_exit_entropy=0.3)
    for dtype, told in (("float32", False), ("int8", True)):
        export_onnx(model, tmp_path / dtype, single_file=False, dtype=dtype)
        assert ("`early_exit_entropy` (0.3) goes along" in caplog.text) == told
    for threshold, told in (([0.0, 0.3, 0.0], True), ([0.0] * 3, False), (0, False), (None, False)):
        caplog.clear()
        export.warn_of_defaults(make_model(early_exit_entropy=threshold).config)
        assert (f"`early_exit_entropy` ({threshold}) goes along" in caplog.text) == told
        assert bool(caplog.text) == told


# ---- what is written


def test_what_the_folder_holds(folder):
    notes = json.loads((folder / "onnx.json").read_text())
    names = [f"segment_0{layer}.onnx" for layer in range(1, NUM_LAYERS + 1)]
    assert [entry["file"] for entry in notes["segments"]] == names
    assert {path.name for path in folder.iterdir()} == {*names, "model.onnx", "onnx.json", "config.json"}
    assert (notes["layers"], notes["labels"]) == (NUM_LAYERS, ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert notes["max_tokens"] == 20
    for entry in [*notes["segments"], notes["single_file"]]:
        graph = onnx.load(folder / entry["file"])
        onnx.checker.check_model(graph, full_check=True)
        assert [opset.version for opset in graph.opset_import if not opset.domain] == [notes["opset"]] == [20]
        assert graph.ir_version == entry["ir_version"]
        assert [value.name for value in graph.graph.input] == entry["inputs"]
        assert [value.name for value in graph.graph.output] == entry["outputs"]
        assert not graph.functions
        assert b".py" not in graph.SerializeToString()  # no traces of the machine that exported


def test_segments_give_their_entropy(folder, case):
    """For those who write a loop of their own, in any language."""
    reference, batch, _, _ = case
    state, mask = None, batch["attention_mask"].numpy()
    answers = reference(**batch, output_off_ramp_logits=True).off_ramp_logits
    for layer in range(1, NUM_LAYERS + 1):
        session = onnxruntime.InferenceSession(folder / f"segment_0{layer}.onnx")
        tokens = {"input_ids": batch["input_ids"].numpy(), "token_type_ids": np.zeros_like(mask)}
        feeds = {"attention_mask": mask} | (tokens if layer == 1 else {"hidden": state})
        if layer < NUM_LAYERS:
            only, *nothing = session.run(["states", "logits", "entropy"], feeds | {"evaluate": np.array([False])})
            assert [array.shape for array in nothing] == [(0, 3), (0,)]
            feeds["evaluate"] = np.array([True])
        *states, logits, entropy = session.run(None, feeds)
        if layer < NUM_LAYERS:
            (state,) = states
            np.testing.assert_array_equal(only, state)
        probabilities = answers[layer - 1].double().softmax(-1)
        np.testing.assert_allclose(logits, answers[layer - 1], **CLOSE)
        np.testing.assert_allclose(entropy, -(probabilities * probabilities.log()).sum(-1), **CLOSE)
        assert (entropy >= 0).all()


def test_logits_that_are_not_finite_never_exit(folder, case, tmp_path):
    reference, batch, _, _ = case
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    off_ramps = {1: math.nan, 3: math.inf}
    for path in copy.glob("*.onnx"):
        graph = onnx.load(path)
        for tensor in all_initializers(graph.graph):
            for place, value in off_ramps.items():
                if tensor.name.endswith(f"off_ramps.{place - 1}.classifier.weight"):
                    values = onnx.numpy_helper.to_array(tensor).copy()
                    values[1, 0] = value
                    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(graph, path)
    for place, value in off_ramps.items():
        reference.base_model.off_ramps[place - 1].classifier.weight.data[1, 0] = value
    for thresholds, layers in (([9.0, 0.0, 9.0], {4}), ([9.0] * 3, {2})):
        expected = reference(**batch, early_exit_entropy=thresholds)
        assert set(expected.exit_layers.tolist()) == layers
        check_single(copy / "model.onnx", batch, thresholds, expected)
        model = OnnxEarlyExitModel.from_pretrained(copy)
        model.single_file = None
        check_same(model(**batch, early_exit_entropy=thresholds), expected)


def all_initializers(graph):
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_initializers(attribute.g)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 22])
def test_two_layers(tmp_path, opset):
    """One off-ramp, one threshold: the least that is split."""
    reference, batch = make_model(num_layers=2), make_batch()
    folder = export_onnx(reference, tmp_path / "onnx", opset=opset)
    thresholds = tempered_thresholds(reference, **batch)
    expected = reference(**batch, early_exit_entropy=thresholds)
    assert expected.exit_layers.unique().tolist() == [1, 2]
    model = OnnxEarlyExitModel.from_pretrained(folder)
    for _ in range(2):
        check_same(model(**batch, early_exit_entropy=thresholds), expected)
        model.single_file = None
    check_single(folder / "model.onnx", batch, thresholds, expected)


def test_segments_that_always_compute_their_exit(folder, case, tmp_path):
    """As they were exported before they had the input `evaluate`."""
    reference, batch, thresholds, expected = case
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    notes = json.loads((copy / "onnx.json").read_text())
    del notes["single_file"]["patience"]
    (copy / "onnx.json").write_text(json.dumps(notes))
    for path in sorted(copy.glob("segment_*.onnx"))[:-1]:
        model = onnx.load(path)
        (flag,) = (value for value in model.graph.input if value.name == "evaluate")
        model.graph.input.remove(flag)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([True]), "evaluate"))
        onnx.save(model, path)
    model = OnnxEarlyExitModel.from_pretrained(copy, num_threads=1)
    switched_off = [0.0, *thresholds[1:]]
    for settings in ({"early_exit_entropy": thresholds}, {"early_exit_entropy": switched_off}, {"exit_layer": 3}, {}):
        wanted = reference(**batch, **settings)
        check_same(model(**batch, **settings), wanted)
        rows = [{"input_ids": ids[mask == 1]} for ids, mask in zip(*batch.values(), strict=True)]
        answers = EarlyExitPredictor(model, batch_size=3).predict(rows, **settings)
        assert answers.exit_layers.tolist() == wanted.exit_layers.tolist()
        torch.testing.assert_close(answers.logits, wanted.logits, **CLOSE)


def test_command_line_and_tokenizer(tmp_path, capsys):
    """Of one layer, which has no off-ramp."""
    model = make_model(num_layers=1)
    model.save_pretrained(tmp_path / "model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(5, 100))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "model")
    out = ["export", str(tmp_path / "model"), str(tmp_path / "out"), "--no-segments"]
    assert main([*out, "--dtype", "int8", "--opset", "18"]) == 0
    notes = json.loads((tmp_path / "out" / "onnx.json").read_text())
    assert (notes["dtype"], notes["opset"]) == ("int8", 18)
    assert "model.onnx" in capsys.readouterr().out
    assert {"model.onnx", "tokenizer.json", "config.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out")]) == 2
    assert "is not empty" in capsys.readouterr().err
    exported, batch = OnnxEarlyExitModel.from_pretrained(tmp_path / "out"), make_batch()
    output = exported(**batch, early_exit_entropy=9.0)
    assert output.exit_layers.tolist() == [1] * len(LENGTHS)
    torch.testing.assert_close(output.logits, model(**batch).logits, atol=0.1, rtol=0.1)
    with pytest.raises(ValueError, match=r"no segments, which other exit criteria.*export the model again"):
        exported(**batch, output_off_ramp_logits=True)


# ---- bad input


def test_folders_that_are_no_export(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no onnx\.json: export the model there first"):
        OnnxEarlyExitModel.from_pretrained(tmp_path)
    OnnxEarlyExitModel.from_pretrained(folder).save_pretrained(tmp_path)
    (tmp_path / "segment_02.onnx").unlink()
    with pytest.raises(ValueError, match=r"lacks segment_02\.onnx"):
        OnnxEarlyExitModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"providers": ["NoSuchProvider"]}, "`providers`.*CPUExecutionProvider.*NoSuchProvider"),
        ({"providers": []}, "`providers`"),
        ({"providers": "CPUExecutionProvider"}, "`providers` must be a list"),
        ({"num_threads": 0}, "`num_threads`"),
        ({"num_threads": 1.5}, "`num_threads`"),
    ],
)
def test_settings_of_the_runtime(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        OnnxEarlyExitModel.from_pretrained(folder, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"early_exit_entropy": [0.1, 0.2]}, "2 thresholds, but the model has 3"),
        ({"early_exit_entropy": math.nan}, "finite"),
        ({"early_exit_entropy": 0.1, "exit_layer": 2}, "exclude each other"),
        ({"exit_layer": 5}, "`exit_layer`"),
        ({"input_ids": torch.ones(1, 21, dtype=torch.long), "attention_mask": None}, "21 tokens.*holds 20"),
        ({"input_ids": [[1, 2]], "attention_mask": None}, "`input_ids` must be a torch tensor or a numpy array"),
        ({"input_ids": torch.ones(12, 12)}, "`input_ids` must hold integers"),
        ({"attention_mask": torch.ones(12, 3)}, "`attention_mask`"),
        ({"token_type_ids": torch.ones(12, 3, dtype=torch.long)}, "`token_type_ids`"),
        ({"labels": torch.full((12,), 7)}, "`labels`"),
    ],
)
def test_calls(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model(**make_batch() | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"opset": 17}, "`opset`"),
        ({"opset": "20"}, "`opset`"),
        ({"dtype": "int4"}, "`dtype` must be 'float32' or 'int8', got 'int4'"),
        ({"dtype": None}, "`dtype`"),
        ({"dtype": torch.int8}, "`dtype`"),
        ({"single_file": False, "segments": False}, "nothing would be written"),
    ],
)
def test_settings_of_the_export(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_onnx(make_model(), tmp_path / "onnx", **arguments)
    assert not (tmp_path / "onnx").exists()


def test_models_that_cannot_be_exported(model, tmp_path):
    with pytest.raises(ValueError, match="must be a classifier with off-ramps"):
        export_onnx(make_model().base_model, tmp_path / "onnx")
    with pytest.raises(ValueError, match="got a `OnnxEarlyExitModel`: load the checkpoint"):
        export_onnx(model, tmp_path / "onnx")
    with pytest.raises(ValueError, match="num_labels=1"):
        export_onnx(make_model(num_labels=1), tmp_path / "onnx")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is not empty"):
        export_onnx(make_model(), tmp_path)
