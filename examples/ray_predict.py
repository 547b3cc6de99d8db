"""
A corpus that outgrows one machine, classified by Ray Data: a pool of actors, each with an `EarlyExitPredictor`.

    pip install transformers-deebert "ray[data]"
    python examples/ray_predict.py --model_name_or_path out --input corpus/*.jsonl --text_column text \
        --output_dir answers --early_exit_entropy 0.3 --actors 8

On one machine as it stands; on a cluster with `ray job submit -- python ray_predict.py …` (or `RAY_ADDRESS`), where
every node has to see the model, the input and `output_dir`: a shared file system, `s3://…`, or a model on the Hub.

Input are .jsonl or .parquet files, or folders of them. Output are .parquet files with the text, the columns named with
`--keep`, `label`, `score`, `exit_layer`, and `error`: why a row has no label (its `exit_layer` is -1). The rows come
in any order: keep a column that names them. An actor has one CPU; a GPU, or a share of one, with `--gpus_per_actor`.
"""

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from transformers_deebert import EarlyExitPredictor


FORMATS = (".jsonl", ".parquet")
ANSWERS = ("label", "score", "exit_layer", "error")
BATCHES = 16  # that a predictor gets at once: it sorts them by length, and fills its deep layers from all of them


class Classifier:
    """What an actor keeps: the model, loaded once. Is called with a table, and adds the answers to it."""

    def __init__(self, args: argparse.Namespace):
        # As many threads as Ray has given cores to this actor: all see all cores of the machine.
        torch.set_num_threads(args.cpus_per_actor)
        os.environ["RAYON_NUM_THREADS"] = str(args.cpus_per_actor)  # those of the tokenizer
        self.args = args
        model = AutoModelForSequenceClassification.from_pretrained(args.model_name_or_path)
        model = model.to("cuda" if args.gpus_per_actor and torch.cuda.is_available() else "cpu").eval()
        tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
        self.predictor = EarlyExitPredictor(model, tokenizer, args.batch_size, max_length=args.max_length)

    def __call__(self, table: Any) -> Any:
        import pyarrow as pa

        texts = table[self.args.text_column].to_pylist()
        # One bad row shall not end a run of hours.
        answers = self.predictor.predict(texts, early_exit_entropy=self.args.early_exit_entropy, errors="return")
        errors = [str(answers.errors[row]) if row in answers.errors else None for row in range(len(texts))]
        table = table.append_column("label", pa.array(answers.labels, pa.string()))
        table = table.append_column("score", pa.array(answers.scores.tolist(), pa.float32()))
        table = table.append_column("exit_layer", pa.array(answers.exit_layers.tolist(), pa.int32()))
        return table.append_column("error", pa.array(errors, pa.string()))


def find_input(inputs: list[str]) -> tuple[list[str], str]:
    """The files to read, and their format; raises `ValueError` where there are none, or several formats."""
    files = []
    for name in inputs:
        path = Path(name)
        if "://" in name:
            files.append(name)
        elif path.is_dir():
            found = sorted(str(file) for file in path.iterdir() if file.suffix in FORMATS)
            if not found:
                raise ValueError(f"`--input` {name!r} is a folder without {' or '.join(FORMATS)} files.")
            files += found
        elif path.is_file():
            files.append(str(path))
        else:
            raise ValueError(f"`--input` {name!r} does not exist: give files or folders, or an address as s3://….")
    formats = {Path(file).suffix for file in files}
    if len(formats) > 1 or not formats <= set(FORMATS):
        raise ValueError(
            f"`--input` has files that end in {sorted(formats)}: give either {' or '.join(FORMATS)} files, one format "
            "a run."
        )
    # Workers start in folders of their own.
    return [file if "://" in file else str(Path(file).resolve()) for file in files], formats.pop()


def find_model(name: str) -> str:
    """The checkpoint as actors find it, which start in folders of their own; names on the Hub stay as they are."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def find_output(folder: str) -> str:
    """
    Where to write; raises `ValueError` for a folder that holds something: answers of two runs would mix. Addresses
    that pyarrow does not know (`memory://…`) are not looked into.
    """
    from pyarrow import ArrowInvalid, fs

    place = folder if "://" in folder else str(Path(folder).resolve())
    try:
        system, path = fs.FileSystem.from_uri(place)
    except ArrowInvalid:
        return place
    known = system.get_file_info(path).type
    inside = known == fs.FileType.Directory and system.get_file_info(fs.FileSelector(path))
    if known == fs.FileType.File or inside:
        raise ValueError(f"`--output_dir` {folder!r} is not empty: name a new folder.")
    return place


def check_columns(known: list[str], text_column: str, keep: list[str]) -> list[str]:
    """The columns to read; raises `ValueError` for those that are not there, or that the answers would hide."""
    columns = list(dict.fromkeys([text_column, *keep]))
    for option, name in (("--text_column", text_column), *(("--keep", name) for name in keep)):
        if name not in known:
            raise ValueError(f"`{option}` is {name!r}, but the columns of the input are {known}.")
        if name in ANSWERS:
            raise ValueError(f"`{option}` is {name!r}, which is the name of an answer: rename the column.")
    return columns


def check_settings(args: argparse.Namespace) -> None:
    """Raises `ValueError` for what would otherwise fail in every actor."""
    for name in ("batch_size", "actors", "cpus_per_actor", "max_length"):
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name}` must be 1 or more, got {getattr(args, name)}.")
    if not 0 <= args.gpus_per_actor < float("inf"):
        raise ValueError(f"`--gpus_per_actor` must be 0 or more, got {args.gpus_per_actor}.")
    # Loads the model: a wrong name, a stock model and thresholds that do not fit it show here. On the CPU: the GPUs
    # belong to the actors.
    here = argparse.Namespace(**vars(args) | {"gpus_per_actor": 0.0})
    Classifier(here).predictor.predict([], early_exit_entropy=args.early_exit_entropy)


def start_ray(actors: int, cores: int, gpus: float) -> None:
    """
    Joins the cluster, or starts Ray on this machine; raises `ValueError` for more actors than it has room for. Actors
    keep their cores to the end: without one more, nobody would read, and the run would stand still.
    """
    import ray

    if os.environ.get("RAY_ADDRESS"):
        ray.init()
        free = ray.cluster_resources().get("CPU", 0) - 1
    else:
        free = os.cpu_count() or 1
        if actors * cores <= free:
            ray.init(address="local", num_cpus=actors * cores + 1)
    if actors * cores > free:
        raise ValueError(
            f"`--actors` {actors} with `--cpus_per_actor` {cores} take {actors * cores} cores, but there is room for "
            f"{free:g}: take fewer."
        )
    if (known := ray.cluster_resources().get("GPU", 0)) < actors * gpus:
        raise ValueError(
            f"`--actors` {actors} with `--gpus_per_actor` {gpus:g} need {actors * gpus:g} GPUs, but Ray "
            f"has {known:g}: take fewer."
        )


def classify(args: argparse.Namespace) -> Counter:
    """Runs the pool over the input. Returns how many rows left at each layer."""
    import ray.data

    files, kind = find_input(args.input)
    output = find_output(args.output_dir)
    args.model_name_or_path = find_model(args.model_name_or_path)
    check_settings(args)
    start_ray(args.actors, args.cpus_per_actor, args.gpus_per_actor)
    rows = ray.data.read_json(files, lines=True) if kind == ".jsonl" else ray.data.read_parquet(files)
    schema = rows.schema()
    if schema is None:
        raise ValueError(f"`--input` has no rows: {files}.")
    columns = check_columns(schema.names, args.text_column, args.keep)
    rows.select_columns(columns).map_batches(
        Classifier,
        fn_constructor_args=(args,),
        batch_format="pyarrow",
        batch_size=BATCHES * args.batch_size,
        compute=ray.data.ActorPoolStrategy(size=args.actors),
        num_cpus=args.cpus_per_actor,
        num_gpus=args.gpus_per_actor,
    ).write_parquet(output)
    written = ray.data.read_parquet(output).select_columns(["exit_layer"])
    counts: Counter = Counter()
    for batch in written.iter_batches(batch_format="numpy"):
        counts.update(batch["exit_layer"].tolist())
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="a checkpoint with off-ramps")
    parser.add_argument("--input", required=True, nargs="+", help=".jsonl or .parquet files, or folders of them")
    parser.add_argument("--text_column", default="text")
    parser.add_argument(
        "--keep", nargs="+", default=[], help="further columns of the input to write beside the answers"
    )
    parser.add_argument("--output_dir", required=True, help="new folder for .parquet files")
    parser.add_argument(
        "--early_exit_entropy",
        type=float,
        help="threshold S in nats; by default the checkpoint's configuration decides",
    )
    parser.add_argument("--batch_size", type=int, default=32, help="rows that go through a layer together")
    parser.add_argument("--max_length", type=int, default=128, help="longer texts are cut to so many tokens")
    parser.add_argument("--actors", type=int, default=1, help="copies of the model")
    parser.add_argument("--cpus_per_actor", type=int, default=1)
    parser.add_argument("--gpus_per_actor", type=float, default=0.0)
    args = parser.parse_args()
    begin = time.perf_counter()
    try:
        counts = classify(args)
    except ModuleNotFoundError as error:
        if error.name not in ("ray", "pyarrow", "pandas"):
            raise
        sys.exit('This needs Ray: pip install "ray[data]"')
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{sum(counts.values()):,} rows in {time.perf_counter() - begin:.0f} s, in {args.output_dir}")
    for layer, count in sorted(counts.items()):
        print(f"layer {layer}: {count:,}" if layer else f"without an answer: {count:,}, see the column `error`")


if __name__ == "__main__":
    main()
