"""Bad input gets a ValueError that names the argument."""

import json
import logging

import numpy as np
import pytest
import torch
from conftest import ENCODERS, NUM_LAYERS, make_batch, make_model, make_stock
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from transformers_deebert import DeeBertForSequenceClassification, ExitCriterion


@pytest.mark.parametrize(
    "threshold",
    [-0.1, float("nan"), float("inf"), True, "0.4", [0.1, 0.2], [0.1] * 4, [0.1, -1.0, 0.1], [], [0.1, True, 0.1]],
)
def test_thresholds(threshold):
    model = make_model()
    with pytest.raises(ValueError, match="`early_exit_entropy`"):
        model(**make_batch(), early_exit_entropy=threshold)


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), [0.1, 0.2], [0.1, -1.0, 0.1]])
def test_thresholds_of_the_configuration(threshold):
    model = make_model()

    def set_and_call():
        model.config.early_exit_entropy = threshold
        model(**make_batch())

    with pytest.raises(ValueError, match="`early_exit_entropy`"):
        set_and_call()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("early_exit_entropy", float("nan")),
        ("early_exit_entropy", "0.4"),
        ("early_exit_entropy", [0.1]),
        ("exit_criterion", {"score": "unknown", "threshold": 1.0}),
        ("exit_layer", 9),
        ("off_ramp_layers", [3, 1]),
        ("off_ramp_temperatures", [1.0]),
        ("off_ramp_pooling", "max"),
        ("hidden_size", "32"),
    ],
)
@pytest.mark.parametrize("auto", [AutoConfig, AutoModelForSequenceClassification, DeeBertForSequenceClassification])
def test_a_slip_in_config_json(tmp_path, field, value, auto):
    settings = make_model().config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(settings | {field: value}))
    message = {"exit_criterion": "score", "off_ramp_layers": "off_ramp_layers"}.get(field, field)
    with pytest.raises(ValueError, match=message) as caught:
        auto.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "stored"),
    [
        ("early_exit_entropy", (0.5, np.float32(0.25), 1), [0.5, 0.25, 1]),
        ("early_exit_entropy", np.float64(0.5), 0.5),
        ("off_ramp_temperatures", np.array([1.0, 2.0, 0.5]), [1.0, 2.0, 0.5]),
        ("off_ramp_layers", range(1, 4), [1, 2, 3]),
        ("exit_layer", np.int64(2), 2),
        (
            "exit_criterion",
            ExitCriterion("margin", np.array([0.5, 0.25, 0.0]), np.int64(2)),
            {"score": "margin", "threshold": [0.5, 0.25, 0.0], "patience": 2},
        ),
    ],
)
def test_the_configuration_takes_what_calls_take(field, value, stored):
    model = make_model()
    setattr(model.config, field, value)
    assert json.loads(model.config.to_json_string())[field] == stored
    model(**make_batch())


@pytest.mark.parametrize("threshold", [1, 0.5, np.float32(0.5), np.float64(0.5), (0.1, 0.2, 0.3), [0, 1, 2], 1e9])
def test_good_thresholds(threshold):
    assert make_model()(**make_batch(), early_exit_entropy=threshold).logits.shape == (12, 3)


@pytest.mark.parametrize("layer", [0, NUM_LAYERS + 1, -1, 1.0, True, "1", np.int64(0)])
def test_exit_layer(layer):
    with pytest.raises(ValueError, match=r"`exit_layer` must be one of the layers 1, 2, 3, 4"):
        make_model()(**make_batch(), exit_layer=layer)


def test_exit_layer_and_threshold_exclude_each_other():
    with pytest.raises(ValueError, match="`early_exit_entropy`.*`exit_layer`"):
        make_model()(**make_batch(), exit_layer=1, early_exit_entropy=0.1)


@pytest.mark.parametrize("kwargs", [{"early_exit_entropy": 0.1}, {"early_exit_entropy": 0.0}, {"exit_layer": 1}])
def test_training_mode(kwargs):
    model = make_model().train()
    with pytest.raises(ValueError, match=f"`{next(iter(kwargs))}`.*training mode"):
        model(**make_batch(), **kwargs)


def test_training_mode_ignores_the_defaults():
    model = make_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    full = model(**make_batch())
    model.config.early_exit_entropy = 99.0
    model.config.output_off_ramp_logits = True
    output = model.train()(**make_batch())
    assert torch.equal(output.logits, full.logits)
    assert output.exit_layers is None
    assert output.off_ramp_logits is None
    assert len(model(**make_batch(), output_off_ramp_logits=True).off_ramp_logits) == NUM_LAYERS


@pytest.mark.parametrize(
    "settings", [{"num_labels": 1}, {"problem_type": "multi_label_classification"}, {"problem_type": "regression"}]
)
def test_entropy_needs_classes(settings):
    model = make_model()
    for name, value in settings.items():
        setattr(model.config, name, value)
    with pytest.raises(ValueError, match="`early_exit_entropy`.*one of several classes"):
        model(**make_batch(), early_exit_entropy=0.1)
    model(**make_batch(), early_exit_entropy=0.0)
    model(**make_batch(), exit_layer=1)


def test_too_many_tokens(family):
    limit = ENCODERS[family].limit
    model = make_model(family)
    assert model.base_model.max_tokens() == limit
    if limit is None:  # relative positions
        model(**make_batch(family, lengths=(50,)))
        return
    model(**make_batch(family, lengths=(limit,)))
    with pytest.raises(ValueError, match=f"{limit + 1} tokens.*holds {limit}"):
        model(**make_batch(family, lengths=(limit + 1,)))


@pytest.mark.parametrize("label", [3, -1, 99])
def test_labels_out_of_range(label):
    labels = torch.zeros(12, dtype=torch.long)
    labels[4] = label
    for mode in (True, False):
        with pytest.raises(ValueError, match=f"`labels` contains {label}.*num_labels=3"):
            make_model().train(mode)(**make_batch(), labels=labels)


@pytest.mark.parametrize(
    ("labels", "settings"),
    [
        (torch.zeros(12), {}),
        (torch.zeros(12, 3, dtype=torch.long), {}),
        (torch.zeros(11, dtype=torch.long), {}),
        (torch.zeros(12, dtype=torch.long), {"problem_type": "multi_label_classification"}),
        (torch.zeros(12, 2), {"problem_type": "multi_label_classification"}),
        (torch.zeros(12, 3), {"num_labels": 1}),
    ],
)
def test_labels_of_another_kind(labels, settings):
    with pytest.raises(ValueError, match=r"`labels` (are|have the shape).*problem_type"):
        make_model(**settings)(**make_batch(), labels=labels)


def test_labels_without_tokens():
    with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds`"):
        make_model()(labels=torch.zeros(12, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
@pytest.mark.parametrize(
    ("shape", "settings", "target"),
    [
        ((12,), {}, torch.long),
        ((12, 1), {}, torch.long),
        ((12, 3), {"problem_type": "multi_label_classification"}, torch.float),
        ((12,), {"num_labels": 1}, torch.float),
    ],
)
def test_labels_are_cast_to_what_the_loss_takes(dtype, shape, settings, target):
    model, labels = make_model(**settings), (torch.arange(12 * shape[-1] if len(shape) > 1 else 12) % 2).view(shape)
    expected = make_stock(model)(**make_batch(), labels=labels.to(target)).loss
    assert model(**make_batch(), labels=labels.to(dtype)).loss == expected


@pytest.mark.parametrize("name", ["input_ids", "token_type_ids"])
@pytest.mark.parametrize("value", [100, -1])
def test_ids_that_the_model_does_not_know(name, value):
    model, batch = make_model(), make_batch()
    batch.setdefault(name, torch.zeros_like(batch["input_ids"]))[3, 1] = value
    for part in (model, model.base_model):
        with pytest.raises(ValueError, match=f"`{name}`.*{value}.*tokenizer that belongs"):
            part(**batch)


def test_ignored_labels():
    labels = torch.zeros(12, dtype=torch.long)
    labels[4] = -100
    assert torch.isfinite(make_model()(**make_batch(), labels=labels).loss)


def test_tokens_and_masks():
    model, batch = make_model(), make_batch()
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(ValueError, match="exactly one"):
        model()
    with pytest.raises(ValueError, match="exactly one"):
        model(**batch, inputs_embeds=embeds)
    with pytest.raises(ValueError, match=r"`input_ids`.*\(5,\)"):
        model(input_ids=torch.ones(5, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one token"):
        model(input_ids=torch.ones(3, 0, dtype=torch.long))
    for shape in ((12, 12, 12), (12, 1, 12, 12), (12, 11), (1, 12)):
        with pytest.raises(ValueError, match="`attention_mask`"):
            model(input_ids=batch["input_ids"], attention_mask=torch.ones(shape))


def test_other_shapes_and_combinations():
    model, batch = make_model(), make_batch()
    with pytest.raises(ValueError, match="`token_type_ids`.*13"):
        model(**batch, token_type_ids=torch.zeros(12, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="`attention_mask` has negative values"):
        model(input_ids=batch["input_ids"], attention_mask=(1.0 - batch["attention_mask"]) * -1e4)
    for inputs, others in ((torch.zeros(2, 7, 32), {}), (torch.zeros(2, 3, 32), {"exit_layer": 1})):
        with pytest.raises(ValueError, match="`off_ramp_inputs`"):
            model(off_ramp_inputs=inputs, **others)
    model.config.early_exit_entropy, model.config.exit_layer = 0.5, 3
    with pytest.raises(ValueError, match="exclude each other"):
        model(**batch)


@pytest.mark.parametrize("labels", [torch.eye(3)[[0] * 12], torch.zeros(12, dtype=torch.long)])
def test_labels_leave_no_trace(labels):
    model = make_model()
    assert torch.isfinite(model(**make_batch(), labels=labels).loss)
    assert model.config.problem_type is None


def test_decoders_are_refused():
    with pytest.raises(ValueError, match="`is_decoder`"):
        make_model(is_decoder=True)


def test_set_trainable():
    with pytest.raises(ValueError, match="`part`"):
        make_model().set_trainable("everything")


def test_untrained_off_ramps_warn_once(caplog):
    model = make_model()
    model.config.off_ramps_trained = False
    logger = transformers_logging.get_logger("transformers_deebert")
    transformers_logging.get_logger("transformers").warning_once.cache_clear()
    logging.getLogger("transformers").propagate = True
    try:
        with caplog.at_level(logging.WARNING):
            model(**make_batch())
            model(**make_batch(), early_exit_entropy=0, output_off_ramp_logits=True)
            assert "not been trained" not in caplog.text
            for _ in range(3):
                model(**make_batch(), early_exit_entropy=0.2)
    finally:
        logging.getLogger("transformers").propagate = False
    assert caplog.text.count("not been trained") == 1
    assert logger
