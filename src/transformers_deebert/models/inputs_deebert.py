"""Checks of what `forward` is given."""

import torch


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


def check_labels(labels: torch.Tensor, config, training: bool) -> None:
    """
    Raises `ValueError` for class indices out of range (-100 is ignored by the loss). On an accelerator a training step
    is not held up for that: the loss has its own assertion there.
    """
    if torch.compiler.is_compiling() or (training and labels.device.type != "cpu"):
        return
    if config.problem_type not in (None, "single_label_classification") or config.num_labels < 2:
        return
    if labels.is_floating_point() or not labels.numel():
        return
    wrong = labels[(labels != -100) & ((labels < 0) | (labels >= config.num_labels))]
    if wrong.numel():
        raise ValueError(
            f"`labels` contains {wrong[0].item()}, but the model has num_labels={config.num_labels}: labels lie "
            f"between 0 and {config.num_labels - 1} (-100 is ignored); load the model with the right `num_labels`."
        )
