"""Labelled sentences and training arguments for the benchmarks that train."""

import torch
from json_lines import read_lines

from transformers_deebert import DeeBertTrainingArguments


def read(path, tokenizer, rows=None):
    items = read_lines(path)
    if rows is not None:
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0))[:rows]
        items = [items[index] for index in order]
    encoded = tokenizer([item["text"] for item in items], truncation=True, max_length=128)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": item["label"]}
        for ids, mask, item in zip(encoded["input_ids"], encoded["attention_mask"], items, strict=True)
    ]


def arguments(folder, epochs, seed, learning_rate, **kwargs):
    return DeeBertTrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        seed=seed,
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
        per_device_eval_batch_size=32,
        **kwargs,
    )
