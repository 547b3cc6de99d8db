"""Data that a stage cannot train on are refused before anything is trained."""

import pytest
import torch
from tiny_task import DATA, TRAIN, VALIDATION, collate, make_args, make_tiny
from transformers import TrainerCallback

from transformers_deebert import BackboneTrainer, OffRampTrainer, TwoStageTrainer


pytestmark = pytest.mark.gradients


class Steps(TrainerCallback):
    def __init__(self):
        self.count = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self.count += 1


def with_labels(rows, label):
    return [row | {"labels": label} for row in rows]


def float_collate(items):
    return collate([item | {"labels": 0} for item in items]) | {
        "labels": torch.tensor([item["labels"] for item in items], dtype=torch.float)
    }


def make_trainer(trainer_class, folder, callback, **data):
    args = make_args(folder)
    if trainer_class is TwoStageTrainer:
        return TwoStageTrainer(make_tiny(), args, args, callbacks=[callback], **DATA | data)
    return trainer_class(make_tiny(), args, callbacks=[callback], **DATA | data)


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_labels_of_another_kind(tmp_path, name):
    """Stage 1 would train on them, as several labels a row; stage 2 cannot."""
    rows = with_labels(TRAIN, [1.0, 0.0])
    other = "eval_dataset" if name == "train_dataset" else "train_dataset"
    steps = Steps()
    data = {name: rows, other: None} if name == "train_dataset" else {name: rows}

    def either(items):
        return (float_collate if isinstance(items[0]["labels"], list) else collate)(items)

    trainer = make_trainer(TwoStageTrainer, tmp_path / "out", steps, data_collator=either, **data)
    with pytest.raises(ValueError, match=rf"`{name}` must give integer `labels` .*float32.*\(8, 2\)"):
        trainer.train()
    assert steps.count == 0
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("trainer_class", [BackboneTrainer, OffRampTrainer, TwoStageTrainer])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"labels": 7}, "`labels` contains 7"),
        ({"input_ids": [5] * 30, "attention_mask": [1] * 30}, "position table"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_an_evaluation_set_does_not_cost_an_epoch(tmp_path, trainer_class, bad, message, named):
    rows = [VALIDATION[0] | bad, *VALIDATION]
    steps = Steps()
    data = {"eval_dataset": {"good": VALIDATION, "bad": rows} if named else rows}
    with pytest.raises(ValueError, match=message):
        make_trainer(trainer_class, tmp_path, steps, **data).train()
    assert steps.count == 0


def test_metrics_that_need_logits(tmp_path):
    steps = Steps()
    settings = {"preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1)}
    with pytest.raises(ValueError, match="`compute_metrics`"):
        make_trainer(TwoStageTrainer, tmp_path, steps, **settings).train()
    assert steps.count == 0


@pytest.mark.parametrize("trainer_class", [BackboneTrainer, OffRampTrainer])
def test_the_check_leaves_no_trace(tmp_path, trainer_class):
    """Random numbers, modes of modules and streams that are read once."""
    trainer = make_trainer(trainer_class, tmp_path, Steps())
    noisy = trainer.data_collator
    trainer.data_collator = lambda items: [torch.rand(3), noisy(items)][1]
    trainer.model.train()
    torch.manual_seed(5)
    trainer.check_data()
    assert trainer.model.training
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    read = []

    class Once(torch.utils.data.IterableDataset):
        rows = (read.append(1) or row for row in TRAIN)

        def __iter__(self):
            return self.rows

    trainer.args.off_ramp_mode = "through_backbone"
    trainer.train_dataset = Once()
    trainer.check_data()
    assert not read
