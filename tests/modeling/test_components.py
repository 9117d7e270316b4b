"""Parts and configurations that make no composite are refused with advice."""

import pytest
import torch
from composites import CLEAN, MASK, NOISY, build
from peft import LoraConfig, get_peft_model
from published import randomised, tiny_causal, tiny_config, tiny_denoiser, tiny_gpt2
from tokenizers import Tokenizer, models
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from edlm_hf import EDLMConfig, EDLMEnergyModel, EDLMForMaskedDiffusion, MDLMConfig, MDLMForCausalLM


def vocabulary(tokens, **special):
    tokenizer = Tokenizer(
        models.WordLevel(
            {token: i for i, token in enumerate(tokens)},
            unk_token=tokens[0],
        )
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_vocabularies_are_compared_where_both_are_known():
    tokens = [f"t{i}" for i in range(12)]
    other = tokens[:5] + ["x", "y"] + tokens[7:]
    with pytest.raises(ValueError, match=r"differ at 2 ids: 5 \('t5' against 'x'\), 6 \('t6' against 'y'\)"):
        build(
            tiny_denoiser(),
            tiny_gpt2(),
            tokenizer=vocabulary(tokens),
            energy_tokenizer=vocabulary(other),
        )
    build(
        tiny_denoiser(),
        tiny_gpt2(),
        tokenizer=vocabulary(tokens),
        energy_tokenizer=vocabulary(tokens),
    )


def test_energy_must_know_every_id_the_denoiser_can_emit():
    with pytest.raises(ValueError, match=r"ids up to 11.*only 11 rows"):
        build(
            tiny_denoiser(),
            tiny_gpt2(vocab_size=11, bos_token_id=1, eos_token_id=1),
            energy_type="ar",
        )
    build(tiny_denoiser(), tiny_gpt2(vocab_size=12), energy_type="ar")  # the mask needs no row
    with pytest.raises(ValueError, match=r"ids up to 12.*only 12 rows"):
        build(tiny_denoiser(mask_token_id=5), tiny_gpt2(vocab_size=12), energy_type="ar")

    model = build(tiny_denoiser(), tiny_gpt2(), energy_type="ar")
    model.energy_model = tiny_gpt2(vocab_size=11, bos_token_id=1, eos_token_id=1)
    with pytest.raises(ValueError, match=r"ids up to 11.*only 11 rows"):
        model.energy(CLEAN.clamp_max(10).unsqueeze(1), torch.full_like(NOISY, MASK))


def bidirectional_gpt2():
    model = tiny_gpt2(vocab_size=13)
    model.set_attn_implementation("eager")
    for block in model.transformer.h:
        block.attn.is_causal = False
        block.attn.forward = unmasked(block.attn.forward)
    return model


def unmasked(forward):
    def call(*args, attention_mask=None, **kwargs):
        return forward(*args, attention_mask=None, **kwargs)

    return call


def test_causal_model_as_denoiser_is_refused():
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    bert = BertConfig(vocab_size=13, **sizes)
    decoder = randomised(BertLMHeadModel(BertConfig(vocab_size=13, is_decoder=True, **sizes)))
    in_training = tiny_gpt2(vocab_size=13).train()
    for causal in (tiny_causal(), tiny_gpt2(vocab_size=13), in_training, decoder):
        with pytest.raises(ValueError, match=r"causal language model .*AutoModelForMaskedLM"):
            build(causal, mask_token_id=MASK)

    build(randomised(BertForMaskedLM(bert)), mask_token_id=MASK)
    model = build(bidirectional_gpt2(), mask_token_id=MASK, logits_shift=1)  # as DiffuGPT
    assert isinstance(model.denoiser, GPT2LMHeadModel)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"energy_type": "gan"}, "energy_type is 'gan'.*'none', 'ar', 'coar', 'nce'"),
        ({"energy_scope": "half"}, "energy_scope is 'half'"),
        ({"energy_weights": "rented"}, "energy_weights is 'rented'"),
        ({"logits_shift": 2}, "logits_shift is 2"),
        ({"mask_token_id": 13}, "mask_token_id is 13.*denoiser's configuration says 12"),
        ({"denoiser_config": BertConfig(vocab_size=13), "mask_token_id": 13}, "mask_token_id is 13.*between 0 and 12"),
        ({"energy_type": "nce", "energy_config": tiny_config(vocab_size=8)}, "network has only 8 rows"),
        ({"energy_type": "nce", "denoiser_config": BertConfig(), "mask_token_id": 5}, "needs an energy_config"),
        ({"energy_type": "ar", "energy_config": tiny_config(causal=True, vocab_size=5)}, "ids up to 11.*only 5 rows"),
        ({"energy_type": "ar", "energy_config": tiny_config(causal=True, vocab_size=12)}, "can emit id 11.*mask token"),
        ({"energy_type": "ar", "energy_config": GPT2Config(vocab_size=12)}, "bos_token_id is 50256.*only 12 rows"),
        ({"noise_schedule": "quadratic"}, "noise_schedule is 'quadratic'"),
        ({"energy_weights": "shared"}, "only an NCE energy can share"),
        ({"energy_name_or_path": "gpt2"}, "only an AR energy"),
        ({"denoiser_config": tiny_config(causal=True)}, "describes a causal model"),
        ({"denoiser_config": {"model_type": "nonesuch"}}, "model_type 'nonesuch'"),
        ({"denoiser_config": BertConfig()}, "mask_token_id is not known"),
        ({"energy_type": "ar"}, "energy_config is missing"),
        ({"energy_type": "ar", "energy_config": tiny_config()}, "needs a causal"),
        ({"energy_type": "nce", "energy_config": BertConfig()}, "needs an MDLMConfig"),
        ({"energy_adapter_rank": "2"}, "energy_adapter_rank is '2', but a value of type int"),
        ({"denoiser_config": 3}, "denoiser_config is 3, but a value of type .*PreTrainedConfig"),
    ],
)
def test_bad_configuration_says_what_is_allowed(changes, message):
    with pytest.raises(ValueError, match=message):
        EDLMConfig(**({"denoiser_config": tiny_config()} | changes))


def test_bad_components_say_what_to_do():
    with pytest.raises(ValueError, match="energy_type is 'ar' but no energy was given"):
        build(tiny_denoiser(), energy_type="ar")
    with pytest.raises(ValueError, match="energy_type is 'none' but an energy"):
        build(tiny_denoiser(), tiny_gpt2(), energy_type="none")
    with pytest.raises(ValueError, match="energy_type is 'gan'"):
        build(tiny_denoiser(), tiny_gpt2(), energy_type="gan")
    with pytest.raises(ValueError, match="the GPT2LMHeadModel takes no candidate_ids.*'ar' or 'coar'"):
        build(tiny_denoiser(), tiny_gpt2(vocab_size=13), energy_type="nce")
    with pytest.raises(ValueError, match="tokenizer's mask token has id 2.*denoiser's is 12"):
        build(tiny_denoiser(), tokenizer=vocabulary(["a", "b", "[MASK]"], mask_token="[MASK]"))
    with pytest.raises(ValueError, match="configuration says 12"):
        build(tiny_denoiser(), mask_token_id=5)
    with pytest.raises(ValueError, match="reads at most 4 tokens"):
        gpt2 = tiny_gpt2(n_positions=4)
        build(tiny_denoiser(), gpt2).energy(CLEAN.unsqueeze(1), NOISY)
    with pytest.raises(ValueError, match="causal=True"):
        EDLMEnergyModel(tiny_config(causal=True))
    assert isinstance(build(tiny_denoiser(), tiny_causal()).energy_model, MDLMForCausalLM)


def test_a_model_that_sees_later_tokens_is_no_autoregressive_energy():
    sizes = {"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    seeing = BertForMaskedLM(BertConfig(**sizes, intermediate_size=8)).eval()
    for energy in (seeing, tiny_denoiser()):
        with pytest.raises(ValueError, match="causal language model"):
            build(tiny_denoiser(), energy, "coar")


def test_a_new_nce_energy_starts_from_an_mdlm_alone():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    bert = BertForMaskedLM(BertConfig(vocab_size=13, **sizes))
    with pytest.raises(ValueError, match="the denoiser is a BertForMaskedLM. Give the energy: energy=EDLMEnergyModel"):
        build(bert, energy_type="nce", mask_token_id=MASK)

    energy = EDLMEnergyModel(
        MDLMConfig(
            vocab_size=13,
            mask_token_id=MASK,
            hidden_dim=8,
            n_blocks=1,
            n_heads=2,
        )
    )
    assert build(bert, energy, mask_token_id=MASK).config.energy_type == "nce"

    adapted = get_peft_model(tiny_denoiser(), LoraConfig(target_modules=["attn_qkv"]))
    with pytest.raises(ValueError, match="adapters or other weights in it .*base_layer.*Merge them first"):
        build(adapted, energy_type="nce")


def test_arguments_that_nothing_is_loaded_with_are_refused():
    with pytest.raises(ValueError, match="no use for energy_typ: no part is given by name"):
        EDLMForMaskedDiffusion.from_components(tiny_denoiser(), tiny_causal(), energy_typ="coar")
