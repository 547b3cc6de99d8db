"""Handler of a Hugging Face Inference Endpoint for an early-exit classifier; lies beside the model as handler.py."""

from typing import Any

from transformers import pipeline


FIELDS = {"inputs", "parameters", "options"}  # clients of the Hub send `options` for the server


class EndpointHandler:
    """
    Answers requests.

    Args:
        path (`str`, *optional*, defaults to the current folder): The repository's files.
    """

    def __init__(self, path: str = "."):
        # With transformers-deebert installed the model's code is taken from there, else from the repository itself.
        self.classify = pipeline("text-classification", model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """
        Args:
            data (`dict`):
                `inputs`, a text or a list of texts or `{"text": …, "text_pair": …}` pairs, and, optionally,
                `parameters`: `early_exit_entropy`, `exit_criterion` or `exit_layer`, and what else the pipeline takes.

        Returns:
            `list[dict]`: for each text `label`, `score` and `exit_layer`.

        Raises:
            ValueError: for a request without inputs, or with fields or parameters that are not known.
        """
        unknown = sorted(set(data) - FIELDS)
        if unknown and "inputs" in data:
            raise ValueError(
                f"The request has unknown fields {unknown}: put settings of the pipeline into `parameters`."
            )
        if "inputs" not in data:
            raise ValueError(f'The request has no `inputs`, but {sorted(data)}: send {{"inputs": "a text"}}.')
        texts: Any = data["inputs"]
        if isinstance(texts, (str, dict)):
            texts = [texts]
        if not isinstance(texts, list) or not all(isinstance(text, (str, dict)) for text in texts):
            raise ValueError('`inputs` must be a text, a {"text": …, "text_pair": …} pair, or a list of these.')
        return list(self.classify(texts, **data.get("parameters") or {})) if texts else []
