"""Arguments of generate(): what they default to, what travels with a model, and what is refused."""

import copy

import pytest
import torch
from published import randomised, seed, tiny_config, tiny_denoiser, with_ar
from transformers import AutoModel, BertConfig, BertForMaskedLM, GenerationConfig

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion, EDLMGenerationConfig

MASK, PAD = 12, 11
build = EDLMForMaskedDiffusion.from_components


def test_numbers_of_numpy_and_torch_are_numbers():
    import numpy as np

    model, ids = tiny_denoiser(), torch.tensor([[3, MASK]])
    options = {
        "max_new_tokens": torch.tensor(3),
        "num_return_sequences": np.int64(2),
        "temperature": torch.tensor(0.7),
    }
    options |= {
        "max_denoising_steps": np.int32(2),
        "eos_token_id": torch.tensor([4, 5]),
        "pad_token_id": np.int64(PAD),
    }
    assert model.generate(ids, generator=seed(), **options).shape == (2, 5)
    assert model.generate(batch_size=np.int64(3), max_new_tokens=2).shape == (3, 2)
    assert model.generate(ids, max_new_tokens=2, eos_token_id=(4, 5), logits_processor=()).shape == (1, 4)

    config = EDLMGenerationConfig(block_length=3)
    assert config.update(defaults_only=True, block_length=5, num_candidates=np.int64(2)) == {"block_length": 5}
    assert (config.block_length, config.num_candidates) == (3, 2)
    assert type(config.num_candidates) is int


def test_ids_that_the_embedding_has_are_taken_though_the_vocabulary_is_smaller():
    sizes = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertForMaskedLM(BertConfig(**sizes, intermediate_size=8)).eval()
    bert.config.vocab_size = 13
    model = build(bert, mask_token_id=12)
    assert model.generate(torch.tensor([[14, 12]]), generator=seed())[0, 0] == 14
    with pytest.raises(ValueError, match="ids from 12 to 16"):
        model.generate(torch.tensor([[16, 12]]))


def test_what_is_not_given_has_its_default_and_overrides_nothing():
    config = EDLMGenerationConfig(block_length=3)
    assert (config.max_denoising_steps, config.num_candidates, config.energy_window) == (128, 8, 1.0)
    assert (config.sampler, config.energy_temperature, config.energy_scope) == ("ancestral", 1.0, None)
    assert set(config.to_diff_dict()) == {"transformers_version", "block_length", "do_sample"}
    assert copy.deepcopy(config).block_length == 3 and not hasattr(config, "colour")

    model = with_ar()
    model.generation_config.update(num_candidates=3)
    options = {"max_denoising_steps": 2, "generator": seed(), "return_dict_in_generate": True}
    assert model.generate(generation_config=EDLMGenerationConfig(), **options).energies.shape[-1] == 3
    assert model.generate(generation_config=EDLMGenerationConfig(num_candidates=8), **options).energies.shape[-1] == 8


def test_generation_config_travels_with_the_model(tmp_path):
    model = with_ar()
    model.generation_config = EDLMGenerationConfig(
        max_denoising_steps=7, num_candidates=3, energy_window=(0.2, 0.9), sampler="ancestral", pad_token_id=PAD
    )
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    config = loaded.generation_config
    assert isinstance(config, EDLMGenerationConfig)
    assert (config.max_denoising_steps, config.num_candidates, tuple(config.energy_window)) == (7, 3, (0.2, 0.9))

    out = loaded.generate(return_dict_in_generate=True, generator=seed())
    assert out.energies.shape == (7, 1, 3)
    out = loaded.generate(return_dict_in_generate=True, generator=seed(), num_candidates=2)
    assert out.energies.shape == (7, 1, 2)

    given = EDLMGenerationConfig(max_denoising_steps=4, return_dict_in_generate=True)
    assert loaded.generate(generation_config=given, generator=seed()).energies.shape == (4, 1, 3)
    plain = GenerationConfig(max_new_tokens=5, do_sample=True)
    assert loaded.generate(generation_config=plain, generator=seed()).shape == (1, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_candidates": 0}, "num_candidates is 0.*positive integer"),
        ({"num_candidates": 2.5}, "num_candidates is 2.5"),
        ({"max_denoising_steps": 0}, "max_denoising_steps is 0"),
        ({"energy_window": 1.2}, r"energy_window is 1.2.*\[0, 1\]"),
        ({"energy_window": -0.1}, "energy_window is -0.1"),
        ({"energy_window": (0.8, 0.2)}, r"energy_window is \(0.8, 0.2\).*t_low <= t_high"),
        ({"energy_window": (0.2, 1.5)}, "energy_window is"),
        ({"energy_temperature": 0.0}, "energy_temperature is 0.0"),
        ({"temperature": 0.0}, "temperature"),
        ({"sampler": "euler"}, "sampler is 'euler'.*ancestral, first_hitting"),
        ({"energy_scope": "half"}, "energy_scope is 'half'"),
        ({"block_length": 0}, "block_length is 0"),
        ({"block_length": 13}, "block_length is 13.*at most 12"),
        ({"energy_chunk_size": 0}, "energy_chunk_size is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_steps": 5}, "does not know num_steps.*max_denoising_steps"),
        ({"num_beams": 4}, "does not know num_beams"),
        ({"generation_config": GenerationConfig(num_beams=4)}, "does not know num_beams"),
        ({"energy": 3}, "energy is a int.*callable"),
        ({"energy": lambda *x: torch.zeros(1, 2, 3)}, r"energy returned \(1, 2, 3\).*\(1, 8\) is needed"),
        ({"energy": lambda *x: 3.0}, "energy returned float"),
        ({"energy": lambda c, *x: torch.full(c.shape[:2], torch.nan)}, "NaN or -inf"),
        ({"energy": lambda c, *x: torch.full(c.shape[:2], -torch.inf)}, "NaN or -inf"),
        ({"energy": lambda c, *x: torch.full(c.shape[:2], torch.inf)}, "All candidates of a row"),
        ({"max_length": 13}, "13 new ones are more than the model's 12.*block_length"),
        ({"input_ids": torch.zeros(1, 13, dtype=torch.long)}, "prompt has 13 tokens.*at most 12"),
        ({"input_ids": torch.zeros(1, 5, dtype=torch.long), "max_length": 4}, "5 tokens but max_length is 4"),
        ({"input_ids": torch.zeros(5, dtype=torch.long)}, r"shape \(5,\).*\(batch, length\)"),
        ({"input_ids": torch.zeros(1, 5, dtype=torch.long), "attention_mask": torch.ones(1, 4)}, "attention_mask has"),
        (
            {"input_ids": torch.tensor([[1, MASK]]), "attention_mask": torch.tensor([[1, 0]])},
            "mask token stands where attention_mask is 0",
        ),
        ({"logits_processor": [lambda ids, scores: scores - torch.inf]}, "no token left"),
        ({"logits_processor": [lambda ids, scores: scores - torch.inf], "do_sample": False}, "no token left"),
        ({"logits_processor": [lambda ids, scores: scores * torch.nan], "do_sample": False}, "or NaN"),
        ({"logits_processor": lambda ids, scores: scores}, "logits_processor is a function.*list"),
        ({"input_ids": torch.tensor([[99, MASK]])}, "input_ids holds ids from 12 to 99.*0 to 12"),
        ({"input_ids": torch.tensor([[-1, MASK]])}, "input_ids holds ids from -1"),
        ({"input_ids": torch.tensor([[1.0, 12.0]])}, "input_ids is of type torch.float32"),
        ({"input_ids": [[1, MASK]]}, "input_ids is of type list"),
        ({"input_ids": torch.tensor([1, MASK]), "max_length": 5}, r"shape \(2,\).*\(batch, length\)"),
        ({"input_ids": torch.tensor([[1, MASK]]), "attention_mask": [[1, 1]]}, "attention_mask is a list"),
        ({"input_ids": torch.tensor([[1, MASK]]), "batch_size": 4}, "batch_size is 4.*input_ids has 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"generator": 0}, r"generator is a int.*torch.Generator\(\).manual_seed"),
        ({"generation_config": {"num_candidates": 2}}, "generation_config is a dict"),
        ({"streamer": "text"}, "streamer is a str"),
        ({"num_return_sequences": 0}, "num_return_sequences is 0"),
        ({"max_length": -2}, "max_length is -2"),
        ({"max_length": 0}, "max_length is 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"max_new_tokens": "8"}, "max_new_tokens is '8'"),
        ({"energy_window": "all"}, "energy_window is 'all'"),
        ({"energy_window": (0.2, "1")}, "energy_window is"),
        ({"energy_temperature": "hot"}, "energy_temperature is 'hot'"),
        ({"temperature": float("inf")}, "temperature is inf.*finite"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": -0.5}, "top_p is -0.5"),
        ({"eos_token_id": "a"}, "eos_token_id is 'a'"),
    ],
)
def test_wrong_arguments_say_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_denoiser().generate(**({"generator": seed()} | arguments))


def test_nce_energy_keeps_to_the_scope_it_was_trained_for():
    model = build(tiny_denoiser(), randomised(EDLMEnergyModel(tiny_config())))
    with pytest.raises(ValueError, match="trained for 'sequence'"):
        model.generate(energy_scope="revealed", generator=seed())


def test_schedule_that_never_masks_everything_is_refused():
    model = tiny_denoiser(noise_schedule="geometric")
    with pytest.raises(ValueError, match="0.368 of the tokens visible at t = 1"):
        model.generate()


def test_time_conditioned_networks_are_told_the_noise_of_the_step():
    denoiser = tiny_denoiser(time_conditioning=True)
    energy = randomised(EDLMEnergyModel(tiny_config(time_conditioning=True)))
    model, told = build(denoiser, energy), []
    denoiser.backbone.register_forward_pre_hook(
        lambda m, a, k: told.append(k["timesteps"]),
        with_kwargs=True,
    )

    for sampler in ("ancestral", "first_hitting"):
        told.clear()
        model.generate(
            batch_size=3,
            max_denoising_steps=4,
            num_candidates=2,
            sampler=sampler,
            generator=seed(),
        )
        assert torch.cat(told).max() <= 6.9078
        assert all(len(x.unique()) == 1 or sampler != "ancestral" for x in told)

    # t = 1, 3/4, 1/2, 1/4: sigma = -log(1 - (1 - 1e-3) t)
    told.clear()
    model.generate(batch_size=50, max_denoising_steps=4, num_candidates=1, generator=seed())
    expected = -torch.log1p(-0.999 * torch.tensor([1.0, 0.75, 0.5, 0.25]))
    torch.testing.assert_close(torch.stack([x[0] for x in told]), expected)


def test_a_mask_beyond_the_embedding_is_refused():
    model = tiny_denoiser()
    model.resize_token_embeddings(8)
    with pytest.raises(ValueError, match="mask_token_id is 12, but the embedding of the model has the ids 0 to 7"):
        model.generate(torch.tensor([[1, 2]]), max_new_tokens=2)
