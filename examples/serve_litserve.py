"""A checkpoint behind HTTP, with LitServe: requests join between layers, easy ones are answered first.

    pip install transformers-deebert litserve
    python examples/serve_litserve.py quickstart-output --port 8000
    curl -s 127.0.0.1:8000/predict -H 'content-type: application/json' -d '{"text": "A warm, funny film."}'

`/health` answers "ok". It listens on this machine alone unless `--host` names another address.
"""

import argparse
import asyncio
import queue

import litserve
import torch
from fastapi import HTTPException
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from transformers_deebert import OnlinePredictor


class EarlyExitAPI(litserve.LitAPI):
    """One model a worker; its scheduler batches, so LitServe hands requests on as they come."""

    def __init__(self, checkpoint: str, threshold: float | None, batch_size: int, threads: int | None):
        super().__init__(enable_async=True)
        self.checkpoint, self.threshold, self.rows, self.threads = checkpoint, threshold, batch_size, threads

    def setup(self, device: str) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)
        model = AutoModelForSequenceClassification.from_pretrained(self.checkpoint).eval().to(device)
        tokenizer = AutoTokenizer.from_pretrained(self.checkpoint)
        self.predictor = OnlinePredictor(model, tokenizer, self.rows, early_exit_entropy=self.threshold)

    async def decode_request(self, request: dict) -> dict:
        return request

    async def predict(self, request: dict):
        try:
            return await asyncio.wrap_future(self.predictor.submit(request.get("text"), request.get("text_pair")))
        except queue.Full:
            raise HTTPException(503, "Too many requests are queued.") from None
        except ValueError as error:
            raise HTTPException(422, str(error)) from None

    async def encode_response(self, answer) -> dict:
        return {"label": answer.label, "score": answer.score, "exit_layer": answer.exit_layer}


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a checkpoint with exits over HTTP.")
    parser.add_argument("checkpoint", help="folder or repository of a model with off-ramps")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threshold", type=float, help="early_exit_entropy; default: the checkpoint's")
    parser.add_argument("--batch_size", type=int, default=8, help="rows that go through a layer together")
    parser.add_argument("--threads", type=int, help="threads of the model")
    arguments = parser.parse_args()
    api = EarlyExitAPI(arguments.checkpoint, arguments.threshold, arguments.batch_size, arguments.threads)
    server = litserve.LitServer(api, accelerator="auto")
    server.run(host=arguments.host, port=arguments.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
