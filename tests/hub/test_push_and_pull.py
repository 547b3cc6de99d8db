"""Pushing to and pulling from a Hub, with the real client in processes of their own, each with its own cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_model
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from loopback import LoopbackHub
from transformers import BertTokenizer


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(95))]
TEXTS = ["word1 word20 word3", "word40", "word7 word8 word9 word10 word11 word12", "word50 word60 word70"]
HELPERS = Path(__file__).parents[1]
# Answers of a loaded model and of a pipeline, as JSON.
ANSWER = """
import json, sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
def answer(name, texts, thresholds, **kwargs):
    config = AutoConfig.from_pretrained(name, **kwargs)
    tokenizer = AutoTokenizer.from_pretrained(name, **kwargs)
    model = AutoModelForSequenceClassification.from_pretrained(name, **kwargs)
    base = AutoModel.from_pretrained(name, **kwargs)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs, early_exit_entropy=thresholds)
        exits = base(**inputs, early_exit_entropy=thresholds).exit_layers.tolist()
    pipe = pipeline("text-classification", model=name, early_exit_entropy=thresholds, **kwargs)
    return {
        "logits": output.logits.tolist(), "exits": output.exit_layers.tolist(), "base": exits,
        "pipe": [row["exit_layer"] for row in pipe(texts, batch_size=4)],
        "classes": [type(x).forward.__module__.split(".")[0] for x in (model, base)]
        + [type(config).__module__.split(".")[0], type(pipe)._forward.__module__.split(".")[0]],
    }
"""
WITHOUT = "import sys; sys.modules['transformers_deebert'] = None\n"  # as if it was not installed


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def run(hub, tmp_path):
    """Runs Python code in a process of its own against the Hub; `home` names its cache."""

    def run(code, home, check=True, **environment):
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / home),
            "HF_TOKEN": hub.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(HELPERS), os.environ.get("PYTHONPATH")])),
        }
        process = subprocess.run(
            [sys.executable, "-W", "error::FutureWarning:transformers", "-c", code],
            env={**os.environ, **settings, **environment},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert not check or process.returncode == 0, process.stderr[-3000:]
        return process.stdout.splitlines()[-1] if check and process.stdout else process

    return run


@pytest.fixture
def checkpoint(tmp_path):
    """A model whose rows exit at three layers, with its tokenizer; and thresholds that make them do so."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    (folder / "vocab.txt").unlink()
    tokenizer.save_pretrained(folder)
    model = make_model(off_ramp_pooling="mean")
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    logits = torch.stack(model(**inputs, output_off_ramp_logits=True).off_ramp_logits, 1)
    entropies = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    first, second = entropies[:, 0].argmin(), entropies[:, 1].argsort()
    second = next(row for row in second.tolist() if row != first)
    thresholds = [float(entropies[first, 0]) + 1e-4, float(entropies[second, 1]) + 1e-4, 0.0]
    exits = model(**inputs, early_exit_entropy=thresholds).exit_layers
    assert len(exits.unique()) >= 3
    model.save_pretrained(folder)
    return folder, thresholds, model(**inputs, early_exit_entropy=thresholds)


def push(folder, repository="org/deebert-tiny", **kwargs):
    return f"""
import transformers_deebert
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained({str(folder)!r})
model.push_to_hub({repository!r}, **{kwargs!r})
AutoTokenizer.from_pretrained({str(folder)!r}).push_to_hub({repository!r}, **{kwargs!r})
"""


def check(line, checkpoint, where):
    _, _, expected = checkpoint
    assert line.startswith("{"), line
    answer = json.loads(line)
    torch.testing.assert_close(torch.tensor(answer["logits"]), expected.logits, atol=1e-5, rtol=1e-5)
    assert answer["exits"] == answer["base"] == answer["pipe"] == expected.exit_layers.tolist()
    assert set(answer["classes"]) == {where}


def ask(name, checkpoint, plug_in, **kwargs):
    """Code that answers with the library or, trusting remote code, without it."""
    _, thresholds, _ = checkpoint
    start = "import transformers_deebert\n" if plug_in else WITHOUT
    return f"{start}{ANSWER}\nprint(json.dumps(answer({name!r}, {TEXTS!r}, {thresholds!r}, **{kwargs!r})))"


@pytest.mark.slow
def test_push_and_pull(hub, run, checkpoint):
    """By id, with the library and without it, and a second time offline from the cache."""
    folder, *_ = checkpoint
    run(push(folder), "author")
    files = hub.files("org/deebert-tiny")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "pipeline_deebert.py"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    name = "org/deebert-tiny"
    check(run(ask(name, checkpoint, True), "user"), checkpoint, "transformers_deebert")
    remote = ask(name, checkpoint, False, trust_remote_code=True)
    check(run(remote, "stranger"), checkpoint, "transformers_modules")
    before = len(hub.requests)
    check(run(remote, "stranger", HF_HUB_OFFLINE="1"), checkpoint, "transformers_modules")
    offline = ask(name, checkpoint, True)
    check(run(offline, "user", HF_HUB_OFFLINE="1"), checkpoint, "transformers_deebert")
    assert len(hub.requests) == before
    # Nobody who has the library is asked to trust code; who has not, is.
    both = ask(name, checkpoint, True, trust_remote_code=True)
    check(run(both, "user"), checkpoint, "transformers_deebert")
    assert "trust_remote_code" in run(ask(name, checkpoint, False), "stranger", check=False).stderr


@pytest.mark.slow
def test_remote_code_saves_itself_again(hub, run, checkpoint, tmp_path):
    folder, *_ = checkpoint
    run(push(folder), "author")
    for number, plug_in in enumerate((False, True)):
        again = tmp_path / f"again{number}"
        start = "import transformers_deebert\n" if plug_in else WITHOUT
        trust = {} if plug_in else {"trust_remote_code": True}
        run(
            f"""{start}
from transformers import pipeline
pipe = pipeline("text-classification", model="org/deebert-tiny", **{trust!r})
pipe.save_pretrained({str(again)!r})
""",
            f"home{number}",
        )
        code = {path.name for path in folder.glob("*.py")}
        assert code == {path.name for path in again.glob("*.py")}
        check(run(ask(str(again), checkpoint, True), "user"), checkpoint, "transformers_deebert")
        remote = ask(str(again), checkpoint, False, trust_remote_code=True)
        check(run(remote, "stranger"), checkpoint, "transformers_modules")


@pytest.mark.slow
def test_private_repositories_and_revisions(hub, run, checkpoint):
    folder, *_ = checkpoint
    run(push(folder, "org/secret", private=True), "author")
    assert hub.repositories["org/secret"].private
    first = hub.repositories["org/secret"].branches["main"]
    run(push(folder, "org/secret"), "author")
    assert len(hub.repositories["org/secret"].commits) >= 3
    check(run(ask("org/secret", checkpoint, True, revision=first), "user"), checkpoint, "transformers_deebert")
    load = "import transformers_deebert\nfrom transformers import AutoModel\nAutoModel.from_pretrained('org/secret')"
    process = run(load, "nobody", check=False, HF_TOKEN="hf_wrong")
    assert process.returncode
    assert "org/secret" in process.stderr


@pytest.mark.slow
def test_a_push_that_fails_at_any_request(hub, run, checkpoint):
    """The Hub shows the old revision or the whole new one, and a second push succeeds."""
    folder, *_ = checkpoint
    run(push(folder), "author")
    old = hub.files("org/deebert-tiny")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = f"""
import sys, transformers_deebert, torch
from transformers import AutoModelForSequenceClassification
from huggingface_hub.errors import HfHubHTTPError
model = AutoModelForSequenceClassification.from_pretrained({str(folder)!r})
torch.nn.init.constant_(model.classifier.bias, 7.0)
try:
    model.push_to_hub("org/deebert-tiny")
except (HfHubHTTPError, OSError, RuntimeError) as error:
    print("failed")
else:
    print("pushed")
"""
    start = len(hub.requests)
    with_all_requests = hub.repositories["org/deebert-tiny"].branches["main"]
    assert run(model, "author") == "pushed"
    needed = len(hub.requests) - start
    assert needed >= 5
    new = hub.files("org/deebert-tiny")
    assert new["model.safetensors"] != old["model.safetensors"]
    outcomes = []
    for number in range(needed):
        hub.repositories["org/deebert-tiny"].branches["main"] = with_all_requests
        hub.objects.clear()
        hub.fail_at = number
        outcomes.append(run(model, "author"))
        hub.fail_at = None
        assert hub.files("org/deebert-tiny") == (old if outcomes[-1] == "failed" else new)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert outcomes.count("failed") >= 4
    assert run(model, "author") == "pushed"
    assert hub.files("org/deebert-tiny") == new


TRAIN = """
from tiny_task import DATA, make_args, make_tiny
from transformers_deebert import BackboneTrainer, OffRampTrainer, TwoStageTrainer
from transformers import BertTokenizer
import transformers
transformers.logging.set_verbosity_error()
tokenizer = BertTokenizer({vocabulary!r})
args = make_args("out/run", num_train_epochs=1, **{settings!r})
"""


@pytest.mark.slow
def test_the_trainers_push(hub, run, tmp_path):
    """`push_to_hub=True` for both stages ends in one repository with one card; checkpoints and pickles stay here."""
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    settings = {"push_to_hub": True, "hub_model_id": "org/trained", "save_strategy": "epoch"}
    code = TRAIN.format(vocabulary=str(vocabulary), settings=settings | {"hub_private_repo": True})
    code += "other = make_args('out/run', num_train_epochs=1)\n"
    code += (
        "trainer = TwoStageTrainer(make_tiny(), args, other, processing_class=tokenizer, **DATA)\ntrainer.train()\n"
    )
    code += "trainer.push_to_hub(revision='dev', tasks='text-classification', license='mit')"
    run(code, "author")
    assert hub.repositories["org/trained"].private
    assert b"license: mit" in hub.files("org/trained", "dev")["README.md"]
    assert b"license" not in hub.files("org/trained")["README.md"]
    del hub.repositories["org/trained"].branches["dev"]
    files = hub.files("org/trained")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "trade_off.png", "numbers.json"} <= set(
        files
    )
    assert not [name for name in files if "/" in name or name.endswith((".bin", ".pt", ".pth"))]
    assert len(hub.repositories["org/trained"].commits) == 3  # the initial one, the finished model, and "dev"
    for name in ("README.md", "numbers.json", "training_arguments.json", "config.json"):
        assert str(tmp_path).encode() not in files[name], name
        assert b"out/run" not in files[name], name
    card = tmp_path / "card.md"
    card.write_bytes(files["README.md"])
    metadata = metadata_load(card)
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "text-classification"
    assert metadata["tags"] == ["deebert", "early-exit"]
    assert 'model="org/trained"' in ModelCard.load(card).text
    assert "trade_off.png" in ModelCard.load(card).text
    loaded = run(
        "import transformers_deebert\nfrom transformers import pipeline\n"
        "print(pipeline('sentiment-analysis', model='org/trained', exit_layer=2)('word1 word2')[0]['exit_layer'])",
        "user",
    )
    assert loaded == "2"


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["BackboneTrainer", "OffRampTrainer"])
def test_one_stage_pushes(hub, run, tmp_path, trainer):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    code = TRAIN.format(vocabulary=str(vocabulary), settings={"hub_model_id": "org/stage", "save_strategy": "epoch"})
    run(
        code
        + f"trainer = {trainer}(make_tiny(), args, processing_class=tokenizer, **DATA)\n"
        + "trainer.train(); trainer.evaluate()\n"
        + "trainer.push_to_hub(dataset='Tiny', dataset_tags='org/tiny', license='mit', language='en', tags='small')",
        "author",
    )
    files = hub.files("org/stage")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "modeling_deebert.py"} <= set(files)
    assert not [name for name in files if "/" in name or name.endswith((".bin", ".pt", ".pth"))]
    card = tmp_path / "card.md"
    card.write_bytes(files["README.md"])
    metadata = metadata_load(card)
    assert (metadata["license"], metadata["language"], metadata["datasets"]) == ("mit", "en", "org/tiny")
    assert metadata["tags"] == ["deebert", "early-exit", "small"]
    if trainer == "OffRampTrainer":  # scores of the last evaluation
        assert metadata["model-index"][0]["results"][0]["metrics"][0]["type"] == "accuracy"
        assert "### Every layer alone" in card.read_text()


@pytest.mark.slow
def test_an_existing_card_is_kept(hub, run, checkpoint):
    folder, *_ = checkpoint
    run(push(folder), "author")
    card = b"---\nlibrary_name: transformers\n---\n\n# Written by hand\n"
    repository = hub.repositories["org/deebert-tiny"]
    repository.commit("main", {**hub.files("org/deebert-tiny"), "README.md": card})
    run(push(folder), "author")
    assert b"# Written by hand" in hub.files("org/deebert-tiny")["README.md"]


@pytest.mark.slow
def test_endpoint_handler(hub, run, checkpoint):
    """Pushed with the model; serves where the library is not installed."""
    folder, thresholds, expected = checkpoint
    run(
        f"""
from huggingface_hub import HfApi
from transformers_deebert.hub.endpoint import write_endpoint_handler
write_endpoint_handler({str(folder)!r})
HfApi().create_repo("org/served")
HfApi().upload_folder(repo_id="org/served", folder_path={str(folder)!r})
""",
        "author",
    )
    line = run(
        f"""{WITHOUT}
import json
from huggingface_hub import snapshot_download
folder = snapshot_download("org/served")
sys.path.insert(0, folder)
from handler import EndpointHandler
handler = EndpointHandler(folder)
many = handler({{"inputs": {TEXTS!r}, "parameters": {{"early_exit_entropy": {thresholds!r}}}}})
one = handler({{"inputs": {TEXTS[0]!r}}})
assert handler({{"inputs": []}}) == []
errors = []
for request in ({{"text": "?"}}, {{"inputs": None}}, {{"inputs": [["a", "b"]]}}, {{"inputs": "a", "paramters": {{}}}}):
    try:
        handler(request)
    except ValueError as error:
        errors.append(str(error))
print(json.dumps([many, one, errors]))
""",
        "server",
    )
    many, one, errors = json.loads(line)
    assert [answer["exit_layer"] for answer in many] == expected.exit_layers.tolist()
    assert [set(answer) for answer in one] == [{"label", "score", "exit_layer"}]
    assert len(errors) == 4
    assert all("`inputs`" in error for error in errors[:3])
    assert "['paramters']" in errors[3]
