"""A checkpoint behind HTTP, with FastAPI: requests join between layers, easy ones are answered first.

    pip install transformers-deebert fastapi uvicorn
    python examples/serve_fastapi.py quickstart-output --port 8000
    curl -s 127.0.0.1:8000/classify -H 'content-type: application/json' -d '{"text": "A warm, funny film."}'

`/health` has the number of samples that exited at each layer. It listens on this machine alone unless `--host` names
another address. A folder that `deebert export` wrote is run by ONNX Runtime.
"""

import argparse
import asyncio
import queue
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from transformers_deebert import OnlinePredictor


class Sample(BaseModel):
    text: str
    text_pair: str | None = None


class Answer(BaseModel):
    label: str
    score: float
    exit_layer: int


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Serve a checkpoint with exits over HTTP.")
    parser.add_argument("checkpoint", help="folder or repository of a model with off-ramps, or an exported folder")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threshold", type=float, help="early_exit_entropy; default: the checkpoint's")
    parser.add_argument("--batch_size", type=int, default=8, help="rows that go through a layer together")
    parser.add_argument("--max_length", type=int, help="tokens that longer texts are cut to")
    parser.add_argument("--threads", type=int, help="threads of the model")
    return parser


def make_predictor(arguments: argparse.Namespace, device: str = "cpu") -> OnlinePredictor:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return OnlinePredictor(
        load_model(arguments.checkpoint).to(device),
        AutoTokenizer.from_pretrained(arguments.checkpoint),
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
        early_exit_entropy=arguments.threshold,
    )


def load_model(folder: str):
    """The checkpoint in PyTorch, or an exported folder in ONNX Runtime."""
    if not Path(folder, "onnx.json").is_file():
        return AutoModelForSequenceClassification.from_pretrained(folder).eval()
    from transformers_deebert import OnnxEarlyExitModel

    return OnnxEarlyExitModel.from_pretrained(folder)


def make_app(predictor: OnlinePredictor) -> FastAPI:
    @asynccontextmanager
    async def closing(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(predictor.close)

    app = FastAPI(title="Early exit", lifespan=closing)

    @app.post("/classify")
    async def classify(sample: Sample) -> Answer:
        try:
            answer = await asyncio.wrap_future(predictor.submit(sample.text, sample.text_pair))
        except queue.Full:
            raise HTTPException(503, "Too many requests are queued.", headers={"Retry-After": "1"}) from None
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        return Answer(label=answer.label, score=answer.score, exit_layer=answer.exit_layer)

    @app.get("/health")
    async def health() -> dict:
        layers = predictor.predictor.model.exit_layers
        return {"status": "ok", "exits": dict(zip(layers, predictor.exit_counts(), strict=True))}

    return app


def main() -> None:
    arguments = make_parser().parse_args()
    app = make_app(make_predictor(arguments))
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
