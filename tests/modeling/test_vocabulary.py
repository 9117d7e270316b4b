"""Ids that the tokenizer lacks are never drawn, and no probability counts them."""

import pytest
import torch
from published import randomised, seed, tiny_causal, tiny_config, tiny_denoiser
from tokenizers import Tokenizer, models
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from edlm_hf import EDLMConfig, EDLMForMaskedDiffusion, MDLMConfig
from edlm_hf.evaluation import autoregressive_nll, nelbo
from edlm_hf.loading import load_with_tokenizer
from edlm_hf.modeling.vocabulary import absent_ids, fit_to_tokenizer
from edlm_hf.tokenization import add_mask_token, vocabulary_rows

MASK = 12
ABSENT = {3, 4, 9}
build = EDLMForMaskedDiffusion.from_components


def tokenizer(ids, mask: int | None = MASK) -> PreTrainedTokenizerFast:
    """One token per id. The mask is that of `mask`."""
    words = {f"w{i}": i for i in ids} | ({} if mask is None else {"[MASK]": mask})
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **({} if mask is None else {"mask_token": "[MASK]"}),
    )


def with_holes() -> PreTrainedTokenizerFast:
    return tokenizer([i for i in range(12) if i not in ABSENT])


def eager_denoiser():
    """A network that wants the absent ids above all others."""
    model = tiny_denoiser()
    with torch.no_grad():
        model.get_output_embeddings().bias[list(ABSENT)] += 20
    return model


def test_the_absent_ids_are_ranges_below_the_rows_of_the_model():
    assert absent_ids(with_holes(), 13) == [[3, 4], [9, 9]]
    # Rows are filled up to a multiple
    assert absent_ids(with_holes(), 64) == [[3, 4], [9, 9], [13, 63]]
    assert absent_ids(tokenizer(range(12)), 13) is None
    assert absent_ids(tokenizer(range(40), mask=40), 13) is None  # more tokens than rows


@pytest.mark.parametrize(
    "options",
    [
        {"max_denoising_steps": 3},
        {"sampler": "first_hitting"},
        {"do_sample": False, "max_denoising_steps": 3},
        {"temperature": 0.1, "max_denoising_steps": 3},
        {"logits_processor": [lambda ids, scores: torch.zeros_like(scores)], "max_denoising_steps": 3},
        {"num_candidates": 3, "max_denoising_steps": 3},
    ],
    ids=["ancestral", "first hitting", "greedy", "cold", "processor", "energy"],
)
@pytest.mark.parametrize("kind", ["none", "nce", "ar"])
def test_no_way_of_generating_draws_an_absent_id(options, kind):
    energy = tiny_causal(bos_token_id=10) if kind == "ar" else None
    model = build(eager_denoiser(), energy, energy_type=kind, tokenizer=with_holes())
    drawn = model.generate(batch_size=30, generator=seed(), **options)
    assert not ABSENT & set(drawn.flatten().tolist()) and (drawn != MASK).all()
    free = build(eager_denoiser(), energy, energy_type=kind).generate(
        batch_size=30,
        generator=seed(),
        **options,
    )
    assert ABSENT & set(free.flatten().tolist())


def test_what_is_drawn_has_the_law_without_the_absent_ids():
    model = build(tiny_denoiser(), tokenizer=with_holes())
    with torch.no_grad():
        logits = model(torch.tensor([[MASK]])).logits[0, 0].double()
    logits[[MASK, *ABSENT]] = -torch.inf
    law, n = logits.softmax(-1), 20_000
    drawn = model.generate(batch_size=n, max_length=1, max_denoising_steps=1, generator=seed())
    share = torch.bincount(drawn.flatten(), minlength=13) / n

    # 5 standard errors of every share: a chance of 1e-5 to fail
    assert ((share - law).abs() <= 5 * (law * (1 - law) / n).sqrt() + 1e-9).all()

    nats = nelbo(model, [[5]], num_samples=2).value
    assert nats == pytest.approx(-float(law[5].log()), rel=1e-5)


def test_autoregressive_energies_and_likelihoods_are_normalised_without_them():
    causal = tiny_causal(bos_token_id=10)
    model = build(tiny_denoiser(), causal, energy_type="coar", tokenizer=with_holes())
    candidates, noisy = torch.tensor([[[1, 2], [5, 6]]]), torch.full((1, 2), MASK)
    real = [i for i in range(12) if i not in ABSENT]

    with torch.no_grad():
        found = model.energy(candidates, noisy)
        theirs = model(noisy).logits[0][:, real].log_softmax(-1)
        text = torch.tensor([[10, 1, 2], [10, 5, 6]])
        ours = causal(text[:, :-1]).logits[..., real].log_softmax(-1)

    places = torch.tensor([[real.index(i) for i in row] for row in candidates[0].tolist()])
    log_p = theirs[[0, 1]].expand(2, -1, -1).gather(-1, places[..., None]).squeeze(-1).sum(-1)
    log_ar = ours.gather(-1, places[..., None]).squeeze(-1).sum(-1)
    torch.testing.assert_close(found[0], log_p - log_ar, rtol=1e-4, atol=1e-4)

    fit_to_tokenizer(causal, with_holes())
    with torch.no_grad():
        logits = causal(text[:1, :-1]).logits[0][:, real].log_softmax(-1)
    nats = -float(logits[0, real.index(1)] + logits[1, real.index(2)]) / 2
    assert autoregressive_nll(causal, [[10, 1, 2]]).value == pytest.approx(nats, rel=1e-4)


@pytest.mark.parametrize("kind", ["denoiser", "composite", "BERT"])
def test_what_was_absent_is_absent_after_saving_and_loading(tmp_path, kind):
    if kind == "denoiser":
        model = eager_denoiser()
        fit_to_tokenizer(model, with_holes())
    elif kind == "composite":
        model = build(eager_denoiser(), energy_type="nce", tokenizer=with_holes())
    else:
        sizes = {
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 8,
        }
        bert = BertForMaskedLM(BertConfig(vocab_size=16, max_position_embeddings=12, **sizes))
        model = build(randomised(bert), tokenizer=with_holes())

    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert loaded.config.absent_token_ids == model.config.absent_token_ids is not None

    drawn = loaded.generate(batch_size=40, max_length=8, max_denoising_steps=2, generator=seed())
    assert not (ABSENT | {13, 14, 15}) & set(drawn.flatten().tolist())


@pytest.mark.parametrize("kind", ["denoiser", "composite"])
def test_a_checkpoint_that_does_not_say_what_is_absent_is_asked_its_tokenizer(tmp_path, kind):
    """As every checkpoint of 0.1.0, and those of others."""
    model = eager_denoiser() if kind == "denoiser" else build(eager_denoiser(), energy_type="nce")
    model.save_pretrained(tmp_path)
    with_holes().save_pretrained(tmp_path)
    loaded, _ = load_with_tokenizer(str(tmp_path))
    assert loaded.config.absent_token_ids == [[3, 4], [9, 9]]
    drawn = loaded.generate(batch_size=40, max_length=8, max_denoising_steps=2, generator=seed())
    assert not ABSENT & set(drawn.flatten().tolist())


@pytest.mark.parametrize("ranges", [[[3]], [[4, 3]], [[-1, 2]], [[12, 13]]])
def test_ranges_outside_the_vocabulary_are_refused(ranges):
    with pytest.raises(ValueError, match="absent_token_ids has .*ranges .first, last. of ids 0 to 12"):
        tiny_config(absent_token_ids=ranges)


def test_a_configuration_without_them_is_as_before():
    assert MDLMConfig().absent_token_ids is None and EDLMConfig().absent_token_ids is None


def test_a_mask_token_that_is_added_gets_an_id_of_its_own():
    """The next id, `len(tokenizer)`, belongs to a word where the ids have holes."""
    ids = [0, 1, 2, 4, 5]
    taken = tokenizer(ids, mask=None)
    assert len(taken) == 5 and "w5" in taken.get_vocab()
    added = add_mask_token(taken)
    assert added.mask_token_id == 6
    assert added.convert_ids_to_tokens(5) == "w5"
    assert vocabulary_rows(added) == 7
