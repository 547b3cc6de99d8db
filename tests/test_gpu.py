"""On a CUDA device: the answers of the CPU for every family, attention and exit criterion; the predictor; training."""

import importlib.util

import pytest
import torch
from conftest import LENGTHS, NUM_LAYERS, layers_of, make_batch, make_model, off_ramp_answers, spread_thresholds
from tiny_task import DATA, TRAIN, collate, make_args, make_tiny

from transformers_deebert import EarlyExitPredictor, TwoStageTrainer, collect_exits
from transformers_deebert.models.exit_answers_deebert import usual_size


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_gpu(family, dtype, **settings):
    model, batch = make_model(family, **settings), make_batch(family)
    thresholds = spread_thresholds(off_ramp_answers(model, **batch)[1])
    expected = model(**batch, early_exit_entropy=thresholds)
    assert len(expected.exit_layers.unique()) == NUM_LAYERS
    batch = {name: tensor.cuda() for name, tensor in batch.items()}
    return model.to("cuda", dtype), batch, thresholds, expected


def test_float32_equals_the_cpu(family_and_attention, pooling):
    family, attention = family_and_attention
    model, batch, thresholds, expected = on_gpu(
        family, torch.float32, off_ramp_pooling=pooling, attn_implementation=attention
    )
    output = model(**batch, early_exit_entropy=thresholds)
    assert output.exit_layers.tolist() == expected.exit_layers.tolist()
    torch.testing.assert_close(output.logits.cpu(), expected.logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(family_and_attention, dtype):
    family, attention = family_and_attention
    model, batch, thresholds, _ = on_gpu(family, dtype, attn_implementation=attention)
    assert_half_precision(model, batch, thresholds)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="needs flash-attn")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_flash_attention(family, dtype):
    model, batch, thresholds, _ = on_gpu(family, dtype)
    model.set_attn_implementation("flash_attention_2")
    assert_half_precision(model, batch, thresholds)


def assert_half_precision(model, batch, thresholds):
    """The answers are those of the exit layers; rounding moves some entropies across their threshold."""
    output = model(**batch, early_exit_entropy=thresholds)
    full = model(**batch, output_off_ramp_logits=True)
    expected = torch.stack(full.off_ramp_logits, 1)[torch.arange(len(LENGTHS)), output.exit_layers.cpu() - 1]
    torch.testing.assert_close(output.logits, expected, atol=0.15, rtol=0.05)
    assert len(output.exit_layers.unique()) >= 3


@pytest.mark.parametrize(
    "criterion", [{"score": "margin", "threshold": 0.5, "patience": 2}, {"score": "disagreement", "threshold": 1.0}]
)
@pytest.mark.parametrize("layers", [[0, 2, 3], None])
def test_criteria_and_exit_layers_equal_the_cpu(criterion, layers):
    model, batch = make_model(off_ramp_layers=layers, off_ramp_pooling="mean"), make_batch()
    expected = model(**batch, exit_criterion=criterion)
    output = model.cuda()(**{name: tensor.cuda() for name, tensor in batch.items()}, exit_criterion=criterion)
    assert output.exit_layers.tolist() == expected.exit_layers.tolist()
    assert len(expected.exit_layers.unique()) >= 2
    torch.testing.assert_close(output.logits.cpu(), expected.logits, atol=1e-3, rtol=1e-3)


def test_predictor_equals_the_cpu():
    model, batch = make_model(off_ramp_pooling="mean"), make_batch()
    rows = [
        {"input_ids": ids[mask == 1].tolist()}
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    thresholds = spread_thresholds(off_ramp_answers(model, **batch)[1])
    expected = model(**batch, early_exit_entropy=thresholds)
    answers = EarlyExitPredictor(model.cuda(), batch_size=4).predict(rows, early_exit_entropy=thresholds)
    assert answers.exit_layers.tolist() == expected.exit_layers.tolist()
    assert len(expected.exit_layers.unique()) == NUM_LAYERS
    torch.testing.assert_close(torch.as_tensor(answers.logits), expected.logits, atol=1e-3, rtol=1e-3)


@pytest.mark.gradients
@pytest.mark.parametrize("mode", ["cached", "through_backbone"])
@pytest.mark.parametrize("bf16", [False, True])
def test_both_stages_train(tmp_path, mode, bf16):
    args = make_args(tmp_path, off_ramp_mode=mode, bf16=bf16, use_cpu=False, num_train_epochs=20, learning_rate=3e-3)
    model = make_tiny(off_ramp_pooling="mean")
    TwoStageTrainer(model, args, args, **DATA).train()
    assert model.device.type == "cuda"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    table = collect_exits(model, TRAIN, data_collator=collate)
    correct = (table.logits.argmax(-1) == table.labels[:, None]).mean(0)
    assert (correct > 0.6).all()  # on the training rows; chance: 0.5


def test_shapes_of_layers_come_again():
    # Kernels and plans for a new shape cost more than a layer.
    model, seen = make_model(off_ramp_pooling="mean").cuda(), set()
    layers_of(model)[2].register_forward_pre_hook(lambda layer, inputs: seen.add(tuple(inputs[0].shape[:2])))
    for seed in range(40):
        batch = make_batch(lengths=LENGTHS * 3, seed=seed)
        model(**{name: tensor.cuda() for name, tensor in batch.items()}, early_exit_entropy=0.8)
    assert all(
        rows == usual_size(rows, model.device) and width == usual_size(width, model.device) for rows, width in seen
    )
    assert len(seen) > 1
