"""`deebert export`: ONNX files with the exits inside."""

import argparse
import sys
from pathlib import Path

from ..checkpoints import load_model


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export",
        help="write ONNX files with the exits inside",
        description="Writes a classifier with trained off-ramps as ONNX files, with its configuration and tokenizer: "
        "model.onnx, whose exits any ONNX Runtime takes by itself, and a segment for each layer, for "
        "OnnxEarlyExitModel.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="repository on the Hub or folder")
    parser.add_argument("folder", metavar="FOLDER", help="folder to write; must not exist, or be empty")
    parser.add_argument("--no-single-file", action="store_true", help="write the segments only")
    parser.add_argument("--no-segments", action="store_true", help="write model.onnx only")
    parser.add_argument("--opset", type=int, default=20, help="version of the ONNX operators (%(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "int8"),
        default="float32",
        help="int8: layers in 8-bit integers; their entropies differ, so the threshold has to be chosen again "
        "(%(default)s)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of CHECKPOINT")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..inference.onnx.export import export_onnx

    model, tokenizer = load_model(options.checkpoint, options.revision)
    folder = export_onnx(
        model,
        options.folder,
        single_file=not options.no_single_file,
        segments=not options.no_segments,
        opset=options.opset,
        tokenizer=tokenizer,
        dtype=options.dtype,
    )
    size = sum(path.stat().st_size for path in Path(folder).glob("*.onnx"))
    names = ", ".join(sorted(path.name for path in Path(folder).glob("*.onnx")))
    sys.stdout.write(f"{options.folder}: {names} ({size / 1e6:.0f} MB)\n")
    return 0
