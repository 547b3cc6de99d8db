"""A tiny exported BERT with a tokenizer of its own, and the answers that PyTorch gives to a batch of texts."""

import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from conftest import export_all, make_model
from transformers import BertTokenizer


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [first + vowel + last for first in "bdfgkl" for vowel in "aio" for last in "mnt"]  # bam … lot
PIECES = [f"##{word}" for word in WORDS[:41]]
LENGTHS = (1, 9, 3, 6, 2, 8, 4, 7, 1, 5, 9, 2, 3, 8, 5, 6)  # words; every third of them has two word pieces
LABELS = {0: "negative", 1: "neutral", 2: "positive"}


class Case(NamedTuple):
    """
    An exported folder, and what it should give.

    Args:
        float32 (`Path`): The exported folder, with a default threshold.
        int8 (`Path`): Another, with layers in int8.
        hub (`Path`): Both files as repositories on the Hub have them: `onnx/model.onnx`, `onnx/model_quantized.onnx`.
        texts (`list[str]`): Of mixed lengths.
        tokens (`dict`): Of the texts, in one padded batch, as lists.
        answers (`list`): For the default threshold and for the full depth: logits, exit layers.
        labels (`list`): Their class names.
    """

    float32: Path
    int8: Path
    hub: Path
    texts: list[str]
    tokens: dict[str, list[list[int]]]
    answers: list[tuple[torch.Tensor, list[int]]]
    labels: list[list[str]]


def make_texts():
    """Of words and pieces of the vocabulary, in mixed case."""
    generator = torch.Generator().manual_seed(3)

    def draw(count):
        return int(torch.randint(count, (1,), generator=generator))

    def make_word(place):
        word = WORDS[draw(len(WORDS))]
        return (word + PIECES[draw(len(PIECES))][2:]).capitalize() if place % 3 == 2 else word

    return [" ".join(make_word(place) for place in range(length)) for length in LENGTHS]


def choose_threshold(entropies):
    """One for all off-ramps that spreads the exits over at least three layers, as far from any entropy as can be."""
    values = entropies[:, :-1].flatten().sort().values
    middles, gaps = (values[1:] + values[:-1]) / 2, values[1:] - values[:-1]
    early = entropies[:, :-1] < middles[:, None, None]  # (thresholds, rows, off-ramps)
    layers = torch.where(early.any(-1), early.int().argmax(-1) + 1, entropies.shape[1])
    spread = torch.tensor([len(row.unique()) >= 3 for row in layers])
    return float(middles[gaps.where(spread, 0).argmax()])


@torch.no_grad()
def make_case(place):
    """The case, with its folders in this one."""
    vocabulary = [*SPECIAL, *WORDS, *PIECES]
    (place / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer(str(place / "vocab.txt"), model_max_length=20)
    model = make_model()
    assert len(tokenizer) == len(vocabulary) == model.config.vocab_size
    model.config.id2label, model.config.label2id = LABELS, {name: index for index, name in LABELS.items()}
    texts = make_texts()
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    assert tokenizer.unk_token_id not in tokens["input_ids"]
    probabilities = model(**tokens, output_off_ramp_logits=True).off_ramp_logits
    probabilities = torch.stack(list(probabilities), 1).softmax(-1)
    model.config.early_exit_entropy = choose_threshold(torch.special.entr(probabilities).sum(-1))
    outputs = [model(**tokens), model(**tokens, early_exit_entropy=0.0)]
    assert len(outputs[0].exit_layers.unique()) >= 3
    assert set(outputs[1].exit_layers.tolist()) == {4}
    model.save_pretrained(place / "checkpoint")
    tokenizer.save_pretrained(place / "checkpoint")
    model = type(model).from_pretrained(place / "checkpoint")
    folders = list(export_all(model, place, tokenizer=tokenizer).values())
    hub = place / "hub"
    (hub / "onnx").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders[0] / name, hub / name)
    shutil.copy(folders[0] / "model.onnx", hub / "onnx" / "model.onnx")
    shutil.copy(folders[1] / "model.onnx", hub / "onnx" / "model_quantized.onnx")
    return Case(
        *folders,
        hub,
        texts,
        {name: tensor.tolist() for name, tensor in tokens.items()},
        [(output.logits, output.exit_layers.tolist()) for output in outputs],
        [[LABELS[index] for index in output.logits.argmax(-1).tolist()] for output in outputs],
    )
