"""Checks of what `forward` is given."""

import torch

from .layer_state_deebert import is_left_aligned, rotate_columns, rotation


def check_tokens(input_ids, inputs_embeds) -> torch.Tensor:
    """The one of both that was given; raises `ValueError` for both, none, or a wrong shape."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
    name, tokens, dims = ("input_ids", input_ids, 2) if inputs_embeds is None else ("inputs_embeds", inputs_embeds, 3)
    if tokens.dim() != dims or (tokens.shape[1] == 0 and tokens.shape[0] > 0):
        shape = "(batch, tokens)" if dims == 2 else "(batch, tokens, hidden)"
        raise ValueError(f"`{name}` must have the shape {shape} with at least one token, got {tuple(tokens.shape)}.")
    return tokens


def check_mask(attention_mask, tokens: torch.Tensor) -> torch.Tensor:
    """The mask as int64 `(batch, tokens)`, 1 for attended tokens; all ones when none was given."""
    if attention_mask is None:
        return torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    if attention_mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"`attention_mask` must have the shape (batch, tokens) = {tuple(tokens.shape[:2])}, got "
            f"{tuple(attention_mask.shape)}: rows that exit on their own need one mask of tokens each; 3-D and 4-D "
            "masks are for the stock model."
        )
    if attention_mask.is_floating_point() and not torch.compiler.is_compiling() and (attention_mask < 0).any():
        raise ValueError(
            "`attention_mask` has negative values, as masks have that are added to scores: give 1 for attended tokens "
            "and 0 for others."
        )
    return attention_mask.ne(0).long()


def prepare_tokens(
    inputs: dict, limit: int | None, sizes: dict[str, int | None]
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor | None]:
    """
    Checks the token arguments of a call, and turns every row so that its first attended token is in column 0 (left
    padding then is the same case as right padding).

    Args:
        inputs (`dict`): The token arguments of `forward`, `None` where not given.
        limit (`int`, *optional*): Number of tokens that the position table holds.
        sizes (`dict`): Rows of the tables that ids are looked up in, by the argument's name.

    Returns:
        The mask `(rows, width)`, the other arguments that were given, and the `(rows, width)` columns that rows were
        rotated by, `None` where every row is known to start in column 0.
    """
    tokens = check_tokens(inputs.get("input_ids"), inputs.get("inputs_embeds"))
    for name, size in sizes.items():
        check_ids(f"`{name}`", inputs.get(name), size)
    rows, width = tokens.shape[:2]
    if limit is not None and width > limit and inputs.get("position_ids") is None:
        raise ValueError(
            f"The input has {width} tokens a row, but the position table of this model holds {limit}: truncate it, "
            "for example with `tokenizer(..., truncation=True)`."
        )
    mask = check_mask(inputs.get("attention_mask"), tokens)
    given = {name: one for name, one in inputs.items() if one is not None and name != "attention_mask"}
    for name, tensor in given.items():
        if tensor.shape[1] != width:
            raise ValueError(
                f"`{name}` has the shape {tuple(tensor.shape)}, but the input has {width} tokens a row: give one each."
            )
    # One row of positions or segments may stand for the whole batch, as in the stock models.
    given = {name: tensor.expand(rows, *tensor.shape[1:]) for name, tensor in given.items()}
    columns = None if is_left_aligned(mask) else rotation(mask)
    if columns is not None:
        mask = rotate_columns(mask, columns)
        given = {name: rotate_columns(tensor, columns) for name, tensor in given.items()}
    return mask, given, columns


def check_ids(name: str, ids, size: int | None) -> None:
    """
    Raises `ValueError` for ids of tokens or segments that a table of `size` rows does not hold. Accelerators are not
    synchronised for that: their kernels have assertions of their own.
    """
    if ids is None or not size or ids.device.type != "cpu" or torch.compiler.is_compiling() or not ids.numel():
        return
    low, high = (int(value) for value in ids.aminmax())
    if low < 0 or high >= size:
        raise ValueError(
            f"{name} lie between {low} and {high}, but the model knows 0 … {size - 1}: use the tokenizer that "
            "belongs to the model (and `resize_token_embeddings` where tokens were added)."
        )


def check_labels(labels: torch.Tensor, config, rows: int, training: bool) -> torch.Tensor:
    """
    The labels as the loss of the model's kind of problem takes them: class indices int64 `(rows,)`; for several labels
    float `(rows, num_labels)`; for regression float. Where the configuration has no `problem_type`, it follows from
    `num_labels` and the labels, as in the stock models.

    Raises:
        ValueError: for another type or shape, and for class indices out of range (-100 is ignored by the loss). On an
            accelerator a training step is not held up for the range: the loss has its own assertion there.
    """
    size, problem = config.num_labels, config.problem_type
    matrix = labels.dim() == 2 and labels.shape[1] == size
    if problem is None:
        several = matrix and (labels.is_floating_point() or labels.dtype == torch.bool)
        problem = (
            "regression" if size == 1 else "multi_label_classification" if several else "single_label_classification"
        )
    one_each = problem == "single_label_classification" or (problem == "regression" and size == 1)
    if labels.shape[:1] != (rows,) or not (labels.numel() == rows if one_each else matrix):
        shape = (rows,) if one_each else (rows, size)
        raise ValueError(
            f"`labels` have the shape {tuple(labels.shape)}, but {problem} of {rows} rows needs {shape}: give one "
            "label a row, or set `config.problem_type` to the kind of problem that they are for."
        )
    if problem != "single_label_classification":
        return labels if labels.is_floating_point() else labels.float()
    if labels.is_floating_point():
        raise ValueError(
            f"`labels` are {labels.dtype}, but {problem} needs class indices: give whole numbers, or set "
            "`config.problem_type`."
        )
    labels = labels.long()
    if not (torch.compiler.is_compiling() or (training and labels.device.type != "cpu")):
        check_range(labels, config)
    return labels


def check_range(labels: torch.Tensor, config) -> None:
    """Raises `ValueError` for class indices out of range."""
    wrong = labels[(labels != -100) & ((labels < 0) | (labels >= config.num_labels))]
    if wrong.numel():
        raise ValueError(
            f"`labels` contains {wrong[0].item()}, but the model has num_labels={config.num_labels}: labels lie "
            f"between 0 and {config.num_labels - 1} (-100 is ignored); load the model with the right `num_labels`."
        )
