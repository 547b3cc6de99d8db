"""ONNX files with the exits inside, against the PyTorch model."""

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
from transformers import BertTokenizer, pipeline

from transformers_deebert import (
    EarlyExitPredictor,
    OnnxEarlyExitModel,
    apply_threshold,
    collect_exits,
    export_onnx,
    pick_threshold,
)
from transformers_deebert.cli import main
from transformers_deebert.inference.onnx.export import warn_of_defaults


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


def single_feeds(session, batch, row, thresholds):
    """What the single file wants for one row."""
    ids = batch["input_ids"][row : row + 1].numpy()
    feeds = {
        "input_ids": ids,
        "attention_mask": batch["attention_mask"][row : row + 1].numpy(),
        "token_type_ids": np.zeros_like(ids),
        "early_exit_entropy": np.array(thresholds, dtype=np.float32),
    }
    return {value.name: feeds[value.name] for value in session.get_inputs()}


def check_single(path, batch, thresholds, expected):
    """Each row alone through the single file, with its padding."""
    session = onnxruntime.InferenceSession(path)
    answers = [
        session.run(["logits", "exit_layer"], single_feeds(session, batch, row, thresholds))
        for row in range(len(expected.logits))
    ]
    assert [layer.tolist() for _, layer in answers] == [[layer] for layer in expected.exit_layers.tolist()]
    torch.testing.assert_close(
        torch.tensor(np.concatenate([logits for logits, _ in answers])), expected.logits, **CLOSE
    )


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
    for given in (batch, left):
        check_same(model(**given, early_exit_entropy=thresholds), expected)
        check_same(model(**given), reference(**given))
    check_single(folder / "model.onnx", batch, thresholds, expected)
    check_single(folder / "model.onnx", left, thresholds, expected)


# ---- segments, in detail


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("lengths", "width"), [(LENGTHS, None), (LENGTHS, 20), ((3, 1, 9), 11), ((7,), None)])
def test_batches_and_widths_that_the_exporter_never_saw(model, case, side, lengths, width):
    reference, _, thresholds, _ = case
    batch = make_batch(lengths=lengths, width=width, side=side, seed=2)
    check_same(model(**batch, early_exit_entropy=thresholds), reference(**batch, early_exit_entropy=thresholds))
    check_same(model(**batch), reference(**batch))


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


def test_rows_and_columns_that_left_are_dropped(model, case, monkeypatch):
    _, batch, thresholds, expected = case
    seen = spy_on(model, monkeypatch, lambda feeds: feeds["attention_mask"].shape)
    check_same(model(**batch, early_exit_entropy=thresholds), expected)
    waiting = [int((expected.exit_layers >= layer).sum()) for layer in range(1, NUM_LAYERS + 1)]
    assert [rows for rows, _ in seen] == waiting
    lengths = batch["attention_mask"].sum(1)
    assert [width for _, width in seen] == [
        int(lengths[expected.exit_layers >= layer].max()) for layer in range(1, NUM_LAYERS + 1)
    ]
    seen.clear()
    model(**batch, early_exit_entropy=9.0)
    assert len(seen) == 1  # no row is active in layer 2


def test_every_threshold(model, case):
    reference, batch, thresholds, _ = case
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
    _, batch, thresholds, expected = case
    model = OnnxEarlyExitModel.from_pretrained(folder, num_threads=1)
    model.config.early_exit_entropy = thresholds
    check_same(model(**batch), expected)
    model.save_pretrained(tmp_path / "copy")
    check_same(OnnxEarlyExitModel.from_pretrained(tmp_path / "copy", num_threads=1)(**batch), expected)


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
    assert not (copy / "README.md").exists()  # it would tell how to load a checkpoint

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


def test_exits_are_collected_and_told_by_the_pipeline(model, case, tmp_path, caplog):
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
    told = [
        pipeline("text-classification", model=each, tokenizer=tokenizer, batch_size=4)(
            texts, early_exit_entropy=thresholds
        )
        for each in (model, reference)
    ]
    assert "not supported" not in caplog.text
    pipeline("text-classification", model=reference.base_model, tokenizer=tokenizer)  # has no head
    assert "'DeeBertModel' is not supported for text-classification" in caplog.text
    assert len({result["exit_layer"] for result in told[1]}) >= 3
    assert [result["exit_layer"] for result in told[0]] == [result["exit_layer"] for result in told[1]]
    assert [result["score"] for result in told[0]] == pytest.approx([result["score"] for result in told[1]], abs=1e-4)


# ---- the single file

BARE = """
import json, sys
for name in ("torch", "transformers", "transformers_deebert"):
    sys.modules[name] = None  # importing it is an error
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
for ids, thresholds in json.load(sys.stdin):
    ids = numpy.array([ids])
    feeds = {"input_ids": ids, "attention_mask": numpy.ones_like(ids), "token_type_ids": numpy.zeros_like(ids)}
    logits, layer = session.run(None, feeds | {"early_exit_entropy": numpy.array(thresholds, dtype=numpy.float32)})
    print(json.dumps([logits[0].tolist(), layer.tolist()]))
"""


def check_elsewhere(command, case):
    """Another process takes the exits of the single file, at several settings."""
    reference, batch, thresholds, _ = case
    rows = [batch["input_ids"][row, :length].tolist() for row, length in enumerate(LENGTHS)]
    settings = [thresholds, [0.0], [2.0], [0.0, *thresholds[1:]]]
    given = json.dumps([(ids, setting) for setting in settings for ids in rows])
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    wanted = [
        reference(**batch, early_exit_entropy=setting if len(setting) > 1 else setting[0]) for setting in settings
    ]
    assert [layers for _, layers in answers] == [[layer] for each in wanted for layer in each.exit_layers.tolist()]
    torch.testing.assert_close(
        torch.tensor([logits for logits, _ in answers]), torch.cat([each.logits for each in wanted]), **CLOSE
    )


def test_bare_runtime_takes_the_exits_of_the_single_file(folder, case):
    check_elsewhere([sys.executable, "-c", BARE, str(folder / "model.onnx")], case)


def test_node_takes_the_exits_of_the_single_file(folder, case):
    node = shutil.which("node")
    if node is None or subprocess.run([node, "-e", "require('onnxruntime-node')"], capture_output=True).returncode:
        pytest.skip("needs Node.js with onnxruntime-node (NODE_PATH)")
    check_elsewhere([node, str(Path(__file__).with_name("onnx_exit.mjs")), str(folder / "model.onnx")], case)


@pytest.mark.parametrize("side", ["left", "right"])
def test_single_file_respects_padding(folder, case, side):
    _, _, thresholds, expected = case
    check_single(folder / "model.onnx", make_batch(side=side, width=17), thresholds, expected)


def operators_run(path, feeds_of, tmp_path):
    """Names of the operators that a run of a file computes, from its profile."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(path, options)
    session.run(None, feeds_of(session))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return [event["args"]["op_name"] for event in events if event.get("args", {}).get("op_name")]


def test_single_file_computes_no_layer_behind_the_exit(folder, case, tmp_path):
    """Nodes of later layers are in the else-branches only, and the profile of a run shows none of them."""
    _, batch, thresholds, expected = case
    row = expected.exit_layers.tolist().index(2)
    run = operators_run(folder / "model.onnx", lambda session: single_feeds(session, batch, row, thresholds), tmp_path)
    # One normalisation of the embeddings, and two of each layer.
    assert sum("LayerNormalization" in name for name in run) == 1 + 2 * 2


def test_off_ramps_that_are_switched_off_are_not_computed(folder, case, tmp_path):
    """One entropy, with its logarithm, for each off-ramp that is."""
    _, batch, _, _ = case
    for thresholds, evaluated in (([0.0], 0), ([1e-6], 3), ([0.0, 1e-6, 0.0], 1)):
        run = operators_run(
            folder / "model.onnx", lambda session, given=thresholds: single_feeds(session, batch, 0, given), tmp_path
        )
        assert sum("LayerNormalization" in name for name in run) == 1 + 2 * NUM_LAYERS
        assert run.count("LogSoftmax") == evaluated
    hidden = np.zeros((2, 5, make_bert().config.hidden_size), np.float32)
    feeds = {"hidden": hidden, "attention_mask": np.ones((2, 5), np.int64)}
    for evaluate in (False, True):
        given = feeds | {"evaluate": np.array([evaluate])}
        run = operators_run(folder / "segment_02.onnx", lambda session, given=given: given, tmp_path)
        assert run.count("LogSoftmax") == evaluate


@pytest.mark.parametrize("off_ramp", range(1, NUM_LAYERS))
def test_only_exits_of_the_plan_are_evaluated(model, case, monkeypatch, off_ramp):
    reference, batch, _, _ = case
    seen = spy_on(model, monkeypatch, lambda feeds: bool(feeds.get("evaluate", [True])[0]))
    setting = [1e-6 if layer == off_ramp else 0.0 for layer in range(1, NUM_LAYERS)]
    model(**batch, early_exit_entropy=setting)
    assert [layer for layer, evaluated in enumerate(seen, 1) if evaluated] == [off_ramp, NUM_LAYERS]
    seen.clear()
    model(**batch, exit_layer=off_ramp)
    assert seen == [False] * (off_ramp - 1) + [True]
    seen.clear()
    model(**batch, output_off_ramp_logits=True)
    assert all(seen)


@pytest.mark.parametrize("wrong", [[0.1, 0.2], [0.1] * NUM_LAYERS])
def test_single_file_refuses_other_numbers_of_thresholds_and_more_rows(folder, case, wrong):
    _, batch, thresholds, _ = case
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    with pytest.raises(Exception, match=r"(?i)expand|shape"):
        session.run(None, single_feeds(session, batch, 0, wrong))
    feeds = {name: np.concatenate([array] * 2) for name, array in single_feeds(session, batch, 0, [0.0]).items()}
    with pytest.raises(Exception, match="input_ids|dimension"):
        session.run(None, feeds)


# ---- int8


@pytest.fixture(scope="module")
def int8_folder(tmp_path_factory):
    return export_onnx(make_bert(), tmp_path_factory.mktemp("int8") / "bert", dtype="int8")


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
    rows = [
        {name: tensor[row : row + 1, :length] for name, tensor in batch.items()} for row, length in enumerate(LENGTHS)
    ]
    table = collect(model, batch)
    wanted = torch.stack(reference(**batch, output_off_ramp_logits=True).off_ramp_logits, 1)
    assert np.isfinite(table.logits).all()
    difference = np.abs(table.logits - wanted.numpy())
    assert 0.001 < difference.mean() < 0.1
    thresholds = spread_thresholds(torch.from_numpy(table.entropies))
    answers = [model(**row, early_exit_entropy=thresholds) for row in rows]
    layers = torch.cat([answer.exit_layers for answer in answers])
    assert len(layers.unique()) >= 3
    assert layers.tolist() == table.exits_at(thresholds)[0].tolist()
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for row, (answer, given) in enumerate(zip(answers, rows, strict=True)):
        logits, layer = session.run(["logits", "exit_layer"], single_feeds(session, given, 0, thresholds))
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
        warn_of_defaults(make_model(early_exit_entropy=threshold).config)
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


def test_segments_tell_their_entropy(folder, case):
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


def test_logits_that_are_not_finite_never_leave(tmp_path):
    """With 64 labels, so that a lost NaN would not show by chance only."""
    model = make_model(num_layers=3, num_labels=64)
    batch = make_batch()
    assert model(**batch, early_exit_entropy=3.0).exit_layers.tolist() == [1] * len(LENGTHS)
    for off_ramp, value in zip(model.base_model.off_ramps, (math.nan, math.inf), strict=True):
        off_ramp.classifier.bias.data[5] = value
    expected = model(**batch, early_exit_entropy=9.0)
    assert expected.exit_layers.tolist() == [3] * len(LENGTHS)
    folder = export_onnx(model, tmp_path / "onnx")
    check_same(OnnxEarlyExitModel.from_pretrained(folder)(**batch, early_exit_entropy=9.0), expected)
    check_single(folder / "model.onnx", batch, [9.0], expected)


@pytest.mark.parametrize("opset", [18, pytest.param(22, marks=pytest.mark.slow)])
def test_two_layers(tmp_path, opset):
    """One off-ramp, one threshold: the least that is split."""
    reference, batch = make_model(num_layers=2), make_batch()
    folder = export_onnx(reference, tmp_path / "onnx", opset=opset)
    thresholds = tempered_thresholds(reference, **batch)
    expected = reference(**batch, early_exit_entropy=thresholds)
    assert expected.exit_layers.unique().tolist() == [1, 2]
    check_same(OnnxEarlyExitModel.from_pretrained(folder)(**batch, early_exit_entropy=thresholds), expected)
    check_single(folder / "model.onnx", batch, thresholds, expected)


def test_segments_that_always_compute_their_exit(folder, case, tmp_path):
    """As they were exported before they had the input `evaluate`."""
    reference, batch, thresholds, expected = case
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
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


def test_one_layer_and_the_model_that_is_exported_stays_as_it_is(tmp_path):
    model = make_model(num_layers=1).bfloat16().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folder = export_onnx(model, tmp_path / "onnx", opset=18)
    assert model.training
    assert model.dtype == torch.bfloat16
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    batch = make_batch()
    expected = model.eval().float()(**batch)
    check_same(OnnxEarlyExitModel.from_pretrained(folder)(**batch, early_exit_entropy=9.0), expected)
    check_single(folder / "model.onnx", batch, [9.0], expected)


def test_command_line_and_tokenizer(tmp_path, capsys):
    model = make_model(num_layers=2)
    model.save_pretrained(tmp_path / "model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(5, 100))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "model")
    out = ["export", str(tmp_path / "model"), str(tmp_path / "out"), "--no-segments"]
    assert main([*out, "--dtype", "int8"]) == 0
    assert json.loads((tmp_path / "out" / "onnx.json").read_text())["dtype"] == "int8"
    assert "model.onnx" in capsys.readouterr().out
    assert {"model.onnx", "tokenizer.json", "config.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out")]) == 2
    assert "is not empty" in capsys.readouterr().err
    with pytest.raises(ValueError, match="lacks segments: export the model again"):
        OnnxEarlyExitModel.from_pretrained(tmp_path / "out")


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
