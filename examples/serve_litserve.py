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
from fastapi import HTTPException
from serve_fastapi import make_parser, make_predictor


class EarlyExitAPI(litserve.LitAPI):
    """One model a worker; its scheduler batches, so LitServe hands requests on as they come."""

    def __init__(self, arguments: argparse.Namespace):
        super().__init__(enable_async=True)
        self.arguments = arguments

    def setup(self, device: str) -> None:
        self.predictor = make_predictor(self.arguments, device)

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
    arguments = make_parser().parse_args()
    server = litserve.LitServer(EarlyExitAPI(arguments), accelerator="auto")
    server.run(host=arguments.host, port=arguments.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
