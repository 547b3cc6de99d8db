"""A tiny task that a tiny model can learn: is the mean token above the middle? Run as a script it trains, for the
tests that need processes of their own."""

import argparse
import json
import os
import sys

import torch
from accelerate import PartialState
from transformers import TrainerCallback, set_seed

from transformers_deebert import (
    BackboneTrainer,
    DeeBertConfig,
    DeeBertForSequenceClassification,
    DeeBertTrainingArguments,
    JointTrainer,
    OffRampTrainer,
    TwoStageTrainer,
)


def make_rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length = int(torch.randint(4, 16, (1,), generator=generator))
        ids = torch.randint(5, 100, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "attention_mask": [1] * length, "labels": int(sum(ids) > 52 * length)})
    return rows


TRAIN, VALIDATION = make_rows(64, 0), make_rows(31, 1)


def collate(items):
    width = max(len(item["input_ids"]) for item in items)
    padded = {
        name: torch.tensor([item[name] + [0] * (width - len(item[name])) for item in items])
        for name in ("input_ids", "attention_mask")
    }
    return padded | {"labels": torch.tensor([item["labels"] for item in items])}


def make_tiny(seed=0, **settings):
    set_seed(seed)
    defaults = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 20,
        "initializer_range": 0.1,
        "num_labels": 2,
    }
    config = DeeBertConfig(**defaults | settings)
    return DeeBertForSequenceClassification(config)


def make_args(folder, **settings):
    defaults = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "no",
        "use_cpu": True,
    }
    return DeeBertTrainingArguments(output_dir=str(folder), **defaults | settings)


DATA = {"train_dataset": TRAIN, "eval_dataset": VALIDATION, "data_collator": collate}


PLAIN_SGD = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}  # hides nothing


class KillAt(TrainerCallback):
    """Ends the process as SIGKILL does, without any clean-up, at a step of the n-th training."""

    def __init__(self, stage, step):
        self.stage, self.step, self.trainings = stage, step, 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainings += 1

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainings == self.stage and state.global_step == self.step:
            os.kill(os.getpid(), 9)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--what", choices=["both", "backbone", "joint", "off_ramps"], default="both")
    parser.add_argument("--mode", default="cached")
    parser.add_argument("--strategy", help="of joint training")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rows", type=int, default=len(TRAIN))
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--kill", type=int, nargs=2, help="number of the training, and its step")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = make_tiny(hidden_dropout_prob=options.dropout, attention_probs_dropout_prob=options.dropout)
    args = make_args(
        options.output_dir,
        per_device_train_batch_size=options.batch,
        save_strategy="steps",
        save_steps=3,
        off_ramp_mode=options.mode,
        eval_strategy="epoch",
        joint_strategy=options.strategy,
    )
    callbacks = [KillAt(*options.kill)] if options.kill else None
    if options.what == "both":
        trainer = TwoStageTrainer(model, args, args, callbacks=callbacks, **DATA)
        trainer.train(resume_from_checkpoint=options.resume)
        return
    trainers = {"backbone": BackboneTrainer, "joint": JointTrainer, "off_ramps": OffRampTrainer}
    trainer = trainers[options.what](model, args, **DATA | {"train_dataset": TRAIN[: options.rows]})
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        with open(os.path.join(options.output_dir, "numbers.json"), "w") as file:
            numbers = {"log": trainer.state.log_history, "metrics": metrics, "processes": args.world_size}
            json.dump(numbers, file)


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # an ordinary exit may abort: threads of gloo still run
