"""Rows of every kind of source, and what is said of those that cannot be read."""

import datasets
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from transformers_deebert.cli.data import choose_split, load_rows
from transformers_deebert.rows import find_columns


TEXTS = ["fine, really", 'a "quoted" word', "NA", "007", "two\nlines", "naïve"]
LABELS = [0, 1, 1, 0, 2, 1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def rows():
    return Dataset.from_dict({"text": TEXTS, "label": LABELS, "id": [10, 11, 12, 13, 14, 15]})


def write(rows, path):
    write_in = {
        ".jsonl": lambda: rows.to_json(path),
        ".json": lambda: rows.to_json(path, lines=False),
        ".csv": lambda: rows.to_csv(path),
        ".tsv": lambda: rows.to_csv(path, sep="\t"),
        ".parquet": lambda: rows.to_parquet(path),
    }
    write_in[path.suffix]()
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_files(suffix, rows, tmp_path):
    loaded = load_rows(write(rows, tmp_path / f"rows{suffix}"))
    assert loaded[:] == rows[:]
    assert find_columns(loaded) == (("text",), "label")


def test_json_of_one_object_a_line(rows, tmp_path):
    path = tmp_path / "rows.json"
    rows.to_json(path, lines=True)
    assert load_rows(str(path))[:] == rows[:]


def test_a_tsv_file_with_quotes_as_text(tmp_path):
    """As GLUE's own."""
    path = tmp_path / "rows.tsv"
    path.write_text('text\tlabel\n"Hello\t1\nhe said "no"\t0\n')
    assert load_rows(str(path))[:] == {"text": ['"Hello', 'he said "no"'], "label": [1, 0]}


def test_cells_of_csv(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("\ufefftext,label,score,mixed\na,1,0.5,1\n,,,x\n\nc,0,1,\n", encoding="utf-8")
    assert load_rows(str(path))[:] == {
        "text": ["a", None, "c"],
        "label": [1, None, 0],
        "score": [0.5, None, 1.0],
        "mixed": ["1", "x", None],
    }


def test_a_key_that_some_lines_lack(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b", "label": 1}\n{"label": 0}\n')
    assert load_rows(str(path))[:] == {"text": ["a", "b", None], "label": [None, 1, 0]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.jsonl", '{"text": "a"}\n\n{"text": }\n', "Line 3 of .*rows.jsonl' is not JSON"),
        ("rows.jsonl", '{"text": "a"}\n[1]\n', "Line 2 of .* must be an object"),
        ("rows.json", '[{"text": "a"}, 3]', "Item 2 of .* must be an object"),
        ("rows.json", '[{"text": "a"}', "rows.json' is not JSON"),
        ("rows.json", '{\n"text": "a"\n}', "Line 1 of .* is not JSON"),
        ("rows.jsonl", '{"label": 1}\n{"label": null}\n{"label": "one"}\n', "'label' .* int at first, str in row 3"),
        ("rows.jsonl", '{"text": "a"}\n{"text": NaN}\n', "'text' .* str at first, float in row 2"),
        ("rows.jsonl", '{"label": 1}\n{"label": 100000000000000000000}\n', "column 'label' .* cannot be read"),
        ("rows.jsonl", '{"text": "\\ud800"}\n', "column 'text' .* cannot be read"),
        ("rows.csv", "text,label\na,1\nb,c,1\n", "Line 3 of .* has 3 cells, but the header has 2"),
        ("rows.csv", 'text,label\n"a,1\n', "Line 2 of .* is broken"),
        ("rows.csv", "text,text\na,1\n", "column name twice"),
        ("rows.tsv", "text\tlabel\na\n", "Line 2 of .* has 1 cells"),
        ("rows.csv", "text,label\n", "has no rows"),
        ("rows.csv", "", "has no rows"),
        ("rows.jsonl", "\n \n", "has no rows"),
        ("rows.json", "[]", "has no rows"),
        ("rows.parquet", "text", "is not a Parquet file"),
        ("rows.log", "text", "suffix '.log': convert it to one of .jsonl"),
        ("rows", "text", "suffix ''"),
    ],
)
def test_files_that_cannot_be_read(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_rows(str(tmp_path / name))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_other_encodings(suffix, tmp_path):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes("{text,label\nnaïve,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        load_rows(str(path))


@pytest.mark.parametrize("source", ["rows.jsonl", "data/rows.csv", "/nowhere/at/all", "", "..", "a b"])
def test_sources_that_are_not_there(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="does not exist|cannot be read"):
        load_rows(source)


def test_saved_data_sets(rows, tmp_path, capsys):
    rows.with_format("torch").save_to_disk(tmp_path / "one")
    splits = DatasetDict(train=rows, test=rows.select([1, 2]), validation=rows.select([3]))
    splits.save_to_disk(tmp_path / "three")
    assert load_rows(str(tmp_path / "one"))[:] == rows[:]
    capsys.readouterr()
    assert load_rows(str(tmp_path / "three"))["id"][:] == [13]
    assert "'validation'" in capsys.readouterr().err
    assert load_rows(str(tmp_path / "three"), split="test")["id"][:] == [11, 12]
    with pytest.raises(ValueError, match="no split 'dev': choose one of train, test, validation"):
        load_rows(str(tmp_path / "three"), split="dev")
    with pytest.raises(ValueError, match="no splits"):
        load_rows(str(tmp_path / "one"), split="test")


def test_a_folder_laid_out_as_on_the_hub(rows, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    rows.to_csv(folder / "train.csv")
    rows.select([2]).to_csv(folder / "test.csv")
    assert load_rows(str(folder))["id"][:] == [12]
    assert load_rows(str(folder), split="train")["id"][:] == rows["id"][:]
    assert not list((tmp_path / "cache").rglob("*.arrow"))  # users' rows are copied nowhere
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot be read"):
        load_rows(str(tmp_path / "empty"))


def test_a_folder_of_several_files(rows, tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "fair", "good"])})
    rows = rows.remove_columns("id").cast(features)
    (tmp_path / "folder").mkdir()
    for part in (0, 1):
        path = tmp_path / "folder" / f"validation-{part:05d}-of-00002.parquet"
        rows.shard(2, part, contiguous=True).to_parquet(path)
    loaded = load_rows(str(tmp_path / "folder"))
    assert loaded[:] == rows[:]
    assert loaded.features["label"].names == ["bad", "fair", "good"]
    path.write_text("damaged")
    with pytest.raises(ValueError, match="The folder .*folder' cannot be read"):
        load_rows(str(tmp_path / "folder"))
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "test.csv").write_text("text,label\n")
    with pytest.raises(ValueError, match="nothing' has no rows"):
        load_rows(str(tmp_path / "nothing"))


def test_which_split_is_read(rows):
    def choose(*names):
        return choose_split({name: name for name in names}, None, "data")

    assert choose("train", "test", "validation") == "validation"
    assert choose("train", "test") == "test"
    assert choose("train") == "train"
    # MNLI: rather none than the training rows
    for names in (("train", "validation_matched", "validation_mismatched"), ("train", "dev"), ("all",)):
        with pytest.raises(ValueError, match="choose one with `--split`"):
            choose(*names)


def test_a_sample(tmp_path):
    rows = Dataset.from_dict({"text": [str(number) for number in range(50)], "label": [0] * 50})
    path = write(rows, tmp_path / "rows.jsonl")
    sample = [int(text) for text in load_rows(path, max_rows=20)["text"]]
    assert len(set(sample)) == 20
    assert sample == sorted(sample) != list(range(20))
    assert sample == [int(text) for text in load_rows(path, max_rows=20, seed=0)["text"]]
    assert sample != [int(text) for text in load_rows(path, max_rows=20, seed=1)["text"]]
    assert len(load_rows(path, max_rows=500)) == 50
    with pytest.raises(ValueError, match="`max_rows`"):
        load_rows(path, max_rows=0)
    with pytest.raises(ValueError, match="has no splits"):
        load_rows(path, split="train")


def columns(*names, label="label", **others):
    values = {name: ["x"] for name in names} | {label: [1]} | others
    return Dataset.from_dict(values)


@pytest.mark.parametrize(
    "names",
    [
        ("text",),
        ("sentence",),
        ("sentence1", "sentence2"),
        ("premise", "hypothesis"),
        ("question", "sentence"),
        ("question1", "question2"),
        ("text1", "text2"),
        ("review",),
    ],
)
def test_columns_that_are_found(names):
    assert find_columns(columns(*names, idx=[3])) == (names, "label")


def test_two_columns_of_strings_may_be_anything():
    with pytest.raises(ValueError, match="No telling which of the columns before, after, label"):
        find_columns(columns("before", "after"))


def test_quotes_that_pair_across_lines_of_a_tsv_file(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text('text\tlabel\n"Hello she said\t1\nhe replied bye"\t0\nplain\t1\n')
    assert load_rows(str(path)).to_list() == [
        {"text": '"Hello she said', "label": 1},
        {"text": 'he replied bye"', "label": 0},
        {"text": "plain", "label": 1},
    ]
    path.write_text('text\tlabel\n"one\ttab"\t1\nplain\t0\n')
    assert load_rows(str(path))["text"][:] == ["one\ttab", "plain"]


def test_columns_that_are_named():
    rows = columns("text", "title", "topic", label="stars")
    assert find_columns(rows, ["title"], "stars") == (("title",), "stars")
    assert find_columns(rows, ["title", "text"], "stars") == (("title", "text"), "stars")
    assert find_columns(rows, ["title"], labelled=False) == (("title",), None)
    assert find_columns(columns("text", label="labels")) == (("text",), "labels")


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("title", "body", "topic"), {}, "No telling .* title, body, topic, label .*`text_columns`"),
        ((), {}, "No telling"),
        (("text",), {"text_columns": ["body"]}, "No column 'body' .* text, label"),
        (("text",), {"text_columns": []}, "one or two columns, got none"),
        (("text",), {"text_columns": ["text", "text"]}, "one or two"),
        (("a", "b", "c"), {"text_columns": ["a", "b", "c"]}, "one or two"),
        (("text",), {"label_column": "stars"}, "No column 'stars' .* text, label"),
    ],
)
def test_columns_that_are_not_there(names, options, message):
    with pytest.raises(ValueError, match=message):
        find_columns(columns(*names), **options)


def test_without_a_label_column():
    with pytest.raises(ValueError, match="No label column among text, stars: .*`label_column`"):
        find_columns(columns("text", label="stars"))


def test_class_names_come_along_in_parquet(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = Dataset.from_dict({"text": ["a"], "label": [1]}, features=features)
    loaded = load_rows(write(rows, tmp_path / "rows.parquet"))
    assert loaded.features["label"].names == ["bad", "good"]
    assert not (tmp_path / "cache").exists()  # users' rows are copied nowhere


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", '{"text": "a", "label": 1, "my meta": {"x": 1}}\n{"text": "b", "label": 0, "my meta": "y"}\n'),
        ("rows.csv", "text,label,,,\na,1,,,\nb,0,,x,\n,,,,\n"),
    ],
)
def test_columns_and_rows_that_nothing_needs(name, text, tmp_path, capsys):
    (tmp_path / name).write_text(text)
    assert load_rows(str(tmp_path / name))[:] == {"text": ["a", "b"], "label": [1, 0]}
    if name == "rows.jsonl":
        assert "column 'my meta'" in capsys.readouterr().err
        with pytest.raises(ValueError, match="column 'my meta' .* dict at first, str in row 2"):
            load_rows(str(tmp_path / name), needed=["my meta"])


def test_a_parquet_column_of_maps(tmp_path, capsys):
    maps = pyarrow.array([[("x", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    pyarrow.parquet.write_table(
        pyarrow.table({"text": ["a", "b"], "label": [1, 0], "meta": maps}), tmp_path / "rows.parquet"
    )
    assert load_rows(str(tmp_path / "rows.parquet"))[:] == {"text": ["a", "b"], "label": [1, 0]}
    assert "column 'meta'" in capsys.readouterr().err
