"""Texts for an evaluation harness are those of `generate()`, and end where a request says."""

import torch
from exact import MASK
from scorers import letters, tiny_scorer, varied_scorer


def test_text_is_that_of_generate():
    scorer = tiny_scorer()
    options = {
        "until": [],
        "max_gen_toks": 5,
        "do_sample": False,
        "temperature": 0,
    }
    (text,) = scorer.generate_until([("abc", options)])

    ids = torch.tensor([scorer.tokenizer.encode("abc")])
    rows = scorer.model.generate(
        ids,
        max_new_tokens=5,
        do_sample=False,
        max_denoising_steps=4,
    )
    new = rows[0, 4:]  # behind the start token and three letters
    assert text == scorer.tokenizer.decode(new, skip_special_tokens=True)


def test_greedy_text_depends_neither_on_order_nor_on_batches():
    requests = []
    for prompt in ("a", "hello", "zyx"):
        requests += [(prompt, {"max_gen_toks": new}) for new in (3, 5, 20)]

    texts = varied_scorer().generate_until(requests)
    assert [len(text) for text in texts] == [3, 5, 20] * 3
    assert len(set(texts)) > 6
    assert varied_scorer(batch_size=1).generate_until(requests[::-1]) == texts[::-1]


def test_samples_depend_on_the_seed_and_not_on_the_order_and_equal_requests_differ():
    requests = [("abc", {"do_sample": True})] * 9 + [("z", {"temperature": 2.0})]
    options = {"max_gen_toks": 8}
    texts = varied_scorer(**options).generate_until(requests)
    assert len(set(texts[:9])) > 3

    again = varied_scorer(**options).generate_until(requests[::-1])
    assert again[0] == texts[9]
    assert sorted(again) == sorted(texts)
    assert varied_scorer(**options, seed=1).generate_until(requests) != texts


def test_text_ends_before_the_first_of_its_stop_strings():
    scorer = varied_scorer(max_gen_toks=12)
    (whole,) = scorer.generate_until([("abc", {})])
    stop = whole[3:5]
    later = whole[8:]
    assert 0 < whole.find(stop) < whole.find(later)

    before_stop = whole[: whole.find(stop)]
    for until in (stop, [stop], [later, stop, "", "0"]):
        assert scorer.generate_until([("abc", {"until": until})]) == [before_stop]
    assert scorer.generate_until([("abc", {"until": "0"})]) == [whole]


def test_text_ends_at_the_end_token():
    scorer = tiny_scorer(tokenizer=letters(eos_token="."), max_gen_toks=6)
    end = scorer.tokenizer.eos_token_id
    assert scorer.text(torch.tensor([0, 1, end, 2]), ()) == ("ab", True)
    assert scorer.text(torch.tensor([0, 1, MASK, MASK]), ()) == ("ab", False)
    assert scorer.text(torch.tensor([0, 1, 2]), ()) == ("abc", False)
    assert scorer.text(torch.tensor([0, 1, 2]), ("c", "bc")) == ("a", True)

    texts = scorer.generate_until([("a", {"do_sample": True}) for _ in range(50)])
    lengths = {len(text) for text in texts}
    assert all("." not in text for text in texts)
    assert len(lengths) > 1


def test_text_longer_than_the_model_is_made_in_blocks_with_as_much_context_as_fits():
    long_prompt = "abcdefghijklmnopqrst"
    new = {"max_gen_toks": 30}

    scorer = varied_scorer()
    texts = scorer.generate_until([(long_prompt, new), ("ab", new)])
    assert texts[0] == blocks(scorer, "opqrst", new=30, block_length=6)
    assert texts[1] == blocks(scorer, "ab", new=30, block_length=6)

    (text,) = varied_scorer(block_length=4).generate_until([(long_prompt, new)])
    assert text == blocks(scorer, "mnopqrst", new=30, block_length=4)

    # Five tokens fit behind seven letters
    (text,) = scorer.generate_until([("abcdefghij", {"max_gen_toks": 5})])
    assert text == blocks(scorer, "defghij", new=5, block_length=None)

    (text,) = varied_scorer(block_length=2).generate_until([("ab", {"max_gen_toks": 6})])
    assert text == blocks(scorer, "ab", new=6, block_length=2)


def blocks(scorer, prompt, new, block_length):
    """The text that `generate()` makes in blocks behind a prompt."""
    ids = torch.tensor([scorer.tokenizer.encode(prompt)])
    rows = scorer.model.generate(
        ids,
        max_new_tokens=new,
        block_length=block_length,
        do_sample=False,
        max_denoising_steps=4,
    )
    return scorer.tokenizer.decode(rows[0, ids.shape[1] :])


def test_no_block_is_made_after_all_texts_have_stopped():
    scorer = varied_scorer()
    calls = []
    scorer.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    first, second = scorer.generate_until(
        [
            ("ab", {"max_gen_toks": 30}),
            ("xyz", {"max_gen_toks": 30}),
        ]
    )
    calls_of_five_blocks = len(calls)
    calls.clear()

    # the first text ends in the first block, the second one in the second
    late = second[6:12]
    texts = scorer.generate_until(
        [
            ("ab", {"max_gen_toks": 30, "until": first[0]}),
            ("xyz", {"max_gen_toks": 30, "until": late}),
        ]
    )
    assert texts == ["", second[: second.find(late)]]
    assert len(calls) == calls_of_five_blocks * 2 / 5
