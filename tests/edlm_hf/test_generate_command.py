"""`edlm generate` does what `generate()` does with the same options."""

import json

import pytest
import torch
from command_line import call, generating
from local_hub import write_bert
from published import randomised, tiny_causal, tiny_config
from typer.testing import CliRunner

from edlm_hf import EDLMForMaskedDiffusion, MDLMForMaskedLM
from edlm_hf.cli import app
from edlm_hf.commands.generate import TextOptions
from edlm_hf.commands.text_generation import prompt_inputs
from edlm_hf.loading import load_with_tokenizer
from edlm_hf.tokenization import text8_tokenizer

PROMPT = "ab[MASK]d"
TEXT = ("--prompt", PROMPT, "--max-new-tokens", "6", "--device", "cpu", "--json")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a denoiser with an AR energy, the model, and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = text8_tokenizer(16, start_token=False)
    sizes = {"vocab_size": len(tokenizer), "mask_token_id": tokenizer.mask_token_id, "model_length": 16}
    denoiser = randomised(MDLMForMaskedLM(tiny_config(**sizes)))
    causal = randomised(tiny_causal(**sizes, bos_token_id=26), seed=1)
    model = EDLMForMaskedDiffusion.from_components(denoiser, causal, energy_type="ar")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model.eval(), tokenizer


@pytest.fixture
def command(saved):
    """The texts of `edlm generate` with more options."""

    def texts(*options):
        result = CliRunner().invoke(
            app,
            ["generate", "--model", str(saved[0]), *TEXT, *map(str, options)],
        )
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return texts


@pytest.fixture
def library(saved):
    """The texts of `generate()` on the same model."""
    _, model, tokenizer = saved
    inputs = tokenizer([PROMPT], return_tensors="pt")

    def texts(seed, count=1, **options):
        output = model.generate(
            inputs.input_ids.expand(count, -1),
            max_new_tokens=6,
            generator=torch.Generator().manual_seed(seed),
            **options,
        )
        return tokenizer.batch_decode(output, skip_special_tokens=True)

    return texts


def test_greedy_texts_are_all_the_same_and_those_of_the_library(command, library):
    options = "--greedy", "--num-candidates", 1, "--max-denoising-steps", 5
    texts = command(*options, "--num-return-sequences", 3)
    assert len(set(texts)) == 1
    assert command(*options, "--seed", 7) == texts[:1]
    assert texts[:1] == library(0, do_sample=False, num_candidates=1, max_denoising_steps=5)

    drawn = command(*options[1:], "--num-return-sequences", 3, "--seed", 0)
    assert len(set(drawn)) == 3


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (("--temperature", 0.2), {"temperature": 0.2}),
        (("--top-k", 2), {"top_k": 2}),
        (("--top-p", 0.3), {"top_p": 0.3}),
        (("--energy-window", 0.4), {"energy_window": 0.4}),
        (("--energy-temperature", 0.01), {"energy_temperature": 0.01}),
        (("--sampler", "spaced", "--sampler-option", "score=margin"), {"sampler": "spaced", "score": "margin"}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_an_option_changes_texts_as_it_does_in_the_library(command, library, flags, options):
    common = {"num_candidates": 4, "max_denoising_steps": 4}
    given = "--num-candidates", 4, "--max-denoising-steps", 4, "--num-return-sequences", 12, "--seed", 3
    assert command(*given, *flags) == library(3, count=12, **common, **options) != library(3, count=12, **common)


def test_the_likeliest_token_alone_is_drawn_whatever_the_seed(command):
    """One step fills all masks at once, each with the only token that is left."""
    options = "--num-candidates", 1, "--max-denoising-steps", 1, "--top-k", 1
    assert command(*options, "--seed", 1) == command(*options, "--seed", 2)
    assert command(*options, "--seed", 1) == command(*options[:4], "--top-p", 0.001, "--seed", 2)


def test_the_scope_of_the_energy_is_the_one_that_is_asked_for(saved):
    """An AR energy of revealed tokens wants them from left to right, that of whole texts does not care."""
    arguments = ["generate", "--model", str(saved[0]), *TEXT, "--max-denoising-steps", "3", "--energy-scope"]
    refused = CliRunner().invoke(app, [*arguments, "revealed"])
    assert refused.exit_code == 1 and "left to right" in refused.stderr
    assert CliRunner().invoke(app, [*arguments, "sequence"]).exit_code == 0


def test_weights_have_the_precision_that_is_asked_for(saved, monkeypatch):
    seen = []
    real = EDLMForMaskedDiffusion.generate

    def generate(self, *args, **options):
        seen.append(self.denoiser.dtype)
        return real(self, *args, **options)

    monkeypatch.setattr(EDLMForMaskedDiffusion, "generate", generate)
    for dtype in ((), ("--dtype", "bfloat16")):
        result = CliRunner().invoke(app, ["generate", "--model", str(saved[0]), *TEXT, *dtype])
        assert result.exit_code == 0, result.output

    assert seen == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        (("--temperature", "0"), "temperature is 0.0, but it must be a number, positive and finite"),
        (("--energy-temperature", "-1"), "energy_temperature is -1.0, but it must be a number, positive"),
        (("--energy-scope", "token"), "energy_scope is 'token', but it must be one of sequence, revealed"),
        (("--dtype", "float99"), "dtype is 'float99', but it must be one of float32, bfloat16, float16"),
    ],
)
def test_a_wrong_value_is_one_line_before_anything_is_loaded(flags, advice):
    result = CliRunner().invoke(app, ["generate", "--model", "nothing-here", *flags])
    assert result.exit_code == 1 and not result.stdout
    assert result.stderr.startswith("edlm generate: ") and len(result.stderr.splitlines()) == 1
    assert advice in result.stderr


@pytest.mark.parametrize("flags", [("--top-k", "-1"), ("--top-p", "1.5"), ("--energy-window", "2"), ("--seed", "-1")])
def test_a_value_out_of_range_is_wrong_usage(flags):
    result = CliRunner().invoke(app, ["generate", "--model", "nothing-here", *flags])
    assert result.exit_code == 2 and f"'{flags[0]}'" in result.stderr


def told_lines(result):
    """What the command itself told, beside the bars of the libraries."""
    return [line for line in result.stderr.splitlines() if line.startswith("edlm ")]


def test_flags_and_keys_of_0_1_0_give_the_texts_of_the_new_ones(saved, command, tmp_path):
    texts = command("--num-return-sequences", 2, "--max-denoising-steps", 3, "--num-candidates", 2, "--seed", 4)
    arguments = ["generate", "--model", str(saved[0]), *TEXT, "--seed", "4"]
    old = CliRunner().invoke(app, [*arguments, "--samples", "2", "--steps", "3", "--candidates", "2"])
    assert json.loads(old.stdout) == texts

    changes = "--samples (now --num-return-sequences), --steps (now --max-denoising-steps), "
    changes += "--candidates (now --num-candidates)."
    assert told_lines(old) == [f"edlm generate: old names, which work until 0.3.0: {changes}"]

    (tmp_path / "old.yaml").write_text("{samples: 2, steps: 3, candidates: 2}")
    old = CliRunner().invoke(app, [*arguments, "--config", str(tmp_path / "old.yaml")])
    assert json.loads(old.stdout) == texts

    told = f"edlm generate: old names, which work until 0.3.0: {changes.replace('--', '')}"
    assert told_lines(old) == [told]


@pytest.mark.parametrize("command_name", ["generate", "picture"])
def test_a_prompt_that_is_not_utf_8_is_wrong_usage(command_name):
    """Bytes of the command line that are not UTF-8 reach Python as surrogates."""
    result = CliRunner().invoke(app, [command_name, "--model", "nothing-here", "--prompt", "ab\udcff"])
    assert result.exit_code == 2
    assert "not UTF-8" in result.stderr and "character 3" in result.stderr


def test_a_prompt_of_a_file_of_options_is_read_like_that_of_the_flag(tmp_path):
    (tmp_path / "options.yaml").write_text('prompt: "ab\\uDCFF"\n')
    result = CliRunner().invoke(
        app, ["generate", "--model", "nothing-here", "--config", str(tmp_path / "options.yaml")]
    )
    assert result.exit_code in (1, 2) and "not UTF-8" in result.stderr


def test_generate_fills_masks_and_keeps_the_rest(denoiser_folder):
    arguments = generating(denoiser_folder, "ab[MASK]d", 3, 4)
    result = call(*arguments, "--num-return-sequences", 2, "--seed", 1, "--json")
    assert result.exit_code == 0, result.output
    texts = json.loads(result.stdout)
    assert len(texts) == 2
    assert all(len(text) == 7 and text[:2] == "ab" and text[3] == "d" for text in texts)
    assert call(*arguments, "--num-return-sequences", 2, "--seed", 1, "--json").stdout == result.stdout


def test_what_is_not_said_is_as_the_model_is_set_to_and_texts_begin_with_its_start_token(
    tmp_path,
    monkeypatch,
):
    tokenizer = text8_tokenizer(12, start_token=True)
    network = MDLMForMaskedLM(
        tiny_config(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
        )
    )
    network.generation_config.update(max_denoising_steps=3, energy_window=0.5)
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    seen, real = [], MDLMForMaskedLM.generate
    monkeypatch.setattr(
        MDLMForMaskedLM,
        "generate",
        lambda *args, **given: seen.append(given) or real(*args, **given),
    )
    result = call("generate", "--model", tmp_path, "--num-return-sequences", 2, "--json")

    assert result.exit_code == 0, result.output
    assert seen[0]["input_ids"].tolist() == [[27], [27]]
    assert not {"max_denoising_steps", "energy_window", "num_candidates", "block_length"} & set(seen[0])
    assert call("generate", "--model", tmp_path, "--max-denoising-steps", 5, "--max-new-tokens", 4).exit_code == 0
    assert seen[1]["max_denoising_steps"] == 5 and seen[1]["max_new_tokens"] == 4


def test_a_sampler_and_its_parameters_are_those_of_generate(denoiser_folder, monkeypatch):
    seen, real = [], MDLMForMaskedLM.generate
    monkeypatch.setattr(
        MDLMForMaskedLM,
        "generate",
        lambda *args, **given: seen.append(given) or real(*args, **given),
    )
    arguments = [*generating(denoiser_folder, "ab", 6, 3), "--json"]
    parameters = ["--sampler-option", "distance=2", "--sampler-option", "score=random"]
    result = call(*arguments, "--sampler", "spaced", *parameters)
    assert result.exit_code == 0, result.output

    given = {name: seen[0].get(name) for name in ("sampler", "distance", "score", "max_denoising_steps")}
    assert given == {"sampler": "spaced", "distance": 2, "score": "random", "max_denoising_steps": 3}
    for option in ("remasking-window=0.2,0.8", "eta=0.1", "corrector_sweeps=1"):
        assert call(*arguments, "--sampler", "remdm", "--sampler-option", option).exit_code == 0
    assert seen[1]["remasking_window"] == (0.2, 0.8) and seen[3]["corrector_sweeps"] == 1


def test_a_text_longer_than_the_model_is_generated_block_after_block(denoiser_folder):
    arguments = [*generating(denoiser_folder, "ab", 20, 2), "--json"]
    too_long = call(*arguments)
    assert too_long.exit_code == 1 and "block_length" in too_long.stderr
    (text,) = json.loads(call(*arguments, "--block-length", 5).stdout)
    assert len(text) == 22 and text.startswith("ab")


def test_a_continuation_follows_the_text_and_not_its_end_token(tmp_path):
    """As BERT is given a text: [CLS] a b [SEP]. Where masks alone are filled, the end token stays."""
    write_bert(tmp_path)
    network, tokenizer = load_with_tokenizer(str(tmp_path))
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    a, mask = tokenizer.convert_tokens_to_ids(["a", "[MASK]"])

    def given(prompt: str, **options) -> list[int]:
        text = TextOptions(model=str(tmp_path), prompt=prompt, device="cpu")
        inputs, _ = prompt_inputs(text, options, network, tokenizer)
        assert inputs["attention_mask"].shape == inputs["input_ids"].shape
        return inputs["input_ids"][0].tolist()

    assert given("a", max_new_tokens=4) == [cls, a]
    assert given("", max_new_tokens=4) == [cls]
    assert given("a [MASK]") == [cls, a, mask, sep]

    # The length may be that of the model
    network.generation_config.max_length = 8
    assert given("a") == [cls, a]
    network.generation_config.max_length = 3
    assert given("a") == [cls, a, sep]
