"""`deebert convert`: checkpoints of other early-exit implementations."""

import sys
from dataclasses import dataclass
from typing import Annotated

from .options import Command, option, place


SWAP = "exchange two class indices in all exits (1 2 for RoBERTa that the original code trained on MNLI)"


@dataclass(kw_only=True)
class Convert(Command):
    """
    Write a checkpoint of DeeBERT, BERxiT, PABEE or ElasticBERT in this library's form.

    With its tokenizer.
    """

    old: Annotated[str, place("OLD", "repository on the Hub or folder of the checkpoint")]
    new: Annotated[str, place("NEW", "folder to write; must not exist, or be empty")]
    swap_labels: Annotated[tuple[int, int] | None, option(SWAP, metavar="LABEL LABEL")] = None
    revision: Annotated[str | None, option("branch, tag or commit of OLD")] = None

    def run(self) -> int:
        from ..hub.conversion import convert_checkpoint

        kwargs = {} if self.revision is None else {"revision": self.revision}
        model = convert_checkpoint(self.old, self.new, self.swap_labels, **kwargs)
        trained = "trained" if model.config.off_ramps_trained else "untrained"
        sys.stdout.write(
            f"{self.new}: {type(model).__name__}, {model.config.num_hidden_layers} layers, "
            f"{len(model.base_model.off_ramps)} {trained} off-ramps, {model.config.num_labels} labels\n"
        )
        return 0
