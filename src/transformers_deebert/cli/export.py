"""`deebert export`: ONNX files with the exits inside."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from .options import Command, flag, one_of, option, place


kind = one_of(lambda: ("float32", "int8"))
DTYPE = "float32 (the default), or int8: layers in 8-bit integers; scores differ, so choose the threshold again"


@dataclass(kw_only=True)
class Export(Command):
    """
    Write ONNX files with the exits inside.

    Of a classifier with trained off-ramps, with its configuration and tokenizer: model.onnx, which takes any batch and
    whose exits any ONNX Runtime takes by itself, and a segment for each layer, for OnnxEarlyExitModel.
    """

    checkpoint: Annotated[str, place("CHECKPOINT", "repository on the Hub or folder")]
    folder: Annotated[str, place("FOLDER", "folder to write; must not exist, or be empty")]
    no_single_file: Annotated[bool, flag("--no-single-file", "write the segments only")] = False
    no_segments: Annotated[bool, flag("--no-segments", "write model.onnx only")] = False
    opset: Annotated[int, option("version of the ONNX operators (20)", metavar="N")] = 20
    dtype: Annotated[str, option(DTYPE, kind, "TYPE")] = "float32"
    revision: Annotated[str | None, option("branch, tag or commit of CHECKPOINT")] = None

    def run(self) -> int:
        from ..checkpoints import load_model
        from ..inference.onnx.export import export_onnx

        model, tokenizer = load_model(self.checkpoint, self.revision)
        folder = export_onnx(
            model,
            self.folder,
            single_file=not self.no_single_file,
            segments=False if self.no_segments else None,
            opset=self.opset,
            tokenizer=tokenizer,
            dtype=self.dtype,
        )
        size = sum(path.stat().st_size for path in Path(folder).glob("*.onnx"))
        names = ", ".join(sorted(path.name for path in Path(folder).glob("*.onnx")))
        sys.stdout.write(f"{self.folder}: {names} ({size / 1e6:.0f} MB)\n")
        return 0
