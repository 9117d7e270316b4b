"""The composite: any masked with any causal language model, energies of every type, and clear errors."""

from types import SimpleNamespace

import pytest
import torch
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
from edlm_hf.evaluation import autoregressive_nll, nelbo, paper_nll, sampler_bound

MASK = 12
NOISY = torch.tensor([[3, 12, 5, 0, 12, 7], [12, 2, 12, 12, 4, 9]])
CLEAN = torch.tensor([[3, 1, 5, 0, 2, 7], [8, 2, 6, 11, 4, 9]])
build = EDLMForMaskedDiffusion.from_components


def by_hand(model, clean, noisy, start, energy_type):
    """E of one row, from the definition: separate calls, plain sums, the start token in front."""
    log_theta = model.denoiser(noisy[None]).logits[0].masked_fill(torch.arange(13) == MASK, -torch.inf).log_softmax(-1)
    inputs = torch.cat([torch.tensor([start]), clean[:-1]])
    log_ar = model.energy_model(inputs[None]).logits[0, :, :12].log_softmax(-1)
    masked = noisy == MASK
    counted = masked if energy_type == "coar" else torch.ones_like(masked)
    token = torch.arange(len(clean))
    return (log_theta[token, clean] * masked).sum() - (log_ar[token, clean] * counted).sum()


@torch.no_grad()
@pytest.mark.parametrize("energy_type", ["ar", "coar"])
@pytest.mark.parametrize("causal", [lambda: tiny_causal(bos_token_id=10), lambda: tiny_gpt2(bos_token_id=10)])
def test_autoregressive_energy_follows_its_definition(energy_type, causal):
    model = build(tiny_denoiser(), causal(), energy_type=energy_type)
    energy = model.energy(CLEAN.unsqueeze(1), NOISY)
    for row in range(2):
        torch.testing.assert_close(energy[row, 0], by_hand(model, CLEAN[row], NOISY[row], 10, energy_type))


@torch.no_grad()
@pytest.mark.parametrize("causal", [lambda: tiny_causal(bos_token_id=10), tiny_gpt2])
@pytest.mark.parametrize("energy_type", ["ar", "coar", "nce"])
def test_padding_on_either_side_leaves_energies_alone(energy_type, causal):
    energy = randomised(EDLMEnergyModel(tiny_config())) if energy_type == "nce" else causal()
    model = build(tiny_denoiser(), energy, energy_type=energy_type)
    plain = model.energy(CLEAN.unsqueeze(1), NOISY)
    for left, right in [(2, 0), (0, 3), (1, 1)]:
        pad = lambda x: torch.nn.functional.pad(x, (left, right), value=11)  # noqa: B023, E731
        mask = torch.nn.functional.pad(torch.ones_like(NOISY), (left, right))
        padded = model.energy(pad(CLEAN).unsqueeze(1), pad(NOISY), attention_mask=mask)
        torch.testing.assert_close(padded, plain, rtol=0, atol=1e-4)


@torch.no_grad()
def test_rows_that_begin_with_the_start_token_are_not_given_another():
    model = build(tiny_denoiser(), tiny_gpt2(bos_token_id=10), energy_type="ar")
    started = torch.cat([torch.tensor([[10], [4]]), CLEAN], dim=1)
    noisy = torch.cat([torch.tensor([[10], [4]]), NOISY], dim=1)
    energy = model.energy(started.unsqueeze(1), noisy)
    log_theta = model(noisy).logits.masked_fill(torch.arange(13) == MASK, -torch.inf).log_softmax(-1)
    log_theta = log_theta.gather(-1, started.unsqueeze(-1)).squeeze(-1).masked_fill(noisy != MASK, 0).sum(-1)
    first = model.energy_model(started[:1, :-1]).logits.log_softmax(-1).gather(-1, started[:1, 1:, None]).sum()
    torch.testing.assert_close(energy[0, 0], log_theta[0] - first)
    inputs = torch.cat([torch.tensor([[10]]), started[1:, :-1]], dim=1)
    second = model.energy_model(inputs).logits.log_softmax(-1).gather(-1, started[1:, :, None]).sum()
    torch.testing.assert_close(energy[1, 0], log_theta[1] - second)


@torch.no_grad()
def test_energies_of_many_candidates_equal_those_of_single_ones():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(0, 12, (2, 7, 6), generator=generator)
    candidates = torch.where(NOISY.unsqueeze(1) == MASK, draws, NOISY.unsqueeze(1))
    for energy in (tiny_causal(bos_token_id=10), tiny_gpt2(), randomised(EDLMEnergyModel(tiny_config()))):
        model = build(tiny_denoiser(), energy)
        together = model.energy(candidates, NOISY)
        alone = torch.cat([model.energy(candidates[:, j : j + 1], NOISY) for j in range(7)], dim=1)
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
        assert together.std() > 0.01


@torch.no_grad()
def test_energy_of_type_none_is_zero():
    assert torch.equal(build(tiny_denoiser()).energy(CLEAN.unsqueeze(1), NOISY), torch.zeros(2, 1))


@torch.no_grad()
def test_new_nce_energy_is_a_constant_and_starts_from_the_denoiser():
    torch.manual_seed(0)
    denoiser = tiny_denoiser()
    model = build(denoiser, energy_type="nce")
    energy = model.energy(torch.stack([CLEAN, CLEAN.masked_fill(NOISY == MASK, 3)], 1), NOISY)
    assert energy.std() == 0 and energy[0, 0] != 0
    ours, theirs = model.energy_model.state_dict(), denoiser.backbone.state_dict()
    copied = [name for name in ours if name in theirs and "output_layer.linear" not in name]
    assert len(copied) > 20 and all(torch.equal(ours[name], theirs[name]) for name in copied)
    assert ours["vocab_embed.embedding"].data_ptr() != theirs["vocab_embed.embedding"].data_ptr()


@torch.no_grad()
def test_given_parts_keep_their_weights_and_can_be_replaced():
    denoiser, causal = tiny_denoiser(), tiny_gpt2()
    before = {name: p.clone() for name, p in list(denoiser.named_parameters()) + list(causal.named_parameters())}
    model = build(denoiser, causal, energy_type="coar")
    assert model.denoiser is denoiser and model.energy_model is causal
    after = dict(list(denoiser.named_parameters()) + list(causal.named_parameters()))
    assert all(torch.equal(before[name], after[name]) for name in before)
    first = model.energy(CLEAN.unsqueeze(1), NOISY)
    model.energy_model = randomised(tiny_gpt2(), seed=9)
    assert (model.energy(CLEAN.unsqueeze(1), NOISY) - first).abs().max() > 0.01

    class Uniform(torch.nn.Module):
        def forward(self, input_ids, attention_mask=None):
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 13))

    model.denoiser = Uniform()
    assert torch.equal(model(NOISY).logits, torch.zeros(2, 6, 13))


@torch.no_grad()
def test_shifted_logits_are_put_in_place():
    plain, shifted = build(tiny_denoiser()), build(tiny_denoiser(), logits_shift=1)
    logits = plain(NOISY).logits
    torch.testing.assert_close(shifted(NOISY).logits[:, 1:], logits[:, :-1])
    torch.testing.assert_close(shifted(NOISY).logits[:, 0], logits[:, 0])


def test_composite_loss_is_that_of_its_denoiser():
    model, labels = build(tiny_denoiser()), torch.where(NOISY == MASK, CLEAN, -100)
    torch.testing.assert_close(model(NOISY, labels=labels).loss, model.denoiser(NOISY, labels=labels).loss)


def vocabulary(tokens, **special):
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[0]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_vocabularies_are_compared_where_both_are_known():
    tokens = [f"t{i}" for i in range(12)]
    other = tokens[:5] + ["x", "y"] + tokens[7:]
    with pytest.raises(ValueError, match=r"differ at 2 ids: 5 \('t5' against 'x'\), 6 \('t6' against 'y'\)"):
        build(tiny_denoiser(), tiny_gpt2(), tokenizer=vocabulary(tokens), energy_tokenizer=vocabulary(other))
    build(tiny_denoiser(), tiny_gpt2(), tokenizer=vocabulary(tokens), energy_tokenizer=vocabulary(tokens))


def test_energy_must_know_every_id_the_denoiser_can_emit():
    with pytest.raises(ValueError, match=r"ids up to 11.*only 11 rows"):
        build(tiny_denoiser(), tiny_gpt2(vocab_size=11, bos_token_id=1, eos_token_id=1), energy_type="ar")
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
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
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


def test_parts_without_configuration_say_what_they_know():
    """A table whose logits stop before the mask, an energy table without a mask row, nothing said about either."""

    class Table(torch.nn.Module):
        def __init__(self, rows):
            super().__init__()
            self.register_buffer("logits", torch.randn(6, rows, generator=torch.Generator().manual_seed(rows)))

        def forward(self, input_ids, attention_mask=None):
            return SimpleNamespace(logits=self.logits[: input_ids.shape[1]].expand(len(input_ids), -1, -1))

    model = build(Table(4), Table(4), energy_type="coar", mask_token_id=4)
    noisy = torch.tensor([[4, 1, 4, 0, 4, 4]])
    candidates = torch.where(noisy == 4, torch.tensor([[3, 0, 2, 0, 1, 0]]), noisy).unsqueeze(1)
    energy = model.energy(candidates, noisy)
    token, masked = torch.arange(6), noisy[0] == 4
    log_theta = model.denoiser.logits.log_softmax(-1)[token, candidates[0, 0]]
    log_ar = model.energy_model.logits.log_softmax(-1)[token[:-1], candidates[0, 0, 1:]]  # position 0 cancels
    torch.testing.assert_close(energy[0, 0], log_theta[1:][masked[1:]].sum() - log_ar[masked[1:]].sum())
    tokens = model.generate(noisy.repeat(50, 1), generator=torch.Generator().manual_seed(0))
    assert (tokens < 4).all() and model.generate(batch_size=2, max_length=6).shape == (2, 6)
    with pytest.raises(ValueError, match="how long its texts are"):
        model.generate()


def test_impossible_text_has_infinite_energy_not_nan():
    class Never(torch.nn.Module):
        def forward(self, input_ids, attention_mask=None):
            logits = torch.zeros(*input_ids.shape, 13)
            logits[..., 5] = -torch.inf
            return SimpleNamespace(logits=logits)

    model = build(Never(), Never(), energy_type="ar", mask_token_id=MASK)
    texts = torch.tensor([[[1, 5, 2], [1, 4, 2]]])
    energy = model.energy(texts, torch.full((1, 3), MASK))
    assert energy[0, 0] == torch.inf and energy[0, 1].isfinite()


def test_rows_with_and_without_their_start_token_share_a_batch():
    """Tables read columns by position and know no attention mask: a row must not see its neighbours (C15)."""

    class Position(torch.nn.Module):
        config = SimpleNamespace(bos_token_id=10)

        def forward(self, input_ids, attention_mask=None):
            assert (input_ids[:, 0] == 10).all()
            place = torch.arange(input_ids.shape[1])[:, None] * torch.arange(13)
            return SimpleNamespace(logits=place.expand(len(input_ids), -1, -1) * 0.1)

    model = build(tiny_denoiser(), Position(), energy_type="ar")
    texts = torch.tensor([[10, 1, 5, 0], [3, 1, 2, 7]])
    noisy = torch.tensor([[10, MASK, MASK, MASK], [3, MASK, MASK, 7]])
    together = model.energy(texts.unsqueeze(1), noisy)
    for row in range(2):
        alone = model.energy(texts[row : row + 1].unsqueeze(1), noisy[row : row + 1])
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-5)


def test_start_token_that_is_the_mask_starts_no_row():
    """With the mask as start token, a masked first position is still scored."""
    causal = tiny_gpt2(vocab_size=13, bos_token_id=MASK, eos_token_id=MASK)
    model = build(tiny_denoiser(), causal, energy_type="coar")
    energy = model.energy(CLEAN[1:].unsqueeze(1), NOISY[1:])
    torch.testing.assert_close(energy[0, 0], by_hand(model, CLEAN[1], NOISY[1], MASK, "coar"))


def test_wrapped_energy_pads_as_the_bare_one():
    causal = tiny_gpt2(bos_token_id=10)
    mask = torch.nn.functional.pad(torch.ones_like(NOISY), (3, 0))
    inputs = [torch.nn.functional.pad(x, (3, 0), value=11) for x in (CLEAN, NOISY)]
    bare = build(tiny_denoiser(), causal, energy_type="ar")
    expected = bare.energy(inputs[0].unsqueeze(1), inputs[1], attention_mask=mask)

    class Wrapper(torch.nn.Module):  # as peft and torch.compile do: the signature says nothing
        def __init__(self):
            super().__init__()
            self.inner, self.config = causal, causal.config

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    wrapped = build(tiny_denoiser(), Wrapper(), energy_type="ar")
    torch.testing.assert_close(wrapped.energy(inputs[0].unsqueeze(1), inputs[1], attention_mask=mask), expected)


def test_vocabulary_of_a_composite_is_resized_in_both_parts():
    model = build(tiny_denoiser(), tiny_causal(bos_token_id=0))
    before = model.energy(CLEAN.unsqueeze(1), NOISY)
    model.resize_token_embeddings(20, mean_resizing=False)
    assert model.config.vocab_size == 20 == model.energy_model.config.vocab_size
    assert model(NOISY).logits.shape[-1] == 20 and (model.energy(CLEAN.unsqueeze(1), NOISY) - before).isfinite().all()


def test_outputs_can_be_tuples():
    model = build(tiny_denoiser(), randomised(EDLMEnergyModel(tiny_config())))
    assert torch.equal(model(NOISY, return_dict=False)[0], model(NOISY).logits)
    energy, _ = model.energy_model(CLEAN, NOISY, return_dict=False)
    assert torch.equal(energy, model.energy_model(CLEAN, NOISY).energy)


def test_reveal_set_energy_of_an_autoregressive_model_needs_the_next_block():
    model = build(tiny_denoiser(), tiny_causal(bos_token_id=10), energy_type="ar", energy_scope="revealed")
    noisy = torch.tensor([[3, 1, MASK, MASK, MASK, MASK]])
    block = torch.tensor([[3, 1, 4, 1, MASK, MASK]])
    log_theta = model(noisy).logits[0, :, :12].log_softmax(-1)
    log_ar = model.energy_model(torch.tensor([[10, 3, 1, 4]])).logits[0, :, :12].log_softmax(-1)
    expected = log_theta[2, 4] + log_theta[3, 1] - log_ar[2, 4] - log_ar[3, 1]
    torch.testing.assert_close(model.energy(block.unsqueeze(1), noisy)[0, 0], expected)
    for wrong in ([3, 1, MASK, 1, MASK, MASK], [3, 1, 4, MASK, 1, MASK]):
        with pytest.raises(ValueError, match="next tokens of the text"):
            model.energy(torch.tensor([[wrong]]), noisy)
    with pytest.raises(ValueError, match="next tokens of the text"):  # visible text behind the block
        model.energy(torch.tensor([[[3, 1, 4, 1, 5, 2]]]), torch.tensor([[3, 1, MASK, MASK, MASK, 2]]))
    with pytest.raises(ValueError, match="candidates of a row reveal different positions"):
        model.energy(torch.tensor([[[3, 1, 4, 1, MASK, MASK], [3, 1, 4, 1, 5, MASK]]]), noisy)


@pytest.mark.parametrize("energy_type", ["ar", "coar"])
def test_reveal_set_energy_of_a_row_does_not_depend_on_the_batch_or_its_padding(energy_type):
    model = build(
        tiny_denoiser(), tiny_gpt2(vocab_size=12), energy_type=energy_type, energy_scope="revealed", mask_token_id=MASK
    )  # the mask has no row in the causal model
    noisy = torch.tensor([[3, 1, 4, 1, MASK, MASK], [3, MASK, MASK, MASK, 0, 0]])
    clean = torch.tensor([[[3, 1, 4, 1, 5, 9], [3, 1, 4, 1, 2, 6]], [[3, 1, 4, MASK, 0, 0], [3, 2, 7, MASK, 0, 0]]])
    real = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    together = model.energy(clean, noisy, attention_mask=real)
    torch.testing.assert_close(together[:1], model.energy(clean[:1], noisy[:1]))
    torch.testing.assert_close(together[1:], model.energy(clean[1:, :, :4], noisy[1:, :4]))
    left = model.energy(clean[1:].roll(2, -1), noisy[1:].roll(2, -1), attention_mask=real[1:].roll(2, -1))
    torch.testing.assert_close(together[1:], left)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"noisy_ids": torch.tensor([[99, MASK]])}, "noisy_ids holds ids from 12 to 99"),
        ({"noisy_ids": torch.tensor([[1.0, 12.0]])}, "noisy_ids is of type torch.float32"),
        ({"candidate_ids": torch.tensor([[[1, 56]]])}, "candidate_ids holds ids from 56 to 56"),
        ({"candidate_ids": torch.tensor([[[1, -1]]])}, "candidate_ids holds ids from -1 to -1"),
        ({"candidate_ids": torch.zeros(1, 0, 2, dtype=torch.long)}, r"shape \(1, 0, 2\).*none of them 0"),
        ({"attention_mask": torch.ones(1, 3)}, r"attention_mask has shape \(1, 3\)"),
        ({"timesteps": torch.ones(3)}, "timesteps has 3 values"),
    ],
)
@pytest.mark.parametrize("kind", ["nce", "ar"])
def test_inputs_of_the_energy_that_do_not_fit_are_refused(kind, inputs, message):
    energy = randomised(EDLMEnergyModel(tiny_config())) if kind == "nce" else tiny_gpt2()
    model = build(tiny_denoiser(), energy)
    inputs = {"candidate_ids": torch.tensor([[[1, 2]]]), "noisy_ids": torch.tensor([[1, MASK]])} | inputs
    with pytest.raises(ValueError, match=message):
        model.energy(**inputs)


def test_a_model_that_sees_later_tokens_is_no_autoregressive_energy():
    sizes = {"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    seeing = BertForMaskedLM(BertConfig(**sizes, intermediate_size=8)).eval()
    for energy in (seeing, tiny_denoiser()):
        with pytest.raises(ValueError, match="causal language model"):
            build(tiny_denoiser(), energy, "coar")


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"labels has shape \(2, 1\)"):
        build(tiny_denoiser())(NOISY, labels=CLEAN[:, :1])


def test_bad_candidates_say_where():
    model = build(tiny_denoiser(), tiny_gpt2())
    with pytest.raises(ValueError, match=r"\(B, k, L\) and \(B, L\) are needed"):
        model.energy(CLEAN, NOISY)
    changed = CLEAN.clone()
    changed[1, 1] = 7
    with pytest.raises(ValueError, match="Candidate 0 of row 1 changes the visible token at position 1"):
        model.energy(changed.unsqueeze(1), NOISY)
    with pytest.raises(ValueError, match="still holds mask tokens"):
        model.energy(NOISY.unsqueeze(1), NOISY)
    with pytest.raises(ValueError, match="are needed"):
        randomised(EDLMEnergyModel(tiny_config()))(CLEAN[:1], NOISY)


class Timed(torch.nn.Module):
    """A plain module that cannot be called without the noise level, on which its logits depend."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(13, 13)

    def forward(self, input_ids, timesteps, attention_mask=None):
        assert timesteps.numel() in (1, len(input_ids))
        tilt = torch.linspace(0, 5, 13) * timesteps.reshape(-1, 1, 1)
        return SimpleNamespace(logits=self.table(input_ids) + tilt)


def test_timesteps_reach_a_plain_module_that_takes_them():
    model = build(Timed(), tiny_gpt2(), mask_token_id=MASK)
    sigma = torch.tensor([0.3, 2.0])
    logits = model(NOISY, timesteps=sigma).logits
    torch.testing.assert_close(logits, model.denoiser(NOISY, sigma).logits)

    low, high = (model.energy(CLEAN.unsqueeze(1), NOISY, timesteps=sigma * scale) for scale in (1, 2))
    assert not torch.allclose(low, high)


@pytest.mark.parametrize("causal", [None, tiny_gpt2])
def test_a_plain_module_that_needs_timesteps_has_texts_and_bounds(causal):
    model = build(Timed(), causal and causal(), mask_token_id=MASK)
    ragged = torch.ones_like(NOISY)
    ragged[0, 0] = 0
    for sampler in ("ancestral", "first_hitting", "top_k", "remdm"):
        model.generate(NOISY, attention_mask=ragged, max_denoising_steps=4, sampler=sampler)

    nelbo(model, CLEAN, num_samples=2)
    paper_nll(model, CLEAN)
    sampler_bound(model, CLEAN, num_steps=3, num_candidates=2, num_samples=2)
    if causal:
        autoregressive_nll(model, CLEAN)


def test_a_new_nce_energy_starts_from_an_mdlm_alone():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    bert = BertForMaskedLM(BertConfig(vocab_size=13, **sizes))
    with pytest.raises(ValueError, match="the denoiser is a BertForMaskedLM. Give the energy: energy=EDLMEnergyModel"):
        build(bert, energy_type="nce", mask_token_id=MASK)
    energy = EDLMEnergyModel(MDLMConfig(vocab_size=13, mask_token_id=MASK, hidden_dim=8, n_blocks=1, n_heads=2))
    assert build(bert, energy, mask_token_id=MASK).config.energy_type == "nce"

    adapted = get_peft_model(tiny_denoiser(), LoraConfig(target_modules=["attn_qkv"]))
    with pytest.raises(ValueError, match="adapters or other weights in it .*base_layer.*Merge them first"):
        build(adapted, energy_type="nce")


def test_arguments_that_nothing_is_loaded_with_are_refused():
    with pytest.raises(ValueError, match="no use for energy_typ: no part is given by name"):
        EDLMForMaskedDiffusion.from_components(tiny_denoiser(), tiny_causal(), energy_typ="coar")


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32])
def test_energies_take_integers_of_every_kind(kind):
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), tiny_causal())
    candidates, noisy = torch.tensor([[[3, 4], [3, 5]]]), torch.tensor([[3, 12]])
    expected = model.energy(candidates, noisy)
    assert torch.equal(model.energy(candidates.to(kind), noisy.to(kind)), expected)
    assert torch.equal(model.energy(candidates, noisy, timesteps=0.5), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidate_ids": torch.tensor([[[3.0, 4.0]]])}, "candidate_ids is of type torch.float32"),
        ({"candidate_ids": torch.tensor([[[3, 40]]])}, "candidate_ids holds ids from 40 to 40"),
        ({"attention_mask": [[1, 1]]}, "attention_mask is a list"),
        ({"attention_mask": torch.tensor([[1, 2]])}, "besides 0 and 1"),
    ],
)
def test_energies_of_wrong_inputs_are_refused(changes, message):
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), tiny_causal())
    inputs = {"candidate_ids": torch.tensor([[[3, 4]]]), "noisy_ids": torch.tensor([[3, 12]])}
    with pytest.raises(ValueError, match=message):
        model.energy(**inputs | changes)


@pytest.mark.parametrize("way", ["in place", "wrapped"])
def test_a_compiled_denoiser_is_what_generates(way):
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    options = {"max_length": 6, "max_denoising_steps": 2}
    model = EDLMForMaskedDiffusion.from_components(tiny_denoiser())
    expected = model.generate(generator=torch.Generator().manual_seed(0), **options)
    if way == "in place":
        model.denoiser.compile(backend=backend)
    else:
        model.denoiser = torch.compile(model.denoiser, backend=backend)
    assert torch.equal(model.generate(generator=torch.Generator().manual_seed(0), **options), expected)
    assert calls


class Bare(torch.nn.Module):
    """A network that returns its logits in a wrong form."""

    config = SimpleNamespace(vocab_size=13, mask_token_id=12)

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, input_ids, attention_mask=None):
        return self.form(torch.zeros(*input_ids.shape, 13))


@pytest.mark.parametrize("form", [torch.clone, lambda logits: (logits,), lambda logits: {"logits": logits}])
def test_networks_that_return_no_logits_are_refused(form):
    denoiser = EDLMForMaskedDiffusion.from_components(Bare(form), mask_token_id=12)
    energy = EDLMForMaskedDiffusion.from_components(tiny_denoiser(), Bare(form), energy_type="ar")
    for model in (denoiser, energy):
        with pytest.raises(ValueError, match=r"an object with `.logits` \(B, L, V\) is needed"):
            model.generate(max_length=4)
