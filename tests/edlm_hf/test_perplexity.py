"""Generative perplexity equals a direct computation, and what no judge can score is refused."""

import math
import random
from types import SimpleNamespace

import pytest
import torch
from judged_texts import END, as_text, judged, numbers_tokenizer
from published import golden, tiny_gpt2
from transformers import AutoModelForMaskedLM, GPT2LMHeadModel

import edlm_hf
from edlm_hf.evaluation.estimate import ratio_estimate
from edlm_hf.evaluation.perplexity import (
    generative_perplexity,
    judge_weight_mask,
    next_token_nlls,
    windows,
)


def random_rows(count=9, longest=12):
    """Rows of random tokens, and some in which the end of text stands everywhere."""
    generator = random.Random(0)
    rows = []
    for _ in range(count):
        length = generator.randrange(2, longest + 1)
        rows.append(generator.choices(range(12), k=length))
    return [*rows, [1, END, 2, END, 3], [END, 4, END], [END, END]]


def direct_nlls(judge, row, scored=1):
    """-log p of the tokens that count among row[scored:], one row alone without padding."""
    logits = judge(torch.tensor([row])).logits[0].double()
    log_probs = logits.log_softmax(-1)  # (L, V)

    # of the end tokens only the first one counts
    first_end = row.index(END) if END in row else None
    counted = [i for i in range(scored, len(row)) if row[i] != END or i == first_end]
    return [-log_probs[i - 1, row[i]].item() for i in counted]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_every_text_counts_whatever_the_batch_size(batch_size):
    rows = random_rows()
    judge = tiny_gpt2()
    direct = [direct_nlls(judge, row) for row in rows]
    num_tokens = sum(map(len, direct))
    nll = sum(map(sum, direct)) / num_tokens

    result = judged(rows, batch_size=batch_size)
    assert result.num_samples == len(rows)
    assert result.num_tokens == num_tokens
    assert result.unit == "perplexity"
    assert result.nll.value == pytest.approx(nll, abs=1e-6)
    assert result.value == pytest.approx(math.exp(nll), rel=1e-6)

    for perplexity, nlls in zip(result.sample_perplexities, direct, strict=True):
        expected = math.exp(sum(nlls) / len(nlls)) if nlls else math.nan
        assert perplexity == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_standard_errors_are_those_of_a_ratio_over_texts():
    rows = random_rows()
    judge = tiny_gpt2()
    result = judged(rows)
    direct = [direct_nlls(judge, row) for row in rows]
    expected = ratio_estimate(
        [sum(nlls) for nlls in direct],
        [len(nlls) for nlls in direct],
        "nats/token",
    )
    assert result.nll.standard_error == pytest.approx(expected.standard_error, rel=1e-5)
    assert result.standard_error == pytest.approx(result.value * expected.standard_error, rel=1e-5)


def test_text_after_the_first_end_counts_but_not_a_second_end():
    ids = torch.tensor([[1, 2, END, 3, END, 4], [END, 1, 2, 3, END, END]])
    weights = judge_weight_mask(ids, END)
    assert weights.tolist() == [[1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 0, 0]]
    assert judge_weight_mask(ids, None).all()


def test_padding_does_not_count_even_if_it_is_the_end_of_text():
    ids = torch.tensor([[END, END, 1, END, 2], [1, 2, 3, END, END]])
    real = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert judge_weight_mask(ids, END, real).tolist() == real.tolist()


class RecordedJudge(GPT2LMHeadModel):
    """Gives the recorded logits of the recorded rows."""

    def forward(self, input_ids, **_):
        same = (self.tokens[:, None] == input_ids).all(-1)  # (recorded rows, B)
        row = same.int().argmax(0)
        return SimpleNamespace(logits=self.recorded[row])


@pytest.fixture
def recorded():
    g = golden("g_metrics")
    gpt2 = tiny_gpt2(vocab_size=g["logits"].shape[-1], n_positions=g["tokens"].shape[1])
    judge = RecordedJudge(gpt2.config)
    judge.tokens = g["tokens"]
    judge.recorded = g["logits"]
    return g, judge


def test_golden_weights_and_likelihoods(recorded):
    g, judge = recorded
    rows = g["tokens"][: g["rows_scored"]]
    weights = judge_weight_mask(rows, 7)
    assert torch.equal(weights[:, 1:].long(), g["weight_mask"])

    nlls = next_token_nlls(judge, rows.tolist(), [1] * len(rows))
    torch.testing.assert_close(torch.stack(nlls).float(), g["nlls"], atol=1e-5, rtol=0)


def test_golden_perplexity(recorded):
    g, judge = recorded
    batch_size = int(g["batch_size"])
    tokenizer = numbers_tokenizer(g["logits"].shape[-1], end=7)
    texts = [as_text(row) for row in g["tokens"].tolist()]

    # the last row is all end-of-text: nothing to count
    for rows in (g["rows_scored"], len(texts)):
        result = generative_perplexity(texts[:rows], judge, tokenizer, batch_size=batch_size)
        assert result.value == pytest.approx(g["ppl_released"].item(), rel=1e-5)
        assert result.num_tokens == g["weight_mask"].sum()


def test_the_start_token_makes_first_tokens_count():
    rows = [[3], [END], [END, 5, END]]
    judge = tiny_gpt2()
    result = judged(rows, judge, add_start_token=True)

    expected = []
    for row in rows:
        (nlls,) = next_token_nlls(judge, [[END, *row]], [1])
        expected += nlls[:2].tolist()  # of the last row the second end does not count

    assert len(expected) == 4
    assert result.num_tokens == 4
    assert result.nll.value == pytest.approx(sum(expected) / 4, abs=1e-6)


@pytest.mark.parametrize("context,stride", [(12, 5), (12, 11), (4, 1), (2, 1)])
def test_windows_count_every_token_once_with_context(context, stride):
    for length in (2, context, context + 1, 40):
        counted = []
        for number, (first, scored, stop) in enumerate(windows(length, context, stride)):
            counted += range(scored, stop)
            assert stop - first <= context
            assert scored - first >= context - stride or number == 0

        assert counted == list(range(1, length))


def test_longer_texts_are_scored_in_windows():
    rows = random_rows(longest=30)
    judge = tiny_gpt2()
    direct = []
    for row in rows:
        (weights,) = judge_weight_mask(torch.tensor([row]), END)
        for first, scored, stop in windows(len(row), 12, 5):
            (nlls,) = next_token_nlls(judge, [row[first:stop]], [scored - first])
            direct += nlls[weights[scored:stop]].tolist()

    result = judged(rows, judge, stride=5, batch_size=4)
    assert result.num_tokens == len(direct)
    assert result.nll.value == pytest.approx(sum(direct) / len(direct), abs=1e-6)


def test_a_shorter_context_can_be_asked_for():
    rows = random_rows()
    whole = judged(rows)

    # other numbers, but of as many tokens
    short = judged(rows, max_length=4, stride=3)
    assert short.num_tokens == whole.num_tokens

    # no row is longer than the context of the judge
    as_long = judged(rows, max_length=12, stride=11)
    assert as_long.value == pytest.approx(whole.value, rel=1e-6)


def test_the_judge_is_used_without_dropout_and_left_in_its_mode():
    judge = tiny_gpt2().train()
    judge.transformer.h[0].eval()
    modes = [module.training for module in judge.modules()]

    in_train_mode = judged(random_rows(), judge)
    in_eval_mode = judged(random_rows())
    assert in_train_mode.value == in_eval_mode.value
    assert [module.training for module in judge.modules()] == modes
    assert all(parameter.grad is None for parameter in judge.parameters())


def test_log_probabilities_of_a_bfloat16_judge_are_taken_in_float32():
    judge = tiny_gpt2().bfloat16()
    rows = random_rows()
    direct = []
    for row in rows:
        direct += direct_nlls(judge, row)

    result = judged(rows, judge, batch_size=1)
    assert result.nll.value == pytest.approx(sum(direct) / len(direct), abs=1e-5)


def test_progress_is_shown_on_standard_error_and_only_if_asked_for(capsys):
    judged(random_rows())
    assert capsys.readouterr() == ("", "")

    judged(random_rows(), progress_bar=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "generative perplexity" in err


def test_judge_and_tokenizer_are_found_by_name(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path)
    numbers_tokenizer().save_pretrained(tmp_path)
    texts = [as_text(row) for row in random_rows()]
    expected = pytest.approx(judged(random_rows()).value, rel=1e-6)

    by_name = generative_perplexity(texts, str(tmp_path), device="cpu")
    assert by_name.value == expected

    loaded = GPT2LMHeadModel.from_pretrained(tmp_path)
    by_judge = generative_perplexity(texts, loaded)
    assert by_judge.value == expected

    by_tokenizer = generative_perplexity(texts, tiny_gpt2(), str(tmp_path))
    assert by_tokenizer.value == expected


@pytest.mark.parametrize(
    "rows,options,message",
    [
        ([], {}, "texts is empty"),
        ([[1, 2], [3]], {}, "Text 1 has 1 tokens, but at least 2 .* add_start_token=True"),
        ([[1, 2], []], {"add_start_token": True}, "Text 1 has 0 tokens, but at least 1 "),
        (
            [[1] * 13],
            {},
            "Text 0 has 13 tokens, but the context of the judge is 12.* stride, for example 6",
        ),
        ([[1, 2]], {"stride": 12}, "stride is 12, but it must be from 1 to 11"),
        ([[1, 2]], {"stride": 0}, "stride is 0"),
        (
            [[1, 2]],
            {"max_length": 13},
            "max_length is 13, but it must be from 2 to the context of the judge, 12",
        ),
        ([[1, 2]], {"batch_size": 0}, "batch_size is 0"),
        ([[END, END]], {}, "1 samples with 0 in all to divide by"),
    ],
)
def test_what_cannot_be_scored_is_refused(rows, options, message):
    with pytest.raises(ValueError, match=message):
        judged(rows, **options)


def test_a_judge_that_does_not_fit_is_refused():
    judge = tiny_gpt2()
    tokenizer = numbers_tokenizer()
    with pytest.raises(ValueError, match=r"texts is a single one \('w1 w2'\)"):
        generative_perplexity("w1 w2", judge, tokenizer)
    with pytest.raises(ValueError, match="no name under which to find its tokenizer"):
        generative_perplexity(["w1 w2"], judge)
    with pytest.raises(ValueError, match="token 15, but the judge knows ids below 12"):
        generative_perplexity(["w1 w15"], judge, numbers_tokenizer(size=20))

    tokenizer.bos_token = None
    with pytest.raises(ValueError, match="no start token"):
        generative_perplexity(["w1 w2"], judge, tokenizer, add_start_token=True)


@pytest.mark.parametrize("logit", [math.nan, -math.inf, torch.finfo(torch.float32).min])
def test_tokens_that_are_impossible_for_the_judge_are_refused(recorded, logit):
    _, judge = recorded
    judge.recorded = judge.recorded.clone()
    judge.recorded[1, :, 14] = logit
    texts = [as_text(row) for row in judge.tokens.tolist()]
    tokenizer = numbers_tokenizer(20, end=7)

    message = r"token of text 1 \('w7 w10 w14 .* probability zero or NaN"
    with pytest.raises(ValueError, match=message):
        generative_perplexity(texts, judge, tokenizer, batch_size=2)


def test_a_judge_that_sees_later_tokens_is_refused():
    checkpoint = edlm_hf.checkpoint("edlm-grammar")
    model = AutoModelForMaskedLM.from_pretrained(checkpoint)
    texts = ["the king reads his book"]
    for judge in (model, model.denoiser):
        with pytest.raises(ValueError, match="predicts a token from later ones too"):
            generative_perplexity(texts, judge, checkpoint)

    result = generative_perplexity(texts, model.energy_model, checkpoint)
    assert result.num_tokens > 0
