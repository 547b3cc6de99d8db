"""
Scores of every layer, for each way of pooling, on one backbone.

    python benchmarks/layer_scores.py --model FOLDER --train_file sst2/train.jsonl \
        --validation_file sst2/validation.jsonl [--rows 4000] [--pooling cls mean]

Stage 1 runs once; stage 2 then trains off-ramps of each pooling on that backbone. Files hold one JSON object a line
with `text` and `label`. Prints the accuracy in per cent, and which share of the layers a threshold saves: `saved` is
the layer saving, with the accuracy at that threshold, on the same rows (no threshold is chosen here).
"""

import argparse
import tempfile

import numpy as np
import transformers
from sentences import arguments, read
from transformers import AutoTokenizer, set_seed

from transformers_deebert import BackboneTrainer, ExitTable, OffRampTrainer, from_backbone, sweep_thresholds
from transformers_deebert.analysis import layer_scores
from transformers_deebert.analysis.tables import threshold_text
from transformers_deebert.analysis.timing import describe_machine


def train_backbone(args, data):
    """The fine-tuned model of stage 1."""
    train, _, tokenizer = data
    set_seed(args.seed)
    model = from_backbone(args.model, num_labels=args.num_labels)
    with tempfile.TemporaryDirectory() as folder:
        stage_1 = arguments(folder, args.epochs, args.seed, args.learning_rate)
        BackboneTrainer(model, stage_1, train_dataset=train, processing_class=tokenizer).train()
    return model


def exit_table(backbone, pooling, args, data):
    """What all exits say of the validation rows after stage 2."""
    train, validation, tokenizer = data
    set_seed(args.seed)
    model = from_backbone(args.model, num_labels=args.num_labels, off_ramp_pooling=pooling)
    plain = {key: value for key, value in backbone.state_dict().items() if "off_ramps." not in key}
    model.load_state_dict(plain, strict=False)
    with tempfile.TemporaryDirectory() as folder:
        stage_2 = arguments(folder, args.off_ramp_epochs, args.seed, args.off_ramp_learning_rate)
        trainer = OffRampTrainer(model, stage_2, train_dataset=train, processing_class=tokenizer)
        trainer.train()
        result = trainer.predict(validation)
    return ExitTable.from_logits(np.stack(result.predictions, axis=1), result.label_ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train_file", required=True)
    parser.add_argument("--validation_file", required=True)
    parser.add_argument("--num_labels", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--epochs", type=float, default=1, help="of stage 1")
    parser.add_argument("--learning_rate", type=float, default=2e-5, help="of stage 1")
    parser.add_argument("--off_ramp_epochs", type=float, default=10)
    parser.add_argument("--off_ramp_learning_rate", type=float, default=1e-3)
    parser.add_argument("--pooling", nargs="+", default=["cls", "mean"])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4])
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print(describe_machine(), flush=True)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    data = (read(args.train_file, tokenizer, args.rows), read(args.validation_file, tokenizer), tokenizer)
    backbone = train_backbone(args, data)
    for pooling in args.pooling:
        table = exit_table(backbone, pooling, args, data)
        layers = [scores["accuracy"] for scores in layer_scores(table)]
        print(f"{pooling:9} layers 1-{len(layers)}:", *(f"{100 * score:.1f}" for score in layers), flush=True)
        for point in sweep_thresholds(table, args.thresholds):
            print(
                f"{pooling:9} S = {threshold_text(point.threshold)}: {100 * point.scores['accuracy']:.1f} % at "
                f"{100 * point.layer_saving:.1f} % saved",
                flush=True,
            )


if __name__ == "__main__":
    main()
