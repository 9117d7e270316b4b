"""Tokens, passwords and keys of a user: hidden in whatever is written or told."""

import copy
import json
import pickle
import random
import sys

import pytest
import torch
import yaml
from hub_client import HubClient
from hub_server import TOKEN
from published import tiny_denoiser
from training import arguments
from typer.testing import CliRunner

from edlm_hf.benchmarks.report import environment, write_results
from edlm_hf.cards import CardFacts
from edlm_hf.cli import app
from edlm_hf.commands.train import train_denoiser
from edlm_hf.commands.training_flags import DataArguments, ModelArguments
from edlm_hf.commands.training_recipe import parse
from edlm_hf.hidden_secrets import hide_in_command, hide_in_values, hide_secrets, is_secret_name
from edlm_hf.training import EnergyArguments, MaskedDiffusionArguments

CLASSES = DataArguments, ModelArguments, MaskedDiffusionArguments
LONG = "hf_" + "aB3dE6" * 6


def test_names_tell_secrets_from_tokens_of_a_text():
    secret = "hub_token hub-token HF_TOKEN token push_to_hub_token hubToken WANDB_API_KEY secret_key db.password"
    secret += " X-Amz-Signature aws_secret_access_key --hub_token client_secret apikey"
    assert all(map(is_secret_name, secret.split()))
    harmless = "mask_token start_token max_new_tokens tokenizer bos_token_id eos_token key sort_key token_file design"
    harmless += " include_num_input_tokens_seen author keyboard secretary monkey - 3"
    assert not any(map(is_secret_name, harmless.split()))


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("edlm t --hub_token abc --push_to_hub", "edlm t --hub_token *** --push_to_hub"),
        ("edlm t --push_to_hub --hub-token=abc", "edlm t --push_to_hub --hub-token=***"),
        ("--hub_token 'a b'\"'\"'c' --x", "--hub_token *** --x"),
        ("HF_TOKEN=abc WANDB_API_KEY='x y' edlm t", "HF_TOKEN=*** WANDB_API_KEY=*** edlm t"),
        ("--model_args pretrained=x,token=abc --y", "--model_args pretrained=x,token=*** --y"),
        ('{"lr": 3, "hub_token": "abc", "x": 1}', '{"lr": 3, "hub_token": ***, "x": 1}'),
        ("lr: 3\nhub_token: abc\nx: 1", "lr: 3\nhub_token: ***\nx: 1"),
        ("https://me:p@ss/word@host/x.parquet", "https://***@host/x.parquet"),
        ("https://host/x?a=1&token=abc", "https://host/x?a=1&token=***"),
        ("Authorization: Bearer abcdefgh", "Authorization: ***"),
        ("it was hf_secret.", "it was ***."),
        (f"runs/{LONG}/x.txt and x{LONG[:8]}", f"runs/***/x.txt and x{LONG[:8]}"),
        ("ghp_" + "a1" * 18, "***"),
        ("hf_oauth_" + "eyJhbGciOi.JzY-4_x" * 2, "***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nx", "***\nx"),
    ],
)
def test_a_secret_is_hidden_by_its_name_or_its_shape(text, hidden):
    assert hide_secrets(text) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "edlm train-denoiser text8.yaml --mask_token [MASK] --start_token --max_new_tokens 5 --tokenizer gpt2",
        "import edlm_hf; hf_hub_download('x'); runs/hf_model/train.txt; user/hf_datasets; hf_xet",
        "each mask token: 28 | git@github.com:x/y | https://host/@user | 10:30@noon",
    ],
)
def test_what_is_no_secret_stays(text):
    assert hide_secrets(text) == text


def test_a_command_shows_no_secret_wherever_it_stands():
    command = ["--hub_tok", "abcdefgh", "--note", "to abcdefgh", "--hub_token", "x", "x", "--password=a=b", LONG]
    assert hide_in_command(command, known=["abcdefgh"]) == [
        "--hub_tok", "***", "--note", "to ***", "--hub_token", "***", "***", "--password=***", "***",
    ]  # fmt: skip
    assert hide_in_command([]) == [] and hide_in_command(["--hub_token"]) == ["--hub_token"]
    assert hide_in_command(["--hub_token", "--push_to_hub", "--x", ""]) == ["--hub_token", "--push_to_hub", "--x", ""]


def test_values_of_any_shape_show_no_secret():
    value = {
        "hub_token": "abc",
        "a": [LONG, 3, None, {"api_key": "x"}],
        "data": "https://a:b@host",
        "token": 5,
    }
    hidden = {
        "hub_token": "***",
        "a": ["***", 3, None, {"api_key": "***"}],
        "data": "https://***@host",
        "token": 5,
    }
    assert hide_in_values(value) == hidden


def test_pickled_arguments_hold_no_secret(tmp_path):
    args = arguments(
        tmp_path,
        EnergyArguments,
        hub_token="a secret",
        run_name=f"run {LONG}",
        num_negatives=3,
    )
    torch.save(args, tmp_path / "args.bin")
    for content in ((tmp_path / "args.bin").read_bytes(), pickle.dumps(args)):
        assert b"a secret" not in content and LONG.encode() not in content
    again = torch.load(tmp_path / "args.bin", weights_only=False)
    assert (again.hub_token, again.run_name, again.num_negatives, again.max_steps) == (None, "run ***", 3, 10)
    assert args.hub_token == "a secret" and copy.deepcopy(args).num_negatives == 3


def test_cards_show_no_secret(tmp_path):
    model = tiny_denoiser()
    facts = {
        "data": f"from https://me:{LONG}@host/x",
        "command": "edlm train-denoiser --hub_token abc --lr 3",
    }
    model.card_facts = CardFacts(
        **facts, measured=LONG, limits="HF_TOKEN=abc", license=LONG, results={LONG: (1.0, None)}
    )
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert LONG not in card and "abc" not in card and "--hub_token *** --lr 3" in card


def test_results_show_no_secret(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["edlm", "evaluate", "--dataset", "https://me:word@host/x", "--hub_token", "abc", LONG]
    )
    result = {
        "environment": environment(torch.device("cpu")),
        "settings": {"model": f"https://x:{LONG}@host"},
    }
    write_results(result, f"| https://me:word@host/{LONG} |", tmp_path)
    assert result["environment"]["command"] == "edlm evaluate --dataset https://***@host/x --hub_token *** ***"
    for file in tmp_path.iterdir():
        assert "word" not in file.read_text() and LONG not in file.read_text()


def test_messages_show_no_secret(tmp_path):
    recipe = {"hub_token": "my secret", "dataset": f"https://me:{LONG}@host/x"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert (
        parse(train_denoiser, CLASSES, [str(tmp_path / "recipe.yaml"), "--output_dir", "x"])[2].hub_token == "my secret"
    )

    flags = ["--output_dir", "x", "--hub_token", "another"]
    assert parse(train_denoiser, CLASSES, [str(tmp_path / "recipe.yaml"), *flags])[2].hub_token == "another"
    assert "--hub_token HUB_TOKEN" in CliRunner().invoke(app, ["train-denoiser", "--help"]).output

    (tmp_path / "wrong.yaml").write_text(
        yaml.safe_dump(
            {
                "hub_token": "my secret",
                "max_steps": "my secret",
            }
        )
    )
    for command, code in (
        (["train-denoiser", tmp_path / "recipe.yaml", "--help"], 0),
        (["train-denoiser", tmp_path / "wrong.yaml", "--output_dir", tmp_path / "out"], 2),
        (["train-denoiser", "--output_dir", tmp_path / "out", "--dataset", "x", "--hub_tokn", LONG], 2),
        (["train-denoiser", "--output_dir", tmp_path / "out", "--dataset", f"https://me:{LONG}@host/x"], 1),
        (["generate", "--model", "edlm-books", LONG], 2),
        (["evaluate", "--model", f"https://me:{LONG}@host/x", "--dataset", "x.txt"], 1),
        (["push", tmp_path / LONG, "me/x"], 1),
    ):
        result = CliRunner().invoke(app, list(map(str, command)))
        assert result.exit_code == code, result.output
        assert LONG not in result.output
        assert "my secret" not in result.output
        assert len(result.output) > 40


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    process = HubClient(hub.environment(tmp_path_factory.mktemp("client"), token=None))
    yield process
    process.close()


def edlm(arguments):
    """The program, in the process that knows the server: exit code, the arguments it left, and what it told."""
    import sys

    from typer.testing import CliRunner

    from edlm_hf.cli import app

    sys.argv = ["edlm", *arguments]
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, sys.argv, result.stdout, result.stderr


STRATEGIES = {
    "end": ["--hub_token", TOKEN],
    "every_save": ["--hub_tok", TOKEN, "--run_name", f"with {TOKEN}"],
    "checkpoint": [f"--hub-token={TOKEN}"],
    "all_checkpoints": [],  # in the recipe
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_that_pushes_writes_its_token_nowhere(hub, client, tmp_path, strategy):
    draw = random.Random(0)
    (tmp_path / "text.txt").write_text(" ".join(draw.choices("the cat sat on a mat".split(), k=2000)))
    recipe = {
        "dataset": str(tmp_path / "text.txt"), "normalize_text8": True, "style": "crop", "start_token": True,
        "length": 16, "hidden_dim": 8, "cond_dim": 4, "n_blocks": 1, "n_heads": 2, "max_steps": 2, "save_steps": 1,
        "eval_blocks": 4, "use_cpu": True, "report_to": "none", "disable_tqdm": True,
        "push_to_hub": True, "hub_model_id": f"me/{strategy}", "hub_strategy": strategy, "hub_always_push": True,
        "output_dir": str(tmp_path / "out"),
    }  # fmt: skip
    if not STRATEGIES[strategy]:
        recipe["hub_token"] = TOKEN
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".env").write_text("SECRET=1")
    code, argv, out, err = client(
        edlm, arguments=["train-denoiser", str(tmp_path / "recipe.yaml"), *STRATEGIES[strategy]]
    )
    assert code == 0, err

    files = hub[f"me/{strategy}"].files()
    here = {str(path): path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert any(name.endswith("training_args.bin") for name in here)
    assert not any(".push-" in name for name in here)

    told = {"arguments": json.dumps(argv).encode(), "output": (out + err).encode()}
    assert not [name for name, content in (files | here | told).items() if TOKEN.encode() in content]

    whole = {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-1", "checkpoint-2"}}.get(
        strategy, set()
    )
    assert {name.partition("/")[0] for name in files if "/" in name} == whole
    assert all(f"{place}/{name}" in files for place in whole for name in ("optimizer.pt", "trainer_state.json"))

    root = {name for name in files if "/" not in name}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "modeling_mdlm.py"} <= root
    state = {"training_args.bin", "trainer_state.json", "recipe.json", ".env", "present_weights.safetensors"}
    assert not root & state and not any(name.endswith("training_args.bin") for name in files)
    assert len(hub[f"me/{strategy}"].messages) >= (2 if strategy == "end" else 4)
