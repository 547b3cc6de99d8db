"""Labels however they are written, and texts, as a model takes them; the model itself."""

import pytest
import torch
from conftest import make_model
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from transformers_deebert import collect_exits
from transformers_deebert.checkpoints import load_model
from transformers_deebert.cli.data import load_rows
from transformers_deebert.labels import class_indices
from transformers_deebert.rows import encode_rows


NAN = float("nan")
NAMES = ["negative", "neutral", "Positive"]


def config(names=None):
    names = names or [f"LABEL_{index}" for index in range(3)]
    id2label = dict(enumerate(names))
    return make_model(num_labels=len(names), id2label=None).config.__class__(
        id2label=id2label, label2id={name: index for index, name in id2label.items()}
    )


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        ([0, 2, 1], None, [0, 2, 1]),
        ([0.0, 2.0, NAN], None, [0, 2, -100]),
        (["0", " 2", "1.0", "-1"], None, [0, 2, 1, -100]),
        ([True, False], None, [1, 0]),
        (["true", "False"], None, [1, 0]),
        ([0, -1, None, -100, 2], None, [0, -100, -100, -100, 2]),
        (["LABEL_2", "label_0"], None, [2, 0]),
        (["negative", "Positive", "positive", "NEUTRAL", "1"], NAMES, [0, 2, 2, 1, 1]),
        ([0, 1], NAMES, [0, 1]),
        # Names that differ in case alone, and names that are numbers.
        (["yes", "Yes"], ["Yes", "yes"], [1, 0]),
        ([1, 3, 2.0], ["1", "2", "3"], [0, 2, 1]),
        (["1", "3", "3.0"], ["1", "2", "3"], [0, 2, 2]),
        ([-1, 0, 1, None], ["-1", "0", "1"], [0, 1, 2, -100]),
        (["True", True, "false"], ["false", "true"], [1, 1, 0]),
    ],
)
def test_labels(values, names, expected):
    assert class_indices(values, None, config(names)) == expected


@pytest.mark.parametrize("label2id", [None, {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}])
def test_names_come_from_id2label(label2id):
    settings = config(NAMES)
    settings.label2id = label2id
    assert class_indices(["Positive", "negative", 1], None, settings) == [2, 0, 1]
    model = make_model()
    model.config.id2label, model.config.label2id = dict(enumerate(NAMES)), label2id
    table = collect_exits(model, [{"input_ids": [5, 6], "labels": 1}], progress=False)
    assert table.label_names == tuple(NAMES)


@pytest.mark.parametrize("label2id", [{"negative": 1, "neutral": 0, "Positive": 2}, {"other": 0}, {"negative": 7}])
def test_names_that_contradict_each_other(label2id):
    settings = config(NAMES)
    settings.label2id = label2id
    with pytest.raises(ValueError, match="`config.label2id` gives .* contradict each other"):
        class_indices(["negative"], None, settings)


STARS = ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 5, 2], [0, 4, 1]),
        (["5", "4.0", -1], [4, 3, -100]),
        ([0, 4, 1], [0, 4, 1]),
        (["2 stars", "1 Star"], [1, 0]),
    ],
)
def test_numbers_in_class_names(values, expected):
    assert class_indices(values, None, config(STARS)) == expected


def test_numbers_that_may_be_indices_or_names():
    with pytest.raises(ValueError, match=r"labels 1, 2, 4 may be indices, or .* class names \('1 star', .*write"):
        class_indices([1, 2, 4, 4], None, config(STARS))


def test_unknown_labels_that_are_skipped(capsys):
    assert class_indices([0, 9, "x", 2], None, config(), skip_unknown=True) == [0, -100, -100, 2]
    assert "2 of 4 rows are skipped: their label is none of the model's (rows 2, 3)" in capsys.readouterr().err


def test_minus_one_is_no_class():
    with pytest.raises(ValueError, match="-1 and one class"):
        class_indices([-1, 1, 1, -1], None, config())
    assert class_indices([-1, 1, 0], None, config()) == [-100, 1, 0]


@pytest.mark.parametrize(
    ("class_names", "names", "expected"),
    [
        (["positive", "negative", "neutral"], NAMES, [2, 0, 1]),  # another order
        (["a", "b", "c"], NAMES, [0, 1, 2]),
        (["a", "b", "c"], None, [0, 1, 2]),
        (["3", "2", "1"], ["1", "2", "3"], [2, 1, 0]),
    ],
)
def test_class_names_of_the_data_set(class_names, names, expected):
    assert class_indices([0, 1, 2, -1, None], class_names, config(names)) == [*expected, -100, -100]


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ([0, 3], None, r"row 2 is 3, but the model knows the indices 0 … 2:"),
        ([0, -2], None, "row 2 is -2"),
        ([0.5], None, "row 1 is 0.5"),
        ([float("inf")], None, "row 1 is inf"),
        (["one"], None, "row 1 is 'one'"),
        (["0", "awful"], NAMES, "row 2 is 'awful', .* the names negative, neutral, Positive"),
        (["YES"], ["Yes", "yes"], "row 1 is 'YES'"),
        ([0], ["1", "2", "3"], "row 1 is 0"),
        ([""], None, "row 1 is ''"),
        ([[1]], None, r"row 1 is \[1\]"),
        (["1" * 5000], None, "row 1 is '1111"),
        ([None, -1], None, "No row has a label"),
    ],
)
def test_labels_that_the_model_does_not_know(values, names, message):
    with pytest.raises(ValueError, match=message):
        class_indices(values, None, config(names))


def test_class_names_that_the_model_knows_in_part(capsys):
    names = ["negative", "other", "positive"]
    assert class_indices([0, 2], names, config(NAMES)) == [0, 2]
    with pytest.raises(ValueError, match="row 2 is 'other'"):
        class_indices([0, 1], names, config(NAMES))
    assert capsys.readouterr().err == ""
    class_indices([0], ["a", "b"], config(NAMES))
    assert "none of the model's" in capsys.readouterr().err


# ---- texts


@pytest.fixture
def tokenizer(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(5, 100))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    return BertTokenizer(str(tmp_path / "vocab.txt"))


def words(count):
    return " ".join(f"w{5 + number}" for number in range(count))


def test_encoded_rows(tokenizer, capsys):
    rows = Dataset.from_dict({"text": [words(2), "", words(1)], "label": ["1", "-1", "2"], "slice": ["a", "b", "c"]})
    encoded = encode_rows(rows, ("text",), "label", tokenizer, make_model())
    assert set(encoded.column_names) == {*tokenizer.model_input_names, "labels"}
    assert encoded["input_ids"][:] == [[2, 5, 6, 3], [2, 3], [2, 5, 3]]
    assert encoded["labels"][:] == [1, -100, 2]
    assert "1 of 3 rows have no label" in capsys.readouterr().err
    encoded = encode_rows(rows, ("text", "slice"), None, tokenizer, make_model())
    assert encoded["input_ids"][0] == [2, 5, 6, 3, 1, 3]
    assert "labels" not in encoded.column_names


def test_nothing_is_written_beside_a_saved_data_set(tokenizer, tmp_path):
    Dataset.from_dict({"text": ["w5"], "label": [0]}).save_to_disk(tmp_path / "rows")
    before = sorted((tmp_path / "rows").iterdir())
    encode_rows(load_rows(str(tmp_path / "rows")), ("text",), "label", tokenizer, make_model())
    assert sorted((tmp_path / "rows").iterdir()) == before


def test_names_of_a_saved_data_set_are_matched(tokenizer):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["positive", "negative", "neutral"])})
    rows = Dataset.from_dict({"text": ["w5", "w6"], "label": [0, 1]}, features=features)
    model = make_model()
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: index for index, name in enumerate(NAMES)}
    assert encode_rows(rows, ("text",), "label", tokenizer, model)["labels"][:] == [2, 0]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_long_rows_are_cut_to_what_the_model_takes(family, tokenizer, capsys):
    """Its table holds 20 positions (RoBERTa's 22 two fewer); a row of exactly so many is not cut."""
    rows = Dataset.from_dict({"text": [words(18), words(19), words(3), words(60)], "label": [0, 1, 2, 0]})
    model = make_model(family)
    encoded = encode_rows(rows, ("text",), "label", tokenizer, model)
    assert [len(ids) for ids in encoded["input_ids"]] == [20, 20, 5, 20]
    assert "2 of 4 rows are longer than 20 tokens" in capsys.readouterr().err
    model(input_ids=torch.tensor([encoded["input_ids"][0]]))
    encoded = encode_rows(rows, ("text",), "label", tokenizer, model, max_length=5)
    assert [len(ids) for ids in encoded["input_ids"]] == [5, 5, 5, 5]
    assert "3 of 4 rows are longer than 5 tokens" in capsys.readouterr().err


def test_the_tokenizers_limit_and_none(tokenizer, capsys):
    rows = Dataset.from_dict({"text": [words(60)], "label": [0]})
    model = make_model("deberta-v2")
    assert len(encode_rows(rows, ("text",), "label", tokenizer, model)["input_ids"][0]) == 62
    assert capsys.readouterr().err == ""
    tokenizer.model_max_length = 7
    assert len(encode_rows(rows, ("text",), "label", tokenizer, model)["input_ids"][0]) == 7


@pytest.mark.parametrize("length", [2, 21])
def test_lengths_out_of_range(length, tokenizer):
    rows = Dataset.from_dict({"text": ["w5"], "label": [0]})
    with pytest.raises(ValueError, match=f"`max_length` must be 3 to 20, .* got {length}"):
        encode_rows(rows, ("text",), "label", tokenizer, make_model(), max_length=length)


@pytest.mark.parametrize("texts", [["w5"] * 1500 + [None], [float(number) for number in range(1501)]])
def test_cells_that_are_no_text(texts, tokenizer):
    row, value = (1501, "None") if texts[-1] is None else (1, "0.0")
    rows = Dataset.from_dict({"text": texts, "label": [0] * 1501})
    with pytest.raises(ValueError, match=f"Row {row} has {value} in the column 'text'"):
        encode_rows(rows, ("text",), "label", tokenizer, make_model())


# ---- models


@pytest.fixture
def save(tokenizer, tmp_path):
    def save(model, with_tokenizer=True):
        model.save_pretrained(tmp_path / "checkpoint")
        if with_tokenizer:
            tokenizer.save_pretrained(tmp_path / "checkpoint")
        return str(tmp_path / "checkpoint")

    return save


def test_a_model_is_loaded(save):
    model, tokenizer = load_model(save(make_model("deberta-v2")))
    assert type(model).__name__ == "DeeDebertaV2ForSequenceClassification"
    assert not model.training
    assert model.device.type == "cpu"
    assert tokenizer("w5")["input_ids"][1] == 5


def test_a_stock_checkpoint(save):
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    with pytest.raises(ValueError, match=r"\(bert\) has no off-ramps: add exits first with `deebert add-exits`"):
        load_model(save(BertForSequenceClassification(BertConfig(**sizes))))


def test_untrained_off_ramps(save):
    with pytest.raises(ValueError, match="untrained: add exits first with `deebert add-exits`"):
        load_model(save(make_model(off_ramps_trained=False)))


def test_a_configuration_that_promises_off_ramps(save, tmp_path):
    folder = save(make_model())
    weights = tmp_path / "checkpoint" / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(weights).items() if "off_ramps" not in name}, weights)
    with pytest.raises(ValueError, match="untrained: add exits first"):
        load_model(folder)


def test_a_regression(save):
    with pytest.raises(ValueError, match="num_labels=1"):
        load_model(save(make_model(num_labels=1)))


def test_checkpoints_that_are_damaged_or_not_there(save, tmp_path):
    folder = save(make_model())
    weights = tmp_path / "checkpoint" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:500])
    messages = [(folder, "cannot be loaded")]
    messages += [(str(tmp_path / "nothing"), "nothing' cannot be loaded"), (str(tmp_path), "Unrecognized model")]
    for checkpoint, message in messages:
        with pytest.raises(ValueError, match=message) as error_info:
            load_model(checkpoint)
        assert "\n" not in str(error_info.value)
        assert checkpoint in str(error_info.value)
    weights.unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(folder)


def test_without_a_tokenizer(save):
    with pytest.raises(ValueError, match="no tokenizer"):
        load_model(save(make_model(), with_tokenizer=False))


@pytest.mark.parametrize("device", ["nowhere", "cuda:99", "meta", ""])
def test_devices(device, save):
    with pytest.raises(ValueError, match="`device`"):
        load_model(save(make_model()), device=device)
