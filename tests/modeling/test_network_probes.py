"""Denoisers that see padding run without it: rows have the law, the energy and the likelihood that they have alone."""

import copy
import gc
import pickle
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BigBirdConfig,
    BigBirdForMaskedLM,
    ConvBertConfig,
    ConvBertForMaskedLM,
    CpmAntConfig,
    CpmAntForCausalLM,
    CTRLConfig,
    CTRLLMHeadModel,
    FNetConfig,
    FNetForMaskedLM,
    FunnelConfig,
    FunnelForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MobileBertConfig,
    MobileBertForMaskedLM,
    NystromformerConfig,
    NystromformerForMaskedLM,
    ReformerConfig,
    ReformerForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RwkvConfig,
    RwkvForCausalLM,
    YosoConfig,
    YosoForMaskedLM,
)

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.evaluation import nelbo, sampler_bound
from edlm_hf.modeling import network_probes
from edlm_hf.modeling.network_probes import is_causal, sees_later_tokens, sees_padding

VOCABULARY, MASK = 24, 23
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
PARTS = {"d_model": 16, "d_inner": 32, "n_head": 2, "d_head": 8, "block_sizes": [1, 1], "vocab_size": VOCABULARY}
SEQ2SEQ = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "vocab_size": VOCABULARY,
    "pad_token_id": 1,
}
SEQ2SEQ |= {
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}


class Mean(nn.Module):
    """A plain module that ignores the attention mask: every position sees the mean of the whole row."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)
        self.config = SimpleNamespace(
            vocab_size=VOCABULARY,
            mask_token_id=MASK,
            max_position_embeddings=40,
        )

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embed(input_ids)
        return SimpleNamespace(logits=self.head(hidden + hidden.mean(1, keepdim=True)))


class Mask(Mean):
    """The same, with a mean over the text alone."""

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embed(input_ids)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        weight = real.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        return SimpleNamespace(logits=self.head(hidden + mean))


BLIND = {
    "fnet": lambda: FNetForMaskedLM(FNetConfig(**{k: v for k, v in SIZES.items() if k != "num_attention_heads"})),
    "convbert": lambda: ConvBertForMaskedLM(ConvBertConfig(**SIZES, embedding_size=16)),
    "mobilebert": lambda: MobileBertForMaskedLM(
        MobileBertConfig(**SIZES, embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16)
    ),
    "nystromformer": lambda: NystromformerForMaskedLM(NystromformerConfig(**SIZES)),
    "yoso": lambda: YosoForMaskedLM(YosoConfig(**SIZES)),
    "funnel": lambda: FunnelForMaskedLM(FunnelConfig(**PARTS)),
    "reformer": lambda: ReformerForMaskedLM(
        ReformerConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_attention_heads=2,
            attention_head_size=8,
            feed_forward_size=16,
            attn_layers=["local"],
            local_attn_chunk_length=4,
            axial_pos_embds=False,
            max_position_embeddings=40,
            is_decoder=False,
        )
    ),
    # The decoder starts with the last token
    "mbart": lambda: MBartForConditionalGeneration(MBartConfig(**SEQ2SEQ)),
    "plain": Mean,
}
CLEAN = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZES, pad_token_id=1)),
    "bigbird": lambda: BigBirdForMaskedLM(BigBirdConfig(**SIZES, attention_type="original_full")),
    "plain": Mask,
}


def network(build):
    """Random weights of a size that makes every effect large, in float64."""
    torch.manual_seed(0)
    model = build().eval().double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model


def composite(build, energy=False):
    causal = None
    if energy:
        causal = network(lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_head=2, n_layer=1)))
        causal.config.bos_token_id = causal.config.eos_token_id = 0
    return EDLMForMaskedDiffusion.from_components(network(build), causal, mask_token_id=MASK)


def ragged(left, short=5, long=9, filler=0):
    """Two texts in one batch: ids and attention mask, padded on one side."""
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(2, MASK, (n,), generator=generator) for n in (short, long)]
    ids, real = torch.full((2, long), filler), torch.zeros(2, long, dtype=torch.long)
    for i, text in enumerate(texts):
        where = slice(long - len(text), long) if left else slice(0, len(text))
        ids[i, where], real[i, where] = text, 1
    return texts, ids, real


@pytest.mark.parametrize("name", BLIND)
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_a_denoiser_that_sees_padding_generates_for_a_row_what_it_does_alone(name, left):
    model = composite(BLIND[name])
    texts, ids, real = ragged(left)
    options = {"max_new_tokens": 4, "max_denoising_steps": 3, "do_sample": False}
    together = model.generate(ids, attention_mask=real, **options)
    for text, row in zip(texts, together, strict=True):
        assert torch.equal(row[-4:], model.generate(text.unsqueeze(0), **options)[0, -4:])


@pytest.mark.parametrize("name", BLIND)
def test_no_list_of_names_is_needed_to_find_a_denoiser_that_sees_padding(name, monkeypatch):
    monkeypatch.setattr(network_probes, "SEE_PADDING", set())
    model = composite(BLIND[name])
    _, ids, real = ragged(False)
    assert sees_padding(model.denoiser, lambda *inputs: model(*inputs).logits, ids, real)


@pytest.mark.parametrize("build", [*BLIND.values(), *CLEAN.values()], ids=[*BLIND, *CLEAN])
def test_energies_are_the_same_alone_and_padded_on_either_side(build):
    model = composite(build, energy=True)
    for left, filler in ((True, 0), (False, 0), (True, 7), (False, MASK - 1)):
        texts, ids, real = ragged(left, filler=filler)
        masked = (real == 1) & (torch.arange(ids.shape[1]) % 2 == 0)
        candidates = torch.stack([ids, ids.masked_fill(masked, 4)], dim=1)
        energies = model.energy(candidates, ids.masked_fill(masked, MASK), real)
        for i in range(len(texts)):
            row = real[i].bool()
            alone = model.energy(
                candidates[i : i + 1, :, row],
                ids.masked_fill(masked, MASK)[i : i + 1, row],
            )
            torch.testing.assert_close(energies[i : i + 1], alone)


@pytest.mark.parametrize("name", ["fnet", "mobilebert", "plain"])
def test_bounds_do_not_depend_on_the_texts_beside_one(name):
    model = composite(BLIND[name], energy=True)
    texts = [text.tolist() for text in ragged(False)[0]]
    options = {"num_samples": 4, "seed": 1}
    for bound, more in ((nelbo, {}), (sampler_bound, {"num_steps": 4, "num_candidates": 2})):
        together = bound(model, texts, batch_size=8, **options, **more)
        one_by_one = bound(model, texts, batch_size=1, **options, **more)
        assert together.sequence_nats == pytest.approx(one_by_one.sequence_nats, rel=1e-9)


def padded_call(model, width=9):
    """Run the denoiser of a composite on two rows of different lengths."""
    _, ids, real = ragged(False, long=width)
    return model.text_logits(ids, real)


@pytest.mark.parametrize("name", CLEAN)
def test_other_denoisers_run_as_one_batch(name):
    model, sizes = composite(CLEAN[name]), []
    padded_call(model)
    model.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    padded_call(model)
    assert sizes == [2]


def test_a_network_is_tried_once_for_every_doubling_of_the_width():
    model, calls = composite(Mask), []
    model.denoiser.register_forward_hook(lambda *_: calls.append(1))

    counts = []
    for width in (9, 12, 15, 9, 20):
        calls.clear()
        padded_call(model, width)
        counts.append(len(calls))

    assert counts == [5, 1, 1, 1, 5]
    model, calls = composite(Mean), []
    padded_call(model)
    model.denoiser.register_forward_hook(lambda *_: calls.append(1))
    padded_call(model, 20)
    assert len(calls) == 2  # one for each length, and none to try again


def test_what_was_tried_is_neither_saved_nor_copied_and_goes_with_the_network():
    model = composite(Mask)
    before = len(network_probes._clean_widths)
    padded_call(model)
    assert len(network_probes._clean_widths) == before + 1
    assert "clean" not in str(vars(model.denoiser).keys())

    padded_call(copy.deepcopy(model))
    pickle.loads(pickle.dumps(model.denoiser.state_dict()))
    del model
    gc.collect()
    assert len(network_probes._clean_widths) == before


@pytest.mark.parametrize("training", [True, False])
def test_trying_leaves_modes_and_global_random_numbers_as_they_were(training):
    model = composite(lambda: BertForMaskedLM(BertConfig(**SIZES, hidden_dropout_prob=0.5)))
    model.denoiser.train(training)
    model.denoiser.cls.train(not training)
    modes = [module.training for module in model.modules()]
    _, ids, real = ragged(False)

    def random_logits(*inputs):
        torch.rand(3)
        return model(input_ids=inputs[0], attention_mask=inputs[1]).logits

    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    assert not sees_padding(model.denoiser, random_logits, ids, real)  # no dropout either
    assert torch.equal(torch.rand(4), expected)
    assert [module.training for module in model.modules()] == modes


class Stubborn(Mean):
    """Takes texts of nine tokens only."""

    def forward(self, input_ids, attention_mask=None):
        if input_ids.shape[1] != 9:
            raise RuntimeError("shapes do not fit")
        return super().forward(input_ids)


def test_a_network_that_takes_no_shorter_text_is_no_crash():
    model = composite(Stubborn)
    assert padded_call(model).shape == (2, 9, VOCABULARY)


def test_rows_without_any_text_do_not_disturb():
    model = composite(Mean)
    ids, real = torch.full((3, 4), 5), torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    logits = model.text_logits(ids, real)
    torch.testing.assert_close(logits[1, :2], model.text_logits(ids[:1, :2])[0])
    assert (logits[0] == 0).all()
    empty = torch.zeros_like(real)
    assert model.text_logits(ids, empty).shape == (3, 4, VOCABULARY)


def test_bigbird_sees_padding_where_its_attention_is_sparse():
    model = composite(lambda: BigBirdForMaskedLM(BigBirdConfig(**SIZES, attention_type="block_sparse", block_size=4)))
    _, ids, real = ragged(False)
    assert sees_padding(model.denoiser, model.text_logits, ids, real)


def test_a_model_that_cannot_be_tried_counts_as_causal():
    class Odd(GPT2LMHeadModel):
        def forward(self, *args, **kwargs):
            raise TypeError("needs an image")

    assert is_causal(Odd(GPT2Config(vocab_size=10, n_embd=8, n_head=1, n_layer=1)))
    assert not is_causal(network(CLEAN["bert"]))


def new_bert(seed, width, dtype=torch.float32):
    """A BERT as transformers starts it, in which other tokens have a tiny effect."""
    torch.manual_seed(seed)
    sizes = SIZES | {"hidden_size": width, "num_hidden_layers": 1}
    return BertForMaskedLM(BertConfig(**sizes)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [4, 8])
def test_a_later_token_is_seen_however_small_its_effect(width, dtype):
    answers = [sees_later_tokens(new_bert(seed, width, dtype)) for seed in range(25)]
    assert answers == [True] * 25


CAUSAL = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_head=2, n_layer=2)),
    # writes into its inputs
    "ctrl": lambda: CTRLLMHeadModel(CTRLConfig(vocab_size=VOCABULARY, n_embd=16, dff=16, n_head=2, n_layer=2)),
    # passes no gradient backwards
    "rwkv": lambda: RwkvForCausalLM(RwkvConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2)),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_model_sees_no_later_token(name):
    model = network(CAUSAL[name]).float()
    assert sees_later_tokens(model) is False
    assert is_causal(model)


def test_a_causal_model_whose_configuration_says_otherwise_is_no_denoiser():
    model = network(CAUSAL["rwkv"]).float()
    model.config.is_causal = False
    with pytest.raises(ValueError, match="causal language model"):
        EDLMForMaskedDiffusion.from_components(model, mask_token_id=MASK)


def test_a_model_that_takes_its_first_id_for_padding_is_tried_with_others():
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "dim_head": 8,
        "dim_ff": 16,
    }
    model = CpmAntForCausalLM(CpmAntConfig(**sizes, num_hidden_layers=2))
    assert sees_later_tokens(model)
    with pytest.raises(ValueError, match="depends on later ones"):
        EDLMForMaskedDiffusion.from_components(network(CLEAN["bert"]), model, mask_token_id=MASK)


def test_logits_that_depend_on_no_token_decide_nothing():
    model = network(CLEAN["bert"])
    torch.nn.init.zeros_(model.cls.predictions.decoder.weight)
    assert sees_later_tokens(model) is None


def test_adapters_and_networks_with_timesteps_are_tried_too():
    adapted = get_peft_model(network(CLEAN["bert"]), LoraConfig(target_modules=["query"]))
    assert sees_later_tokens(adapted)

    class Timed(BertForMaskedLM):
        def forward(self, timesteps, **inputs):
            return super().forward(**inputs)

    assert sees_later_tokens(network(lambda: Timed(BertConfig(**SIZES))))


def test_a_probe_leaves_no_gradients_and_works_without_them():
    model = network(CLEAN["bert"])
    with torch.no_grad():
        assert sees_later_tokens(model)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.requires_grad_(False)
    assert sees_later_tokens(model)


def test_another_default_device_is_no_hindrance():
    model = network(CLEAN["bert"])
    with torch.device("meta"):
        slopes = network_probes.slopes_of_first_logits(model, torch.device("cpu"))
    assert slopes == network_probes.slopes_of_first_logits(model, torch.device("cpu"))
