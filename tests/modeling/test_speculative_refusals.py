"""What speculative sampling refuses, with advice."""

import pytest
import torch
import transformers as hf
from exact import MASK, SEQUENCES, TableCausalLM, TableDenoiser, distance
from published import tiny_causal, tiny_denoiser
from speculation import DENOISERS, EMPTY, P_AR, TV, N, combine, conditional, model, sample
from speculative_networks import LENGTH, MASK_ID, PROMPTS, SIZES, VOCABULARY

from edlm_hf.evaluation import sampler_bound
from edlm_hf.training.energy_arguments import EnergyArguments


def test_it_needs_an_autoregressive_energy():
    with pytest.raises(ValueError, match="there is no energy. Combine"):
        sample(combine(TableDenoiser(DENOISERS["uniform"]), mask_token_id=MASK), EMPTY[:2])
    with pytest.raises(ValueError, match="NoiseContrastiveEnergy. Combine"):
        sample(combine(tiny_denoiser(), energy_type="nce"), max_length=8)
    with pytest.raises(ValueError, match="CallableEnergy. Combine"):
        sample(model(), EMPTY[:2], energy=lambda *given: given[2])


@pytest.mark.parametrize("row", [[MASK, MASK, 0, MASK], [1, MASK, 2, 0], [MASK, 1, MASK, MASK]])
def test_holes_before_a_text_are_refused(row):
    network = model()
    with pytest.raises(ValueError, match="from left to right.*masks stand at their end"):
        sample(network, torch.tensor([[1, MASK, MASK, MASK], row]))
    assert network.denoiser.calls == 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"draft_length": 0}, "draft_length is 0.*at least 1"),
        ({"draft_length": 2.5}, "draft_length is 2.5.*whole number"),
        ({"draft_length": True}, "draft_length is True"),
        ({"threshold": 0.5}, "'speculative' has no threshold: it takes draft_length"),
        ({"guidance_scale": 2.0}, "guidance_scale is 2.0.*only change the drafts"),
        ({"corrector_sweeps": 1.0}, "corrector_sweeps is 1.0.*corrector would replace"),
    ],
)
def test_options_without_a_meaning_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        sample(model(), EMPTY[:2], **options)


def test_a_draft_length_belongs_to_this_sampler_alone():
    with pytest.raises(ValueError, match="'spaced' has no draft_length"):
        model().generate(EMPTY[:2], sampler="spaced", draft_length=2)


def test_a_text_from_nothing_needs_a_start_token():
    network = combine(
        TableDenoiser(DENOISERS["uniform"]),
        TableCausalLM(P_AR, start=None),
        mask_token_id=MASK,
    )
    with pytest.raises(ValueError, match="no bos_token_id.*Give a prompt"):
        sample(network, EMPTY[:2])
    tokens = sample(network, torch.full((N, 1), 2), max_new_tokens=3, draft_length=2)
    assert distance(tokens[:, 1:], conditional((2,), 3)) < TV


def test_another_vocabulary_and_too_short_a_model_are_refused():
    sizes = {"vocab_size": VOCABULARY, "mask_token_id": MASK_ID, "model_length": LENGTH}
    fewer = hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES | {"vocab_size": VOCABULARY - 3}))
    with pytest.raises(ValueError, match="can emit ids up to 15, but.*only 14 rows"):
        sample(combine(tiny_denoiser(**sizes), fewer), max_length=8)

    shorter = tiny_causal(vocab_size=VOCABULARY, mask_token_id=MASK_ID, model_length=20, bos_token_id=0)
    network = combine(tiny_denoiser(**sizes), shorter)
    with pytest.raises(ValueError, match="reads at most 20 tokens"):
        sample(network, max_length=30)
    assert sample(network, PROMPTS, max_new_tokens=14).shape == (3, 20)


def test_it_has_no_bound_and_trains_no_energy():
    with pytest.raises(ValueError, match="call autoregressive_nll"):
        sampler_bound(model(), SEQUENCES[:4].tolist(), num_steps=4, sampler="speculative")
    with pytest.raises(ValueError, match="sampler is 'speculative'.*sees masks alone"):
        EnergyArguments(output_dir="unused", sampler="speculative", max_denoising_steps=4)
