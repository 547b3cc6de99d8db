"""Contenders that are given texts: the stock pipeline and the predictor."""

from functools import partial
from typing import Any

import torch
from transformers import pipeline

from transformers_deebert import EarlyExitPredictor

from .contender import NO_LAYERS, STOCK, TEXTS, Contender, Point


def pipeline_contenders(subject: Any, texts: list[str], batch_size: int, accuracy: float) -> list[Contender]:
    """`pipeline("text-classification")` around the stock class, and around the same without layers."""
    return [
        Contender(
            name,
            TEXTS,
            partial(run_pipeline, make_pipeline(subject, model), texts, batch_size, subject.max_length),
            accuracy=right,
        )
        for name, model, right in ((STOCK, subject.stock, accuracy), (NO_LAYERS, subject.bare, None))
    ]


def make_pipeline(subject: Any, model: Any) -> Any:
    return pipeline("text-classification", model=model, tokenizer=subject.tokenizer, device=model.device)


def run_pipeline(pipe: Any, texts: list[str], batch_size: int, max_length: int) -> list[dict[str, Any]]:
    return pipe(texts, batch_size=batch_size, truncation=True, max_length=max_length)


def predictor_contenders(subject: Any, texts: list[str], batch_size: int, points: list[Point]) -> list[Contender]:
    predictor = EarlyExitPredictor(
        subject.model, subject.tokenizer, batch_size=batch_size, max_length=subject.max_length
    )
    runs = [partial(predictor.predict, texts, early_exit_entropy=point.argument) for point in points]
    return [
        Contender.at(point, "predictor", TEXTS, run, exits_of_predictions)
        for point, run in zip(points, runs, strict=True)
    ]


def exits_of_predictions(predictions: Any) -> torch.Tensor:
    return predictions.exit_layers
