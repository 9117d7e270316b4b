"""The pipelines of transformers with our models: text-generation and fill-mask."""

import logging
from functools import cache

import pytest
import torch
from published import randomised, tiny_causal, tiny_config
from transformers import BertConfig, BertForMaskedLM, pipeline
from transformers.utils.logging import warning_once

from edlm_hf import EDLMForMaskedDiffusion, MDLMForMaskedLM
from edlm_hf.tokenization import text8_tokenizer

LENGTH = 12


@cache
def tokenizer(start_token=True):
    return text8_tokenizer(LENGTH, start_token=start_token)


def build(kind):
    config = tiny_config(
        vocab_size=len(tokenizer()),
        bos_token_id=tokenizer().bos_token_id,
        model_length=LENGTH,
    )
    denoiser = randomised(MDLMForMaskedLM(config))
    if kind == "mdlm":
        return denoiser
    causal = tiny_causal(
        vocab_size=len(tokenizer()),
        bos_token_id=tokenizer().bos_token_id,
        model_length=LENGTH,
    )
    return EDLMForMaskedDiffusion.from_components(denoiser, causal, energy_type="ar")


@pytest.fixture(params=["mdlm", "edlm"])
def model(request):
    return build(request.param)


@pytest.fixture
def generator(model):
    return pipeline("text-generation", model=model, tokenizer=tokenizer())


LAW = {"temperature": 1.0, "max_denoising_steps": 4}


def test_text_is_continued_by_the_tokens_of_generate(model, generator):
    ids = torch.tensor([tokenizer().encode("abc")])
    expected = model.generate(ids, max_new_tokens=4, generator=torch.Generator().manual_seed(0), **LAW)
    (answer,) = generator("abc", max_new_tokens=4, generator=torch.Generator().manual_seed(0), **LAW)
    assert answer["generated_text"] == tokenizer().decode(expected[0], skip_special_tokens=True)
    assert answer["generated_text"].startswith("abc")


def test_new_text_alone_and_tokens_are_given_on_request(generator):
    likeliest = {"do_sample": False, "sampler": "first_hitting", "max_new_tokens": 4}
    (whole,), (new,) = generator("abc", **likeliest), generator("abc", return_full_text=False, **likeliest)
    assert whole["generated_text"] == "abc" + new["generated_text"]
    (tokens,) = generator("abc", return_tensors=True, **likeliest)
    text = tokenizer().decode(tokens["generated_token_ids"], skip_special_tokens=True)
    assert text == whole["generated_text"] and len(tokens["generated_token_ids"]) == 8


def test_ragged_prompts_in_one_batch_get_what_each_gets_alone(generator):
    likeliest = {
        "do_sample": False,
        "sampler": "first_hitting",
        "max_new_tokens": 4,
        "return_full_text": False,
    }
    prompts = ["abc", "a", "zyxwv"]
    together = generator(prompts, batch_size=3, **likeliest)
    assert together == [generator(prompt, **likeliest) for prompt in prompts]


def test_every_prompt_gets_its_sequences(generator):
    answers = generator(["abc", "a"], batch_size=2, num_return_sequences=3, max_new_tokens=4, **LAW)
    assert [len(rows) for rows in answers] == [3, 3]
    for prompt, rows in zip(["abc", "a"], answers, strict=True):
        assert all(row["generated_text"].startswith(prompt) for row in rows)
    assert len({row["generated_text"] for rows in answers for row in rows}) > 2


def test_empty_prompt_is_text_from_nothing():
    plain = tokenizer(start_token=False)
    model = randomised(MDLMForMaskedLM(tiny_config(vocab_size=len(plain), model_length=LENGTH)))
    for network in (model, EDLMForMaskedDiffusion.from_components(model)):
        generator = pipeline("text-generation", model=network, tokenizer=plain)
        (answer,) = generator("", max_new_tokens=5, **LAW)
        assert len(answer["generated_text"]) == 5
        rows = generator("", max_new_tokens=5, num_return_sequences=2, **LAW)
        assert len(rows) == 2


def test_empty_prompt_with_a_start_token_is_that_token(generator):
    (answer,) = generator("", max_new_tokens=5, return_tensors=True, **LAW)
    assert answer["generated_token_ids"][0] == tokenizer().bos_token_id
    assert len(answer["generated_token_ids"]) == 6


@pytest.mark.parametrize("kind", ["mdlm", "edlm"])
def test_temperature_of_the_pipeline_gives_one_warning(kind, caplog):
    warning_once.cache_clear()
    generator = pipeline("text-generation", model=build(kind), tokenizer=tokenizer())
    caplog.clear()  # of the remark that transformers does not list the class under this task
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            generator(["abc", "a"], batch_size=2, max_new_tokens=4, max_denoising_steps=2)
    about_law = [record for record in caplog.records if "change the proposal" in record.getMessage()]
    assert len(about_law) == 1
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == about_law


def test_temperature_one_gives_no_warning(generator, caplog):
    warning_once.cache_clear()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        generator("abc", max_new_tokens=4, **LAW)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_masks_are_filled_with_the_probabilities_of_the_model(model):
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer())
    ids = torch.tensor([tokenizer().encode("ab[MASK]d")])
    with torch.no_grad():
        logits = model(ids).logits[0, 3]
    logits[tokenizer().mask_token_id] = -torch.inf
    expected = logits.softmax(-1)
    answers = fill("ab[MASK]d", top_k=3)

    assert [answer["token"] for answer in answers] == expected.topk(3).indices.tolist()
    torch.testing.assert_close(
        torch.tensor([answer["score"] for answer in answers]),
        expected.topk(3).values,
    )
    for answer in answers:
        if answer["token"] not in tokenizer().all_special_ids:
            assert answer["sequence"] == f"ab{answer['token_str']}d"


def test_the_mask_is_never_a_candidate_and_the_others_add_up_to_one(model):
    with torch.no_grad():
        # The network wants the mask above all
        model.get_output_embeddings().bias[tokenizer().mask_token_id] += 30
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer())
    scores = {answer["token"]: answer["score"] for answer in fill("ab[MASK]d", top_k=len(tokenizer()))}
    assert scores.pop(tokenizer().mask_token_id, 0) == 0
    assert sum(scores.values()) == pytest.approx(1)


def test_a_tokenizer_with_another_mask_is_refused_by_the_pipeline(model):
    with pytest.raises(ValueError, match="mask token has id 27, but the model masks with id 28"):
        pipeline("fill-mask", model=model, tokenizer=text8_tokenizer(16, start_token=False))


def test_pipelines_of_other_models_are_as_they_were():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    bert = BertForMaskedLM(BertConfig(vocab_size=29, **sizes)).eval()
    fill = pipeline("fill-mask", model=bert, tokenizer=tokenizer())
    answers = fill("ab[MASK]d", top_k=29)
    assert tokenizer().mask_token_id in {answer["token"] for answer in answers if answer["score"] > 0}


def test_targets_are_compared(model):
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer())
    answers = fill("ab[MASK]d", targets=["x", "y", "z"])
    assert {answer["token_str"] for answer in answers} == {"x", "y", "z"}
    assert answers == sorted(answers, key=lambda answer: -answer["score"])
    every = {answer["token_str"]: answer["score"] for answer in fill("ab[MASK]d", top_k=len(tokenizer()))}
    assert all(answer["score"] == pytest.approx(every[answer["token_str"]]) for answer in answers)


def test_several_masks_and_several_texts_are_filled(model):
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer())
    one, two = fill(["ab[MASK]d", "[MASK]b[MASK]"], top_k=2)
    assert len(one) == 2 and [len(candidates) for candidates in two] == [2, 2]
