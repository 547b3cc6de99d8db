"""torch.compile and torch.export."""

import pytest
import torch
from conftest import NUM_LAYERS, make_batch, make_model, off_ramp_answers, spread_thresholds


@pytest.fixture(autouse=True)
def each_family_compiles_anew():
    """The loop is the same code for all families, and dynamo recompiles one function so many times only."""
    torch.compiler.reset()


@pytest.mark.slow
def test_compiled_full_depth_has_no_graph_break(family):
    model, batch = make_model(family), make_batch(family)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_compiled_exits_give_the_eager_answers(family):
    model, batch = make_model(family), make_batch(family)
    thresholds = spread_thresholds(off_ramp_answers(model, **batch)[1])
    expected = model(**batch, early_exit_entropy=thresholds)
    assert len(expected.exit_layers.unique()) >= 3
    output = torch.compile(model)(**batch, early_exit_entropy=thresholds)
    assert output.exit_layers.tolist() == expected.exit_layers.tolist()
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.slow_but_for("albert", "bert", "deberta-v2", "modernbert")
def test_export_of_the_full_depth(family):
    model, batch = make_model(family), make_batch(family)
    rows, width = torch.export.Dim("rows", min=2, max=64), torch.export.Dim("width", min=2, max=20)
    program = torch.export.export(
        model, (), dict(batch), dynamic_shapes={name: {0: rows, 1: width} for name in batch}, strict=False
    )
    other = make_batch(family, lengths=(3, 9, 7), seed=5, side="left")
    output = program.module()(**other)
    torch.testing.assert_close(output.logits, model(**other).logits, atol=1e-5, rtol=1e-5)
    assert output.exit_layers.tolist() == [NUM_LAYERS] * 3


@pytest.mark.slow_but_for("albert", "bert", "deberta-v2", "modernbert")
def test_export_of_all_off_ramps_and_the_exits(family):
    """With all layers asked for, exits are data flow: they export as well."""
    model, batch = make_model(family), make_batch(family)
    thresholds = spread_thresholds(off_ramp_answers(model, **batch)[1])
    asked = {"early_exit_entropy": thresholds, "output_off_ramp_logits": True}
    output = torch.export.export(model, (), batch | asked, strict=False).module()(**batch, **asked)
    expected = model(**batch, **asked)
    assert len(expected.exit_layers.unique()) >= 3
    assert output.exit_layers.tolist() == expected.exit_layers.tolist()
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-5)
