"""Models and tokenizers by name: any masked language model, and one sentence for what cannot be loaded."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from model_folders import (
    OTHERS,
    TOKENIZER,
    as_folder,
    change,
    cut,
    other_network,
    put,
    remove,
    write_model,
)
from transformers import AutoTokenizer
from typer.testing import CliRunner

from edlm_hf import EDLMForMaskedDiffusion, MDLMForMaskedLM
from edlm_hf.cli import app
from edlm_hf.commands import train
from edlm_hf.errors import explanation, writing
from edlm_hf.loading import load_causal, load_denoiser, load_masked, load_with_tokenizer
from edlm_hf.loading_errors import is_repository_name
from edlm_hf.tokenization import text8_tokenizer
from edlm_hf.training import MaskedDiffusionArguments, MaskedDiffusionTrainer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    return {kind: write_model(kind, home / kind) for kind in ("mdlm", "causal", "edlm", "bert", "whole-bert")}


@pytest.fixture
def damaged(folders, tmp_path):
    """A function that copies a model and damages the copy."""

    def make(kind, damage):
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(folders[kind], folder)
        damage(folder)
        return folder

    return make


def call(*arguments, env=None):
    return CliRunner().invoke(app, list(map(str, arguments)), env=env)


# ------------------------------------------------------------------------------------- any masked language model


@pytest.mark.parametrize("kind", OTHERS)
def test_the_command_line_generates_by_any_masked_language_model(kind, tmp_path):
    folder = write_model(kind, tmp_path / kind)
    arguments = "generate", "--model", folder, "--prompt", "ab[MASK]d", "--max-denoising-steps", 2, "--seed", 0
    told = call(*arguments)
    assert told.exit_code == 0, told.stderr
    assert len(told.stdout.strip("\n")) == 4 and told.stdout[:2] == "ab" and told.stdout[3] == "d"

    model = EDLMForMaskedDiffusion.from_components(str(folder))
    ids = TOKENIZER("ab[MASK]d", return_tensors="pt").input_ids
    rows = model.generate(ids, max_denoising_steps=2, generator=torch.Generator().manual_seed(0))
    assert told.stdout == TOKENIZER.decode(rows[0], skip_special_tokens=True) + "\n"


@pytest.mark.parametrize("kind", ["bert", "whole-bert", "roberta"])
def test_what_is_trained_from_another_model_loads_and_is_trained_further(kind, tmp_path):
    text, source = tmp_path / "text.txt", write_model(kind, tmp_path / "source")
    text.write_text("the cat sat on a mat " * 20)
    small = ["--dataset", text, "--length", 12, "--style", "crop", "--max_steps", 2, "--learning_rate", 1e-2]
    small += ["--per_device_train_batch_size", 4, "--eval_blocks", 2, "--use_cpu", "--report_to", "none"]
    small += ["--disable_tqdm", "true", "--ema_decay", 0]

    for start, target in ((source, tmp_path / "first"), (tmp_path / "first", tmp_path / "second")):
        told = call("train-denoiser", "--model", start, "--output_dir", target, *small)
        assert told.exit_code == 0, (told.stderr, told.exception)
        model, tokenizer = load_with_tokenizer(str(target))
        assert type(model) is EDLMForMaskedDiffusion and model.config.energy_type == "none"
        assert type(model.denoiser) is OTHERS[kind.removeprefix("whole-")][1]

        before = load_masked(str(start))
        assert not torch.equal(model.get_input_embeddings().weight, before.get_input_embeddings().weight)
        ids = tokenizer("th[MASK] cat", return_tensors="pt").input_ids
        assert model.generate(ids, max_denoising_steps=2).shape == ids.shape

    told = call("evaluate", "--model", tmp_path / "second", "--dataset", text, "--num-texts", 2, "--json")
    assert told.exit_code == 0, told.stderr


def test_another_denoiser_gets_an_energy_of_its_sizes(folders, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on a mat " * 20)
    small = ["--dataset", text, "--style", "crop", "--max_steps", 1, "--eval_blocks", 2, "--use_cpu"]
    small += ["--report_to", "none", "--disable_tqdm", "true", "--output_dir", tmp_path / "energy"]
    told = call("train-energy", "--denoiser", folders["bert"], *small)
    assert told.exit_code == 0, (told.stderr, told.exception)

    model = load_masked(str(tmp_path / "energy"))
    assert (model.config.energy_type, model.energy_model.config.hidden_dim) == ("nce", 8)
    further = call("train-energy", "--model", tmp_path / "energy", *small[:-1], tmp_path / "further")
    assert further.exit_code == 0, (further.stderr, further.exception)

    shared = call("train-energy", "--denoiser", folders["bert"], "--energy", "lora", *small)
    assert shared.exit_code == 1
    assert "only an MDLM can share its weights with the energy" in shared.stderr


def test_a_trainer_wraps_a_network_that_knows_no_masks(tmp_path):
    network = other_network("electra")
    args = MaskedDiffusionArguments(
        str(tmp_path),
        use_cpu=True,
        report_to="none",
        max_steps=1,
        disable_tqdm=True,
    )
    rows = [{"input_ids": [27, 1, 2, 3]}] * 8
    trainer = MaskedDiffusionTrainer(network, args, train_dataset=rows, processing_class=TOKENIZER)
    assert trainer.model.denoiser is network and trainer.model.config.mask_token_id == 28

    trainer.train()
    trainer.save_model()
    assert load_masked(str(tmp_path)).denoiser.num_parameters() == network.num_parameters()
    with pytest.raises(ValueError, match="Nothing says which token is the mask of the ElectraForMaskedLM"):
        MaskedDiffusionTrainer(network, args)
    with pytest.raises(ValueError, match="no folder could be saved that loads again"):
        MaskedDiffusionTrainer(WithoutClass(network), args)


class WithoutClass(torch.nn.Module):
    """A module that transformers could not load again."""

    def __init__(self, network):
        super().__init__()
        self.network, self.config = network, network.config


@pytest.mark.parametrize("name", ["gpt2", "user/model", "user/model-1.0_b"])
def test_a_name_that_the_hub_can_have_is_looked_for_there(name):
    assert is_repository_name(name)


@pytest.mark.parametrize("name", ["./model", "../model", "model/", "/model", "~/model", "a/b/c"])
def test_a_name_that_the_hub_cannot_have_is_that_of_a_folder(name):
    assert not is_repository_name(name)
    with pytest.raises(ValueError, match="There is no folder"):
        load_denoiser(name)


def test_a_denoiser_is_taken_out_of_a_composite(folders):
    assert type(load_denoiser(str(folders["edlm"]))) is MDLMForMaskedLM
    assert type(load_denoiser("edlm-books")) is MDLMForMaskedLM
    assert load_denoiser(str(folders["bert"])).config.mask_token_id == 28
    whole = load_masked(str(folders["whole-bert"]))
    whole.config.noise_schedule, whole.config.logits_shift = "cosine", 1
    whole.save_pretrained(folders["whole-bert"].parent / "cosine")
    alone = load_denoiser(str(folders["whole-bert"].parent / "cosine"))
    assert (alone.config.noise_schedule, alone.config.logits_shift, alone.config.energy_type) == ("cosine", 1, "none")


def test_a_network_that_sees_what_it_predicts_is_not_causal(folders):
    assert load_causal(str(folders["causal"])).config.causal
    with pytest.raises(ValueError, match="no causal language model"):
        load_causal(str(folders["bert"]))


# ------------------------------------------------------------------------------------- tokenizers of other models


@pytest.mark.parametrize("kind", ["mdlm", "edlm", "bert"])
def test_a_tokenizer_with_another_mask_is_refused(folders, tmp_path, kind):
    text8_tokenizer(16, start_token=False).save_pretrained(tmp_path / "other")  # its mask is 27
    model = folders[kind]
    if kind == "bert":  # where the model does not say, its own composite does
        model = folders["whole-bert"]
    told = call("generate", "--model", model, "--tokenizer", tmp_path / "other", "--prompt", "a[MASK]")
    assert told.exit_code == 1 and not told.stdout and len(lines_of(told)) == 1
    assert "has id 27, but the model masks with id 28" in told.stderr

    (tmp_path / "text.txt").write_text("the cat")
    evaluated = call(
        "evaluate", "--model", model, "--tokenizer", tmp_path / "other", "--dataset", tmp_path / "text.txt"
    )

    assert evaluated.exit_code == 1
    assert "has id 27, but the model masks with id 28" in evaluated.stderr
    with pytest.raises(ValueError, match="has id 27"):
        load_with_tokenizer(str(model), str(tmp_path / "other"))


# ------------------------------------------------------------------------------------- files that cannot be read

DAMAGES = {
    "weights cut": (cut("model.safetensors"), "model.safetensors is damaged or cut: it has"),
    "weights empty": (cut("model.safetensors", 0), "model.safetensors is empty"),
    "weights longer": (put("model.safetensors", b"\x02" + bytes(7) + b"{}more"), "it has 14 bytes, but needs 10"),
    "weights of nothing": (put("model.safetensors", b"abc"), "too few for its header"),
    "weights a pointer": (put("model.safetensors", b"version https://git-lfs.github.com/spec"), "pointer of Git LFS"),
    "weights a folder": (as_folder("model.safetensors"), "model.safetensors cannot be read"),
    "weights missing": (remove("model.safetensors"), "no file named model.safetensors"),
    "configuration cut": (cut("config.json"), "config.json is damaged: it is not JSON"),
    "configuration a list": (put("config.json", b"[1]"), "does not hold names with values"),
    "configuration nested": (put("config.json", b"[" * 99_999), "config.json is damaged"),
    "configuration missing": (remove("config.json"), "config.json"),
    "type unknown": (change("config.json", model_type="foo", auto_map={}), "foo"),
    "dtype unknown": (change("config.json", dtype="float99"), "The configuration of"),
    "vocabulary a text": (change("config.json", vocab_size="29"), "vocab_size"),
    "heads of another": (change("config.json", n_heads=3, num_attention_heads=3), "multiple"),
    "code a number": (change("config.json", auto_map=5), "The configuration of"),
    "generation cut": (put("generation_config.json", b"{"), "generation_config.json is damaged"),
    "tokenizer cut": (cut("tokenizer.json"), "tokenizer.json is damaged"),
    "tokenizer empty": (put("tokenizer.json", b"{}"), "The tokenizer of"),
    "tokenizer of another kind": (change("tokenizer.json", model={"type": "foo"}), "The tokenizer of"),
    "length a text": (change("tokenizer_config.json", model_max_length="x"), "model_max_length is 'x'"),
    "index without names": (put("model.safetensors.index.json", b"[]"), "index.json is damaged"),
    "an adapter": (lambda f: (remove("config.json")(f), put("adapter_config.json", b"{}")(f)), "is an adapter"),
}


@pytest.mark.parametrize("kind", ["mdlm", "edlm", "bert"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_loaded_is_named_in_one_sentence(damaged, kind, damage, capfd):
    do, words = DAMAGES[damage]
    folder = damaged(kind, do)
    with pytest.raises(ValueError) as error:
        load_with_tokenizer(str(folder))
    line = explanation(error.value)
    assert any(word in line for word in words.split("|")) and str(folder) in line and len(line) < 700, line
    assert "[transformers]" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "values",
    [{"max_new_tokens": "many"}, {"top_k": "x"}, {"eos_token_id": "x"}, {"temperature": -1}, {"sampler": "foo"}],
    ids=str,
)
def test_wrong_values_in_generation_config_are_found_when_it_is_loaded(damaged, values):
    folder = damaged("edlm", change("generation_config.json", **values))
    name = next(iter(values))
    with pytest.raises(ValueError, match=f"{folder}/generation_config.json cannot be used: {name} is "):
        load_masked(str(folder))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("mdlm", {"vocab_size": 40, "mask_token_id": 39}),
        ("mdlm", {"hidden_dim": 16}),
        ("edlm", {"cond_dim": 6}),
        ("bert", {"vocab_size": 40}),
        ("bert", {"hidden_size": 16}),
        ("causal", {"model_length": 99, "hidden_dim": 16}),
    ],
)
def test_weights_of_other_sizes_are_named_with_both(damaged, kind, values):
    folder = str(damaged(kind, change("config.json", **values)))
    with pytest.raises(ValueError, match=r"do not fit config.json: [\w.]+ has the shape \(.*\), where the .* says \("):
        load_causal(folder) if kind == "causal" else load_masked(folder)


def test_a_file_in_place_of_a_folder_is_named(folders):
    for name in ("config.json", "model.safetensors"):
        with pytest.raises(ValueError, match=f"{name} is a file, but a folder is needed"):
            load_masked(str(folders["mdlm"] / name))


COMMANDS = {
    "generate": ("--model", "{}"),
    "evaluate": ("--model", "{}", "--dataset", "text8"),
    "train-denoiser": ("--model", "{}", "--dataset", "d", "--output_dir", "{}/out", "--use_cpu"),
    "train-autoregressive": ("--model", "{}", "--dataset", "d", "--output_dir", "{}/out", "--use_cpu"),
    "train-energy": ("--denoiser", "{}", "--dataset", "d", "--output_dir", "{}/out", "--use_cpu"),
    "train-drafts": ("--denoiser", "{}", "--dataset", "d", "--output_dir", "{}/out", "--use_cpu"),
    "benchmark quality": ("--model", "{}", "--dataset", "text8", "--output", "{}/out"),
    "push": ("{}", "me/model"),
}


def lines_of(told) -> list[str]:
    """What was told on stderr, without the bars of transformers, which the program switches off."""
    return [line for line in told.stderr.splitlines() if line and "Loading weights" not in line]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", ["weights cut", "generation cut", "tokenizer cut"])
def test_every_command_fails_in_one_line(damaged, command, damage):
    kind = "causal" if command == "train-autoregressive" else "mdlm"
    folder = damaged(kind, DAMAGES[damage][0])
    told = call(*command.split(), *(argument.format(folder) for argument in COMMANDS[command]))
    lines = lines_of(told)
    assert told.exit_code == 1 and not told.stdout, (told.output, told.exception)
    assert len(lines) == 1 and lines[0].startswith(f"edlm {command}: ") and str(folder) in lines[0], lines


def test_the_traceback_is_there_for_who_asks_for_it(damaged):
    folder = damaged("mdlm", cut("config.json"))
    told = call("generate", "--model", folder, env={"EDLM_TRACEBACK": "1"})
    assert isinstance(told.exception, ValueError)
    assert "config.json is damaged" in str(told.exception)


def test_what_transformers_warns_of_appears_when_loading_went_well(folders, damaged):
    logger, seen = logging.getLogger("transformers.modeling_utils"), []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)

    def warn(folder):
        logger.warning("look at this")
        (Path(folder) / "config.json").read_text()
        return AutoTokenizer.from_pretrained(folder)

    try:
        from edlm_hf.loading import load

        load(warn, str(folders["mdlm"]))
        assert seen == ["look at this"]
        with pytest.raises(ValueError):
            load(warn, str(damaged("mdlm", remove("tokenizer.json"))))
        assert seen == ["look at this"]
    finally:
        logging.getLogger("transformers").removeHandler(handler)


# ------------------------------------------------------------------------------------- machines that are too small


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_one_line(monkeypatch, error):
    def fail(**options):
        raise error

    monkeypatch.setattr("edlm_hf.demo.run_demo", fail)
    told = call("demo")
    assert told.exit_code == 1 and told.stderr.startswith("edlm demo: There is not enough memory: ")
    assert len(told.stderr.splitlines()) == 1


def test_an_interruption_is_exit_code_130(monkeypatch):
    def interrupt(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr("edlm_hf.demo.run_demo", interrupt)
    told = call("demo")
    assert told.exit_code == 130 and told.stderr == "edlm demo: interrupted.\n"


def test_a_package_that_an_option_needs_is_named(tmp_path, folders):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on a mat " * 20)
    small = "--dataset", text, "--style", "crop", "--use_cpu", "--disable_tqdm", "true", "--output_dir", tmp_path / "o"
    told = call("train-denoiser", "--model", folders["mdlm"], *small, "--report_to", "clearml")
    assert told.exit_code == 1 and "clearml" in told.stderr.splitlines()[-1], (told.stderr, told.exception)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 27200 vs 27092"),
        RuntimeError("basic_ios::clear: iostream error"),
    ],
    ids=lambda error: str(error)[:20],
)
def test_a_full_disk_is_named_whatever_the_library_says(tmp_path, error):
    with pytest.raises(OSError, match=rf"{tmp_path}/new cannot be written: .* kB of its disk are free.*Make room"):
        with writing(tmp_path / "new"):
            raise error
    with pytest.raises(RuntimeError, match="a mistake"):
        with writing(tmp_path):
            raise RuntimeError("a mistake")


def test_commands_of_training_take_what_they_load_from_one_place():
    assert train.load_denoiser is load_denoiser
