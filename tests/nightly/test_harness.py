"""The commands of docs/evaluating.md with lm-evaluation-harness itself, on a task of its own.

The task's dataset is served by a Hub of this machine, with texts written here.
"""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import HubServer, Repository
from published import tiny_causal, tiny_denoiser
from python_path import python_path

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.evaluation.scorer import EDLMScorer
from edlm_hf.tokenization import text8_tokenizer

pytest.importorskip(
    "lm_eval",
    reason="lm-evaluation-harness is not installed: pip install 'edlm-hf[lm-eval]'",
)

PAGE = Path(__file__).parents[2] / "docs" / "evaluating.md"
DATASET = "datasets/EleutherAI/lambada_openai"
README = """---
configs:
- config_name: default
  data_files:
  - split: test
    path: data/test.jsonl
---
"""
TEXTS = [
    "she looked up at the grey sky and felt the rain",
    "he opened the door and there was his brother",
    "the ship went down with all her men",
]
LENGTH = 64
TOKENIZER = text8_tokenizer(LENGTH)
SIZES = {"vocab_size": len(TOKENIZER), "model_length": LENGTH, "mask_token_id": TOKENIZER.mask_token_id}
SIZES["bos_token_id"] = TOKENIZER.bos_token_id


def documented_commands() -> list[list[str]]:
    """The commands of the page that run the harness, in words."""
    blocks = re.findall(r"```bash[^\n]*\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if "edlm_hf.lm_eval" in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the models that the page names."""
    folder = tmp_path_factory.mktemp("harness")
    models = {"my-ar": tiny_causal(**SIZES)}
    models["my-edlm"] = EDLMForMaskedDiffusion.from_components(
        tiny_denoiser(**SIZES),
        tiny_causal(**SIZES),
    )
    for name, model in models.items():
        model.save_pretrained(folder / name)
        TOKENIZER.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def hub():
    """A Hub that has the dataset of the task."""
    hub = HubServer()
    repository = Repository(private=False)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    repository.commit("main", {"README.md": README.encode(), "data/test.jsonl": rows.encode()}, "texts")
    hub.repositories[DATASET] = repository
    yield hub
    hub.close()


def run(command: list[str], folder: Path, hub: HubServer) -> dict:
    """The results of a command of the harness."""
    output = folder / f"results-{len(list(folder.glob('results-*')))}"
    words = [sys.executable, *command[1:], "--output_path", str(output)]
    environment = os.environ | hub.environment(folder / "hf") | {"PYTHONPATH": python_path()}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "HF_DATASETS_CACHE": str(folder / "datasets")}
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    (file,) = output.rglob("results_*.json")
    return json.loads(file.read_text())


def test_documented_commands_give_the_likelihoods_of_the_scorer_and_of_the_causal_model(folder, hub):
    edlm, autoregressive = documented_commands()
    pairs = []
    for text in TEXTS:
        context, _, last = text.rpartition(" ")
        pairs.append((context, f" {last}"))

    # The model of the page: a bound of the sampler, with its noise
    found = run(edlm, folder, hub)
    model = EDLMForMaskedDiffusion.from_pretrained(folder / "my-edlm")
    scorer = EDLMScorer(model, TOKENIZER, bound="sampler", num_samples=32, batch_size=16)
    nats = [-value for value, _ in scorer.loglikelihood(pairs)]
    assert found["config"]["model"] == "edlm"

    perplexity = math.exp(sum(nats) / len(nats))
    assert found["results"]["lambada_openai"]["perplexity,none"] == pytest.approx(perplexity, rel=1e-3)
    assert found["config"]["estimates"]["loglikelihood"]["standard_error"] > 0

    # The baseline, served by the harness's own class
    found = run(autoregressive, folder, hub)
    nats = [nats_of(tiny_causal(**SIZES), *pair) for pair in pairs]
    assert found["config"]["model"] == "hf"

    perplexity = math.exp(sum(nats) / len(nats))
    assert found["results"]["lambada_openai"]["perplexity,none"] == pytest.approx(perplexity, rel=1e-3)


@torch.no_grad()
def nats_of(causal, context: str, continuation: str) -> float:
    """-log p of a continuation after a context, with the start token that the tokenizer adds."""
    ids = torch.tensor([TOKENIZER.encode(context + continuation)])
    visible = len(TOKENIZER.encode(context))
    log_probs = causal(input_ids=ids).logits[0, visible - 1 : -1].log_softmax(-1)
    return -log_probs.gather(-1, ids[0, visible:, None]).sum().item()
