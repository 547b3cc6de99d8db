"""`deebert convert`: checkpoints of other early-exit implementations."""

import argparse
import sys

from ..hub.conversion import convert_checkpoint


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "convert",
        help="write a checkpoint of DeeBERT, BERxiT, PABEE or ElasticBERT in this library's form",
        description="Writes a checkpoint of another early-exit implementation (DeeBERT, BERxiT, PABEE, ElasticBERT) "
        "in this library's form, with its tokenizer.",
    )
    parser.add_argument("old", metavar="OLD", help="repository on the Hub or folder of the checkpoint")
    parser.add_argument("new", metavar="NEW", help="folder to write; must not exist, or be empty")
    parser.add_argument(
        "--swap-labels",
        type=int,
        nargs=2,
        metavar="LABEL",
        help="exchange two class indices in all exits (`1 2` for RoBERTa that the original code trained on MNLI)",
    )
    parser.add_argument("--swap_labels", type=int, nargs=2, help=argparse.SUPPRESS)  # its former spelling
    parser.add_argument("--revision", help="branch, tag or commit of OLD")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    kwargs = {} if options.revision is None else {"revision": options.revision}
    model = convert_checkpoint(options.old, options.new, options.swap_labels, **kwargs)
    trained = "trained" if model.config.off_ramps_trained else "untrained"
    sys.stdout.write(
        f"{options.new}: {type(model).__name__}, {model.config.num_hidden_layers} layers, "
        f"{len(model.base_model.off_ramps)} {trained} off-ramps, {model.config.num_labels} labels\n"
    )
    return 0
