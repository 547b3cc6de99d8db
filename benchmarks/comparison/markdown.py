"""Markdown from the results file."""

from collections.abc import Mapping
from typing import Any

from transformers_deebert.analysis.tables import THRESHOLD, format_table

from .contender import NO_LAYERS, ONNX, PYTORCH, STOCK


COLUMNS = {
    "name": ("contender", ""),
    "runtime": ("runtime", ""),
    "threshold": ("S", THRESHOLD),
    "saving": ("layers saved", ".1%"),
    "accuracy": ("accuracy", ".1%"),
    "ms_per_row": ("ms a row", ".3f"),
    "spread": ("spread", ".1%"),
    "faster_than_stock": ("x stock PyTorch", ".2f"),
    "faster_than_same_runtime": ("x stock, same runtime", ".2f"),
    "efficiency": ("efficiency", ".2f"),
}
NO_VERDICT = "no verdict"
# In the tables of shapes: where early exit runs, and how its contenders' names begin.
KINDS = {
    PYTORCH: (PYTORCH, "early exit, "),
    "ONNX segments": (ONNX["float32"], "segments, "),
    "ONNX single file": (ONNX["float32"], "single file, "),
}


def make_tables(results: Mapping[str, Any]) -> str:
    """All groups: a table for each batch size of the real text, and one for each shape."""
    parts = [describe(results)]
    groups = sorted(results["groups"], key=lambda group: (group["length"], group["batch_size"]))
    texts = [group for group in groups if group["part"] == "text"]
    parts += [text_table(group) for group in texts]
    shapes = [group for group in groups if group["part"] == "shapes"]
    for shape in dict.fromkeys(group["shape"] for group in shapes):
        parts.append(shape_table([group for group in shapes if group["shape"] == shape]))
    return "\n\n".join(parts)


def describe(results: Mapping[str, Any]) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    return f"{facts}. Threads: {results['threads']}."


def text_table(group: Mapping[str, Any]) -> str:
    """One batch size: a line for each contender."""
    lines = [with_one_threshold(line) for line in group["contenders"] if line["name"] != NO_LAYERS]
    head = (
        f"{group['model']}, batch size {group['batch_size']}: {group['rows_read']:,} rows scored, {group['rows']} of "
        f"them timed ({group['length']:.1f} tokens on average), {group['rounds']} rounds, control "
        f"{group['control_gap']:.1%} apart"
    )
    if not group["verdict"]:
        head += f": {NO_VERDICT}"
    if differ := sum(line["exits_that_differ"] or 0 for line in lines):
        head += f"; {differ} exits of timed rows differ from those that were scored"
    return f"{head}\n\n{format_table(lines, COLUMNS, markdown=True)}"


def with_one_threshold(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line whose threshold, if there is one for each off-ramp, is words."""
    return {**line, "threshold": "per layer"} if isinstance(line["threshold"], list) else dict(line)


def shape_table(groups: list[Mapping[str, Any]]) -> str:
    """One shape: a line for each length, batch size and runtime; cells are `times faster (efficiency)`."""
    lines = [line for group in groups for line in runtime_lines(group)]
    first = groups[0]
    head = (
        f"{first['layers']} layers, {first['width']} wide, random weights. Times faster than the stock class on the "
        "same runtime, in brackets the efficiency."
    )
    return f"{head}\n\n{format_table(lines, markdown=True)}"


def runtime_lines(group: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of one cell: what was left out, what has no verdict, or ratios."""
    place = {"length": group["length"], "batch": group["batch_size"]}
    if not group["contenders"]:
        return [place | {"runtime": f"left out: {group['left_out']}"}]
    found = {(line["runtime"], line["name"]): line for line in group["contenders"]}
    lines = []
    for kind, (runtime, prefix) in KINDS.items():
        names = [name for place_of, name in found if place_of == runtime and name.startswith(prefix)]
        if names:
            line = place | {"runtime": kind, "stock, ms a row": f"{found[runtime, STOCK]['ms_per_row']:.3f}"}
            line |= {name.removeprefix(prefix): ratio(found[runtime, name], group["verdict"]) for name in names}
            lines.append(line | {"control": f"{group['control_gap']:.1%}"})
    return lines


def ratio(line: Mapping[str, Any], verdict: bool) -> str:
    return f"{line['faster_than_same_runtime']:.2f} ({line['efficiency']:.2f})" if verdict else NO_VERDICT
