"""The bridge to lm-evaluation-harness, where that is installed, gives the numbers of the scorer."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scorers import LENGTH, tiny_scorer


def test_without_the_harness_its_installation_is_advised():
    code = "import sys; sys.modules['lm_eval'] = None; import edlm_hf.lm_eval"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode and "pip install 'edlm-hf[lm-eval]'" in result.stderr.splitlines()[-1]


TASKS = {
    "choice": """
        output_type: multiple_choice
        doc_to_text: "{{start}}"
        doc_to_target: "{{label}}"
        doc_to_choice: "{{choices}}"
        metric_list: [{metric: acc}]
        """,
    "whole": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
        """,
    "answer": """
        output_type: generate_until
        doc_to_text: "{{start}}"
        doc_to_target: "{{choices[label]}}"
        generation_kwargs: {until: [" "], max_gen_toks: 20}
        metric_list: [{metric: exact_match}]
        """,
}


@pytest.fixture
def local_tasks(tmp_path):
    """A folder with a model, its tokenizer, data and tasks on it."""
    docs = [
        {"start": "the cat ", "choices": ["sat", "flew away"], "label": 0, "text": "the cat sat on the mat"},
        {"start": "a dog", "choices": [" barked", " sang"], "label": 1, "text": "a dog"},
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))

    for name, body in TASKS.items():
        lines = [f"task: {name}", "dataset_path: json", "test_split: test"]
        lines += [f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'docs.jsonl'}}}}}"]
        lines += [line.strip() for line in body.strip().splitlines()]
        (tmp_path / f"{name}.yaml").write_text("\n".join(lines))

    scorer = tiny_scorer(energy=True)
    scorer.model.save_pretrained(tmp_path / "model")
    scorer.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def test_the_harness_runs_local_tasks_from_the_command_line(local_tasks):
    pytest.importorskip("lm_eval")
    arguments = f"pretrained={local_tasks / 'model'},bound=sampler,num_samples=4,num_steps=4,batch_size=8,device=cpu"
    command = [sys.executable, "-m", "edlm_hf.lm_eval", "--model_args", arguments, "--tasks", ",".join(TASKS)]
    command += ["--include_path", str(local_tasks), "--output_path", str(local_tasks / "results"), "--log_samples"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=local_tasks)
    assert done.returncode == 0, done.stderr

    (file,) = (local_tasks / "results").rglob("results_*.json")
    found = json.loads(file.read_text())
    assert found["results"]["choice"]["acc,none"] in (0, 0.5, 1)
    assert found["config"]["model"] == "edlm"
    assert set(found["config"]["estimates"]) == {"loglikelihood", "loglikelihood_rolling"}
    assert found["config"]["estimates"]["loglikelihood"]["standard_error"] > 0

    scorer = tiny_scorer(energy=True, bound="sampler", num_samples=4)
    nats = -sum(scorer.rolling(["the cat sat on the mat", "a dog"]))
    bits = found["results"]["whole"]["bits_per_byte,none"]
    assert bits == pytest.approx(nats / np.log(2) / len("the cat sat on the mata dog"), rel=1e-5)


def test_the_class_of_the_harness_answers_its_requests(local_tasks):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    import edlm_hf.lm_eval  # noqa: F401  (registers the class)

    folder = local_tasks / "model"
    lm = get_model("edlm").create_from_arg_string(
        f"pretrained={folder},num_samples=2,num_steps=4,batch_size=4,progress_bar=False,max_gen_toks=3",
        {"batch_size": 1, "max_batch_size": None, "device": "cpu"},
    )
    from_command_line = {"batch_size": "2", "device": "cpu"}
    assert get_model("edlm").create_from_arg_obj({"pretrained": folder}, from_command_line).scorer.batch_size == 2
    assert get_model("hf") is not None
    assert lm.scorer.batch_size == 4 and lm.device.type == "cpu" and lm.max_length == LENGTH

    pairs = [("ab", "c"), ("", "de")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    scorer = tiny_scorer(energy=True, max_gen_toks=3)
    for (value, greedy), expected in zip(lm.loglikelihood(requests), scorer.loglikelihood(pairs), strict=True):
        assert (pytest.approx(value, rel=1e-5), greedy) == expected

    (value,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("abc",), 0)])
    assert [pytest.approx(value, rel=1e-5)] == scorer.rolling(["abc"])
    request = ("ab", {"until": ["z"]})
    assert lm.generate_until([Instance("generate_until", {}, request, 0)]) == scorer.generate_until([request])

    lm.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert lm.apply_chat_template([{"role": "user", "content": "hello"}]) == "hello"
    assert lm.chat_template(True) == lm.tokenizer.chat_template and lm.tokenizer_name
