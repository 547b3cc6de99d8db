"""Search over hyper-parameters, with a backend that sets `trainer.model` to `None` between the trials."""

import optuna
import pytest
from tiny_task import DATA, make_args, make_tiny
from transformers import BertForSequenceClassification, TrainerCallback

from transformers_deebert import BackboneTrainer, OffRampTrainer, TwoStageTrainer


pytestmark = pytest.mark.gradients
optuna.logging.set_verbosity(optuna.logging.WARNING)


class Trials(TrainerCallback):
    """What each trial trains, and at which learning rate."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        parts = {"off_ramps" in name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.seen.append((parts, args.learning_rate))


def search(trainer, space, trials=2):
    sampler = optuna.samplers.GridSampler(space)
    return trainer.hyperparameter_search(
        hp_space=lambda trial: {name: trial.suggest_categorical(name, values) for name, values in space.items()},
        compute_objective=lambda metrics: metrics["eval_loss"],
        n_trials=trials,
        backend="optuna",
        sampler=sampler,
    )


@pytest.mark.parametrize("trainer_class", [BackboneTrainer, pytest.param(OffRampTrainer, marks=pytest.mark.slow)])
def test_both_stages_can_be_searched(tmp_path, trainer_class):
    trials = Trials()
    args = make_args(tmp_path, num_train_epochs=1)
    trainer = trainer_class(model_init=lambda: make_tiny(), args=args, callbacks=[trials], **DATA)
    rates = [1e-3, 1e-9]
    best = search(trainer, {"learning_rate": rates})
    assert [parts for parts, _ in trials.seen] == [{trainer_class is OffRampTrainer}] * 2
    assert {rate for _, rate in trials.seen} == set(rates)
    losses = {}
    for rate in rates:  # by hand
        args = make_args(tmp_path, num_train_epochs=1, learning_rate=rate)
        alone = trainer_class(model_init=lambda: make_tiny(), args=args, **DATA)
        alone.train()
        losses[rate] = alone.evaluate()["eval_loss"]
    assert best.objective == pytest.approx(min(losses.values()))
    assert losses[best.hyperparameters["learning_rate"]] == min(losses.values())
    assert losses[rates[0]] != pytest.approx(losses[rates[1]])


@pytest.mark.slow
def test_the_mode_of_each_trial(tmp_path, monkeypatch):
    cached = []
    original = OffRampTrainer.compute_cached_inputs
    monkeypatch.setattr(
        OffRampTrainer,
        "compute_cached_inputs",
        lambda self: [original(self), cached.append(self.args.off_ramp_mode)][0],
    )
    trials = Trials()
    args = make_args(tmp_path, num_train_epochs=1)
    trainer = OffRampTrainer(model_init=lambda: make_tiny(), args=args, callbacks=[trials], **DATA)
    search(trainer, {"off_ramp_mode": ["through_backbone", "cached"]})
    assert cached == ["cached"]
    assert len(trials.seen) == 2
    with pytest.raises(ValueError, match="`off_ramp_mode` must be one of.*'fast'"):
        search(trainer, {"off_ramp_mode": ["fast"]}, trials=1)


def test_model_init_without_off_ramps(tmp_path):
    with pytest.raises(ValueError, match="BertForSequenceClassification.*no off-ramps"):
        BackboneTrainer(model_init=lambda: BertForSequenceClassification(make_tiny().config), args=make_args(tmp_path))


def test_two_stages_at_once(tmp_path):
    trainer = TwoStageTrainer(make_tiny(), make_args(tmp_path), make_args(tmp_path), **DATA)
    with pytest.raises(NotImplementedError, match="OffRampTrainer"):
        trainer.hyperparameter_search(n_trials=2)
