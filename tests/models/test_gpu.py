"""On a CUDA device: the answers of the CPU, every attention backend, and rows that left are dropped."""

import importlib.util

import pytest
import torch
from conftest import LENGTHS, NUM_LAYERS, make_batch, make_model, off_ramp_answers, spread_thresholds


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


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_float32_equals_the_cpu(family, pooling, attention):
    model, batch, thresholds, expected = on_gpu(
        family, torch.float32, off_ramp_pooling=pooling, attn_implementation=attention
    )
    output = model(**batch, early_exit_entropy=thresholds)
    assert output.exit_layers.tolist() == expected.exit_layers.tolist()
    torch.testing.assert_close(output.logits.cpu(), expected.logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(family, dtype, attention):
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("needs flash-attn")
    model, batch, thresholds, _ = on_gpu(family, dtype)
    model.set_attn_implementation(attention)
    output = model(**batch, early_exit_entropy=thresholds)
    full = model(**batch, output_off_ramp_logits=True)
    expected = torch.stack(full.off_ramp_logits, 1)[torch.arange(len(LENGTHS)), output.exit_layers.cpu() - 1]
    torch.testing.assert_close(output.logits, expected, atol=0.15, rtol=0.05)
    assert len(output.exit_layers.unique()) >= 3
