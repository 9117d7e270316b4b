"""What generate() returns and shows besides the tokens: counts, energies, log-probabilities, seeds, streams."""

from types import SimpleNamespace

import pytest
import torch
from published import seed, tiny_denoiser, with_ar

from edlm_hf import EDLMForMaskedDiffusion

MASK, PAD = 12, 11
build = EDLMForMaskedDiffusion.from_components


# Written down with version 0.1.0: a seed keeps its tokens.
PROMPT = {"input_ids": torch.tensor([[3, MASK, 4], [5, 6, MASK]]), "max_new_tokens": 5}
BLOCKS = {"input_ids": torch.tensor([[3, 4], [5, MASK]]), "max_new_tokens": 8, "block_length": 3}
RECORDED = [
    ("denoiser", PROMPT | {"max_denoising_steps": 6}, [[3, 6, 4, 0, 4, 5, 6, 6], [5, 6, 9, 11, 11, 3, 1, 1]]),
    (
        "denoiser",
        PROMPT | {"sampler": "first_hitting", "energy_window": 0.5},
        [[3, 1, 4, 0, 11, 5, 9, 11], [5, 6, 6, 4, 6, 2, 1, 5]],
    ),
    (
        "denoiser",
        BLOCKS | {"max_denoising_steps": 4, "num_candidates": 3},
        [[3, 4, 11, 7, 7, 11, 11, 6, 11, 1], [5, 10, 7, 11, 0, 11, 6, 6, 8, 5]],
    ),
    (
        "denoiser",
        BLOCKS | {"sampler": "first_hitting"},
        [[3, 4, 11, 7, 7, 11, 6, 6, 11, 8], [5, 10, 7, 11, 0, 11, 6, 11, 6, 1]],
    ),
    ("ar", PROMPT | {"max_denoising_steps": 6}, [[3, 9, 4, 0, 8, 7, 6, 7], [5, 6, 0, 4, 0, 9, 11, 4]]),
    (
        "ar",
        PROMPT | {"sampler": "first_hitting", "energy_window": 0.5},
        [[3, 7, 4, 6, 3, 7, 7, 11], [5, 6, 5, 1, 8, 0, 0, 6]],
    ),
    (
        "ar",
        BLOCKS | {"max_denoising_steps": 4, "num_candidates": 3},
        [[3, 4, 1, 8, 7, 6, 11, 8, 8, 11], [5, 10, 4, 6, 5, 1, 11, 4, 2, 7]],
    ),
    ("ar", BLOCKS | {"sampler": "first_hitting"}, [[3, 4, 9, 5, 0, 0, 4, 5, 4, 10], [5, 6, 2, 7, 6, 5, 10, 4, 1, 6]]),
    (
        "coar",
        BLOCKS | {"max_denoising_steps": 4, "num_candidates": 3},
        [[3, 4, 1, 8, 7, 6, 11, 8, 8, 11], [5, 10, 4, 6, 5, 1, 11, 4, 2, 7]],
    ),
    ("coar", BLOCKS | {"sampler": "first_hitting"}, [[3, 4, 9, 5, 0, 0, 4, 5, 1, 10], [5, 6, 2, 7, 6, 1, 10, 5, 6, 6]]),
]


@pytest.mark.parametrize(("kind", "options", "tokens"), RECORDED)
def test_seed_gives_the_tokens_that_it_gave_before(kind, options, tokens):
    model = tiny_denoiser() if kind == "denoiser" else with_ar(energy_type=kind)
    assert model.generate(**options, generator=seed(5)).tolist() == tokens


@pytest.mark.parametrize("sampler", ["ancestral", "first_hitting"])
def test_same_seed_same_tokens_and_another_seed_others(sampler):
    model = with_ar()
    one, two, other = (
        model.generate(batch_size=4, sampler=sampler, max_denoising_steps=6, generator=seed(n)) for n in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_global_seed_is_used_without_a_generator():
    model = tiny_denoiser()
    torch.manual_seed(3)
    one = model.generate(batch_size=4)
    torch.manual_seed(3)
    assert torch.equal(one, model.generate(batch_size=4))


def test_output_counts_what_happened():
    model = with_ar()
    out = model.generate(
        torch.tensor([[3, MASK, MASK, MASK], [1, 2, 3, 4]]),
        max_denoising_steps=5,
        num_candidates=2,
        energy_window=0.5,
        generator=seed(),
        return_dict_in_generate=True,
        output_history=True,
    )
    assert len(out.history) == 6 and torch.equal(out.history[-1], out.sequences)

    revealing = [(a != b).any(-1) for a, b in zip(out.history[:-1], out.history[1:], strict=True)]
    assert torch.equal(torch.stack(revealing).sum(0), out.num_denoiser_calls)
    assert out.num_denoiser_calls[1] == 0
    # Nothing to do in the second row
    assert out.num_energy_calls[1] == 0

    in_window = torch.stack(revealing[:3]).sum(0)  # t = 1, .8, .6 lie in [.5, 1]
    assert torch.equal(in_window, out.num_energy_calls)
    assert out.tokens_per_forward[0] == 3 / out.num_denoiser_calls[0]

    plain = tiny_denoiser().generate(batch_size=1, return_dict_in_generate=True, generator=seed())
    assert plain.energies is None and plain.effective_sample_size is None and plain.history is None
    assert plain.chosen is None


def test_output_says_which_candidate_was_taken():
    seen = []

    def one_finite(candidates, noisy, log_p, attention_mask):
        """Only candidate (number of the call) mod 3 is possible."""
        energies = torch.full(candidates.shape[:2], torch.inf)
        energies[:, len(seen) % 3] = 0.0
        seen.append(candidates)
        return energies

    out = tiny_denoiser().generate(
        torch.tensor([[3, MASK, MASK, MASK, MASK], [1, 2, 3, 4, 5]]),
        max_denoising_steps=6,
        num_candidates=3,
        energy=one_finite,
        energy_window=0.6,
        generator=seed(2),
        return_dict_in_generate=True,
        output_history=True,
    )
    weighed = ~out.effective_sample_size.isnan()
    assert out.chosen.shape == (6, 2)
    assert torch.equal(out.chosen >= 0, weighed)
    assert (out.chosen[:, 1] == -1).all()

    steps = weighed[:, 0].nonzero()[:, 0].tolist()
    assert len(seen) == len(steps) > 1
    # t = 2/6 and 1/6 lie outside the window
    assert (out.chosen[4:] == -1).all()
    for call, step in enumerate(steps):
        assert out.chosen[step, 0] == call % 3
        before, after = out.history[step][0], out.history[step + 1][0]
        revealed = before != after
        assert torch.equal(after[revealed], seen[call][0, call % 3][revealed])


def test_streamer_gets_prompt_drafts_and_text():
    got = []
    streamer = SimpleNamespace(
        put=lambda x: got.append(("put", x.tolist())),
        put_draft=lambda x: got.append(("draft", x.tolist())),
        end=lambda: got.append(("end", None)),
    )
    tokens = tiny_denoiser().generate(
        torch.tensor([[3, 4]]), max_new_tokens=4, streamer=streamer, max_denoising_steps=3, generator=seed()
    )
    assert got[0] == ("put", [3, 4]) and got[-1] == ("end", None)
    assert got[-2] == ("put", tokens[0, 2:].tolist())

    drafts = [x for kind, x in got if kind == "draft"]
    assert len(drafts) == 3
    assert drafts[-1] == tokens[0, 2:].tolist()
    assert MASK in drafts[0] + drafts[1]


def test_progress_bar_is_shown_when_asked(capsys):
    tiny_denoiser().generate(max_denoising_steps=3, progress_bar=True)
    assert "denoising" in capsys.readouterr().err
    tiny_denoiser().generate(max_denoising_steps=3)
    assert "denoising" not in capsys.readouterr().err


@pytest.mark.parametrize("side", ["left", "right"])
def test_log_probabilities_are_those_of_generated_tokens_alone_beside_padding(side):
    model = build(tiny_denoiser())
    ids = torch.tensor([[PAD, PAD, 3, 4], [3, 4, 5, 6]])
    ids = ids if side == "left" else ids.flip(1)
    options = {
        "max_new_tokens": 3,
        "eos_token_id": None,
        "pad_token_id": PAD,
        "return_dict_in_generate": True,
    }
    mask = (ids != PAD).long()
    out = model.generate(ids, attention_mask=mask, generator=seed(), output_log_probs=True, **options)
    assert out.log_probs[:, :4].isnan().all() and (out.log_probs[:, 4:] < 0).all()


@pytest.mark.parametrize("sampler", ["ancestral", "spaced", "low_confidence"])
def test_guidance_is_two_calls_of_the_denoiser(sampler):
    model, seen = build(tiny_denoiser()), []
    model.denoiser.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
    )
    options = {"max_new_tokens": 6, "max_denoising_steps": 3, "num_candidates": 1, "sampler": sampler}
    out = model.generate(
        torch.tensor([[3, 4]]),
        guidance_scale=2.0,
        return_dict_in_generate=True,
        **options,
    )
    assert out.num_denoiser_calls.tolist() == [sum(seen)]
    assert out.tokens_per_forward.tolist() == [6 / sum(seen)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(dtype):
    model = with_ar()
    options = {"max_length": 6, "return_dict_in_generate": True, "output_log_probs": True}

    def outputs():
        return [model.generate(sampler=name, generator=seed(), **options) for name in ("ancestral", "klass")]

    before = outputs()
    torch.set_default_dtype(dtype)
    try:
        after = outputs()
        zeros = build(tiny_denoiser().float()).energy(
            torch.tensor([[[3, 4]]]),
            torch.tensor([[3, MASK]]),
        )
    finally:
        torch.set_default_dtype(torch.float32)

    for one, two in zip(before, after, strict=True):
        assert torch.equal(one.sequences, two.sequences)
        assert torch.equal(one.log_probs, two.log_probs)
        assert torch.equal(one.tokens_per_forward, two.tokens_per_forward)
    assert zeros.dtype == torch.float32


def test_in_float64_all_records_are():
    model = build(tiny_denoiser()).double()
    out = model.generate(
        max_length=6,
        generator=seed(),
        return_dict_in_generate=True,
        output_log_probs=True,
    )
    assert out.log_probs.dtype == torch.float64
    assert model.energy(torch.tensor([[[3, 4]]]), torch.tensor([[3, MASK]])).dtype == torch.float64
