"""
A stock text-classification pipeline over optimum's ONNX Runtime model: reads texts from stdin, writes answers.
With the options `null` it loads the folder itself.

    pip install torch==2.13.0 "transformers<5" optimum-onnx==0.1.0 onnxruntime
    python classify_optimum.py folder '{"subfolder": "onnx", "file_name": "model.onnx"}' < texts.json
"""

import importlib.util
import json
import sys
from importlib.metadata import version

from optimum.onnxruntime import ORTModelForSequenceClassification
from optimum.pipelines import pipeline as optimum_pipeline
from transformers import AutoTokenizer, pipeline


def main():
    folder, options = sys.argv[1:]
    if importlib.util.find_spec("transformers_deebert") is not None:
        raise RuntimeError("transformers_deebert is installed here: the test is of environments without it.")
    options = json.loads(options)
    if options is None:
        classifier = optimum_pipeline("text-classification", model=folder, accelerator="ort", batch_size=8)
    else:
        model = ORTModelForSequenceClassification.from_pretrained(folder, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        classifier = pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=8)
    names = ("optimum", "optimum-onnx", "onnxruntime", "transformers", "torch")
    print({name: version(name) for name in names}, type(classifier.model), file=sys.stderr)
    print(json.dumps(classifier(json.load(sys.stdin))))


main()
