"""
Stage 2 on cached inputs against stage 2 through the backbone: time, and scores over seeds.

    python benchmarks/stage2.py --model FOLDER --train_file sst2/train.jsonl --validation_file sst2/validation.jsonl \
        [--rows 2000] [--epochs 3 20] [--seeds 5] [--pooling cls mean]

Stage 1 runs once (`--backbone_epochs`; 0 where `--model` is fine-tuned already); each mode then trains off-ramps on
the same backbone, from the same start for a seed, with the same learning rate, batch and epochs. Times are for the
first pooling. Files hold one JSON object a line with `text` and `label`.
`pass included` counts the one pass that computes the off-ramps' inputs.
"""

import argparse
import copy
import statistics
import tempfile
import time

import transformers
from sentences import arguments, read
from transformers import AutoTokenizer, set_seed

from transformers_deebert import (
    BackboneTrainer,
    OffRampTrainer,
    from_backbone,
)
from transformers_deebert.analysis.timing import describe_machine


def train_off_ramps(model, mode, epochs, seed, args, data):
    """Seconds of training, the pass included, and the score of each off-ramp in per cent."""
    model = copy.deepcopy(model)
    set_seed(seed)
    for off_ramp in model.base_model.off_ramps:
        off_ramp.classifier.weight.data.normal_(0, model.config.initializer_range)
        off_ramp.classifier.bias.data.zero_()
    train, validation, tokenizer = data
    with tempfile.TemporaryDirectory() as folder:
        trainer = OffRampTrainer(
            model,
            arguments(folder, epochs, seed, args.learning_rate, off_ramp_mode=mode),
            train_dataset=train,
            eval_dataset=validation,
            processing_class=tokenizer,
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        metrics = trainer.evaluate()
    layers = range(1, model.config.num_hidden_layers)
    return seconds, [100 * metrics[f"eval_layer_{layer}_accuracy"] for layer in layers]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train_file", required=True)
    parser.add_argument("--validation_file", required=True)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--epochs", type=int, nargs="*", default=[3, 20], help="epochs of stage 2 that are timed")
    parser.add_argument("--score_epochs", type=int, default=3, help="epochs of stage 2 that are scored over the seeds")
    parser.add_argument("--backbone_epochs", type=float, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="of stage 2")
    parser.add_argument("--backbone_learning_rate", type=float, default=2e-5)
    parser.add_argument("--pooling", nargs="+", default=["cls", "mean"])
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print(describe_machine(), flush=True)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    data = (read(args.train_file, tokenizer, args.rows), read(args.validation_file, tokenizer), tokenizer)
    backbone = None
    for pooling in args.pooling:
        model = from_backbone(args.model, num_labels=2, off_ramp_pooling=pooling)
        if backbone is not None:
            model.load_state_dict(backbone)
        elif args.backbone_epochs:
            with tempfile.TemporaryDirectory() as folder:
                stage_1 = arguments(folder, args.backbone_epochs, 42, args.backbone_learning_rate)
                BackboneTrainer(model, stage_1, train_dataset=data[0], processing_class=tokenizer).train()
        for epochs in args.epochs if backbone is None else ():
            through, _ = train_off_ramps(model, "through_backbone", epochs, 0, args, data)
            cached, _ = train_off_ramps(model, "cached", epochs, 0, args, data)
            print(
                f"{pooling:5} {epochs:3} epochs of {args.rows} rows: through the backbone {through:.1f} s, cached "
                f"{cached:.1f} s (pass included): {through / cached:.1f}x faster",
                flush=True,
            )
        backbone = model.state_dict()
        if not args.seeds:
            continue
        scores = {
            mode: [train_off_ramps(model, mode, args.score_epochs, seed, args, data)[1] for seed in range(args.seeds)]
            for mode in ("through_backbone", "cached")
        }
        for layer in range(model.config.num_hidden_layers - 1):
            a, b = ([row[layer] for row in scores[mode]] for mode in ("through_backbone", "cached"))
            error = ((statistics.variance(a) + statistics.variance(b)) / args.seeds) ** 0.5
            print(
                f"{pooling:5} off-ramp {layer + 1}, {args.score_epochs} epochs, {args.seeds} seeds: through "
                f"{statistics.mean(a):.2f}, cached {statistics.mean(b):.2f}, difference "
                f"{statistics.mean(b) - statistics.mean(a):+.2f} points (two standard errors {2 * error:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
