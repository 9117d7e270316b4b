"""Models by name: any masked language model generates, is trained and loads again."""

import pytest
import torch
from command_line import call, lines_of
from model_folders import OTHERS, TOKENIZER, other_network, write_model

from edlm_hf import EDLMForMaskedDiffusion, MDLMForMaskedLM
from edlm_hf.commands import train
from edlm_hf.loading import load_causal, load_denoiser, load_masked, load_with_tokenizer
from edlm_hf.loading_errors import is_repository_name
from edlm_hf.tokenization import text8_tokenizer
from edlm_hf.training import MaskedDiffusionArguments, MaskedDiffusionTrainer


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


def test_commands_of_training_take_what_they_load_from_one_place():
    assert train.load_denoiser is load_denoiser
