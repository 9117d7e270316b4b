"""Planners through the shipped generate() and sampler_bound: exact laws, published loops, rows, blocks and calls.

The tests S1 to S6 and S8 of the specification of samplers, on the exact test-bed and beside a second writing of the
published loops.
"""

import numpy as np
import published_samplers
import pytest
import torch
from exact import MASK, SEQUENCES, L, TableDenoiser, distance, marginals, perturbed, random_joint, state_index
from hashed import LENGTH, HashedDenoiser
from hashed import MASK as HASHED_MASK

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.evaluation import discrete_nelbo, nelbo, sampler_bound
from edlm_hf.modeling.planners import TopK

N, TV = 200_000, 0.012
JOINT = random_joint(seed=3)
TEXTS = torch.tensor(SEQUENCES)
ENERGY = np.random.default_rng(8).normal(size=(256, 81)) * 1.5

DETERMINISTIC = {
    "dilated": {"sampler": "dilated", "offset": 0, "max_denoising_steps": 2},
    "dilated, 3 steps": {"sampler": "dilated", "offset": 1, "max_denoising_steps": 3},
    "spaced": {"sampler": "spaced", "distance": 2, "max_denoising_steps": 2},
    "spaced evenly": {"sampler": "spaced", "max_denoising_steps": 2},
    "spaced, margin": {"sampler": "spaced", "distance": 3, "score": "margin", "max_denoising_steps": 3},
    "top_k": {"sampler": "top_k", "max_denoising_steps": 2},
    "top_k, entropy": {"sampler": "top_k", "score": "entropy", "max_denoising_steps": 3},
    "top_k, counts of Dream": {"sampler": "top_k", "reveal_counts": "dream", "max_denoising_steps": 3},
    "entropy_bound 0": {"sampler": "entropy_bound", "gamma": 0.0},
    "entropy_bound .3": {"sampler": "entropy_bound", "gamma": 0.3},
    "entropy_bound 1": {"sampler": "entropy_bound", "gamma": 1.0},
    "entropy_bound 9": {"sampler": "entropy_bound", "gamma": 9.0},
    "threshold": {"sampler": "threshold", "threshold": 0.6},
    "threshold 0": {"sampler": "threshold", "threshold": 0.0},
    "threshold, filled up": {"sampler": "threshold", "threshold": 0.7, "fill_up": True, "max_denoising_steps": 2},
    "factor": {"sampler": "factor", "factor": 1.5},
    "klass": {
        "sampler": "klass",
        "threshold": 0.4,
        "kl_threshold": 0.3,
        "history_length": 1,
        "max_denoising_steps": 3,
    },
}
RANDOM = {
    "ancestral": {"sampler": "ancestral", "max_denoising_steps": 3},
    "first_hitting": {"sampler": "first_hitting"},
    "dilated": {"sampler": "dilated", "max_denoising_steps": 3},
    "spaced": {"sampler": "spaced", "score": "random", "distance": 2, "max_denoising_steps": 3},
}


def model(seed=1):
    network = TableDenoiser(perturbed(marginals(JOINT), seed=seed))
    return EDLMForMaskedDiffusion.from_components(network, mask_token_id=MASK)


def sample(network, ids, seed=0, **options):
    return network.generate(ids, generator=torch.Generator().manual_seed(seed), **options)


def nats_of(options, texts=TEXTS, **more):
    """-log p of every text, or its bound: (n,)."""
    options = {name: x for name, x in options.items() if name != "max_denoising_steps"} | {
        "num_steps": options.get("max_denoising_steps")
    }
    return sampler_bound(model(), texts, batch_size=1024, **options, **more)


def table_energy(candidate_ids, noisy_ids, proposal_log_probs, attention_mask):
    complete = torch.where(candidate_ids == MASK, 0, candidate_ids)
    return torch.tensor(ENERGY[state_index(noisy_ids.numpy())[:, None], complete.numpy() @ (3 ** np.arange(L)[::-1])])


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_likelihood_of_a_deterministic_planner_is_exact_and_is_what_it_samples(name):
    """S1 and S2."""
    options = DETERMINISTIC[name]
    found = nats_of(options)
    law = np.exp(-np.array(found.sequence_nats))
    assert abs(law.sum() - 1) < 1e-12 and found.standard_error == 0

    tokens = sample(model(), torch.full((N, L), MASK), **options)
    assert distance(tokens, law) < TV


@pytest.mark.parametrize("name", RANDOM)
def test_one_random_step_and_the_whole_path_agree(name):
    """S3."""
    jump = nats_of(RANDOM[name], num_samples=32, seed=1)
    walk = nats_of(RANDOM[name], num_samples=32, seed=2, whole_path=True)
    assert abs(jump.value - walk.value) < 4 * np.hypot(jump.standard_error, walk.standard_error)
    assert jump.standard_error > 0 and walk.standard_error > 0


def test_bounds_of_the_denoiser_are_those_of_its_two_samplers():
    """S3: the same noise, so that nothing is left but rounding."""
    options = {"num_samples": 8, "seed": 3, "batch_size": 1024}
    one_by_one = sampler_bound(model(), TEXTS, sampler="first_hitting", **options)
    assert one_by_one.value == pytest.approx(nelbo(model(), TEXTS, **options).value, abs=1e-9)
    ancestral = sampler_bound(model(), TEXTS, sampler="ancestral", num_steps=3, **options)
    assert ancestral.value == pytest.approx(discrete_nelbo(model(), TEXTS, num_steps=3, **options).value, abs=1e-9)


@pytest.mark.parametrize("scope", ["sequence", "revealed"])
@pytest.mark.parametrize("sampler", ["spaced", "top_k"])
def test_the_bound_of_a_planner_with_an_energy_holds_for_every_text(sampler, scope):
    """S4: p by frequencies of 200,000 samples, 4 standard errors for every text. More copies tighten the bound."""
    options = {"sampler": sampler, "max_denoising_steps": 2}
    more = {"energy": table_energy, "num_candidates": 2, "energy_scope": scope}
    tokens = sample(model(), torch.full((N, L), MASK), **options, **more)
    index = tokens.numpy() @ (3 ** np.arange(L)[::-1])
    p = np.bincount(index, minlength=81) / N
    error = np.sqrt(p * (1 - p) / N)

    # -log p of every text that came often enough, and its error to first order
    often = p > 1e-3
    sampled, sampled_error = -np.log(p[often]), error[often] / p[often]

    # The bound of every text, from eight sources of noise
    found = [nats_of(options, num_samples=8, inner_copies=32, seed=seed, **more).sequence_nats for seed in range(8)]
    nats = np.array(found)[:, often]
    noise = nats.std(0, ddof=1) / np.sqrt(len(nats))
    assert (nats.mean(0) > sampled - 4 * np.hypot(noise, sampled_error)).all()

    # With one copy it is looser
    loose = [nats_of(options, num_samples=8, seed=seed, **more).sequence_nats for seed in range(8)]
    assert np.mean(found) < np.mean(loose)


# What follows goes beside the published loops.
def hashed(seed=0):
    denoiser = HashedDenoiser(seed)
    return denoiser, EDLMForMaskedDiffusion.from_components(denoiser)


def rows_of(seed=0):
    """Empty, and two texts to infill."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 6, (3, LENGTH), generator=generator)
    masked = torch.rand(3, LENGTH, generator=generator) < 0.7
    masked[0], masked[:, 0] = True, True
    return ids.masked_fill(masked, HASHED_MASK)


def check_against(loop, ids, given, **options):
    """generate() without sampling makes the tokens, calls and reveal sets of a loop, every row alone and in a batch."""
    denoiser, network = hashed()
    kept = {"return_dict_in_generate": True, "output_history": True, "do_sample": False}
    together = network.generate(ids, **options, **kept)

    for row in range(len(ids)):
        tokens, calls, reveal_sets, *_ = loop(
            lambda x: denoiser(x).logits,
            ids[row],
            HASHED_MASK,
            **given,
        )
        alone = network.generate(ids[row : row + 1], **options, **kept)
        assert torch.equal(alone.sequences[0], tokens)
        assert torch.equal(together.sequences[row], tokens)
        assert alone.num_denoiser_calls.item() == together.num_denoiser_calls[row] == calls
        pairs = zip(alone.history, alone.history[1:], strict=False)
        was_mask = [(before[0] == HASHED_MASK) & (after[0] != HASHED_MASK) for before, after in pairs]
        assert [set(x.nonzero().flatten().tolist()) for x in was_mask if x.any()] == [x for x in reveal_sets if x]


S6 = {
    "maskgit_plus": ("dream", {"steps": 5, "alg": "maskgit_plus", "share": "even"}, {"sampler": "top_k"}),
    "topk_margin": (
        "dream",
        {"steps": 4, "alg": "topk_margin", "share": "even"},
        {"sampler": "top_k", "score": "margin"},
    ),
    "entropy": ("dream", {"steps": 3, "alg": "entropy", "share": "even"}, {"sampler": "top_k", "score": "entropy"}),
    "low_confidence": (
        "dream",
        {"steps": 5, "alg": "maskgit_plus", "share": "even"},
        {"sampler": "low_confidence"},
    ),
    "spaced": ("spaced", {"steps": 4, "distance": 3}, {"sampler": "spaced", "distance": 3}),
    "spaced evenly": ("spaced", {"steps": 4}, {"sampler": "spaced"}),
    "spaced far": (
        "spaced",
        {"steps": 2, "distance": 9, "score": "margin"},
        {"sampler": "spaced", "distance": 9, "score": "margin"},
    ),
    "threshold": ("fast_dllm_threshold", {"threshold": 0.7}, {"sampler": "threshold", "threshold": 0.7}),
    "threshold in blocks": (
        "fast_dllm_threshold",
        {"threshold": 0.5},
        {"sampler": "threshold", "threshold": 0.5},
    ),
    "factor": ("fast_dllm_factor", {"factor": 1.2}, {"sampler": "factor", "factor": 1.2}),
    "entropy_bound": ("entropy_bounded", {"gamma": 0.8}, {"sampler": "entropy_bound", "gamma": 0.8}),
    "entropy_bound by confidence": (
        "entropy_bounded",
        {"gamma": 1.5, "score": "confidence"},
        {"sampler": "entropy_bound", "gamma": 1.5, "score": "confidence"},
    ),
    "klass": (
        "klass",
        {"confidence_threshold": 0.4, "kl_threshold": 0.5, "history": 1, "steps": 8},
        {"sampler": "klass", "threshold": 0.4, "kl_threshold": 0.5, "history_length": 1},
    ),
    "llada2": (
        "llada2_threshold",
        {"threshold": 0.8, "steps": 5, "share": "even"},
        {"sampler": "threshold", "threshold": 0.8, "fill_up": True},
    ),
    "edit": (
        "llada21_edit",
        {"threshold": 0.7, "editing_threshold": 0.9, "max_post_steps": 100},
        {"sampler": "edit", "threshold": 0.7, "editing_threshold": 0.9, "max_denoising_steps": 80},
    ),
}


@pytest.mark.parametrize("name", S6)
def test_without_sampling_a_planner_is_its_published_loop(name):
    """S5 and S6: infilling, rows of different numbers of masks."""
    loop, given, options = S6[name]
    if "steps" in given:
        options = options | {"max_denoising_steps": given["steps"]}
    check_against(getattr(published_samplers, loop), rows_of(), given, **options)


@pytest.mark.parametrize("sampler", ["top_k", "low_confidence"])
@pytest.mark.parametrize("steps", [1, 3, 5, LENGTH, 3 * LENGTH])
def test_counts_of_dream_are_those_of_its_loop(sampler, steps):
    """The same reveal sets, without the calls of steps that reveal nothing."""

    def loop(*args, **given):
        tokens, _, reveal_sets = published_samplers.dream(*args, **given)
        return tokens, sum(map(bool, reveal_sets)), reveal_sets

    given = {"steps": steps, "alg": "maskgit_plus", "share": "dream"}
    check_against(
        loop,
        rows_of(),
        given,
        sampler=sampler,
        max_denoising_steps=steps,
        reveal_counts="dream",
    )


def test_even_counts_are_those_of_llada():
    """masks // T, and one more in the first masks % T steps (its `get_num_transfer_tokens`)."""
    for masks in range(1, 30):
        for steps in range(1, masks + 1):
            left, counts = torch.tensor([masks]), []
            for index in range(steps):
                counts.append(int(TopK(num_steps=steps).share(left, index)))
                left = left - counts[-1]
            assert counts == [masks // steps + (n < masks % steps) for n in range(steps)]


def test_unknown_counts_are_refused():
    with pytest.raises(ValueError, match="reveal_counts is 'odd', but it must be even or dream"):
        model().generate(TEXTS[:1], sampler="top_k", reveal_counts="odd")
    with pytest.raises(ValueError, match="The sampler 'spaced' has no reveal_counts"):
        model().generate(TEXTS[:1], sampler="spaced", reveal_counts="dream")


@pytest.mark.parametrize(
    ("loop", "given", "options"),
    [
        ("llada_low_confidence", {"steps": 6}, {"sampler": "low_confidence", "max_denoising_steps": 3}),
        ("llada_low_confidence", {"steps": 4}, {"sampler": "top_k", "max_denoising_steps": 2}),
        ("fast_dllm_threshold", {"threshold": 0.5}, {"sampler": "threshold", "threshold": 0.5}),
        ("fast_dllm_factor", {"factor": 1.3}, {"sampler": "factor", "factor": 1.3}),
    ],
)
def test_blocks_after_a_prompt_are_those_of_the_published_loops(loop, given, options):
    denoiser, network = hashed()
    prompt = torch.tensor([[1, 0, 5, 2]])
    out = network.generate(
        prompt, max_new_tokens=8, block_length=4, do_sample=False, return_dict_in_generate=True, **options
    )
    ids = torch.cat([prompt[0], torch.full((8,), HASHED_MASK)])
    given = given | {"block_length": 4, "gen_start": 4}
    tokens, calls, _ = getattr(published_samplers, loop)(
        lambda x: denoiser(x).logits,
        ids,
        HASHED_MASK,
        **given,
    )
    assert torch.equal(out.sequences[0], tokens) and out.num_denoiser_calls.item() == calls


@pytest.mark.parametrize("offset", [0, 3])
def test_dilated_is_in_the_order_of_reversed_bits(offset):
    ids = torch.full((1, LENGTH), HASHED_MASK)
    options = {"sampler": "dilated", "offset": offset, "max_denoising_steps": 5}
    check_against(published_samplers.dilated, ids, {"steps": 5, "offset": offset}, **options)


@pytest.mark.parametrize("name", S6)
@pytest.mark.parametrize("block_length", [None, 3])
def test_a_row_alone_is_the_row_in_a_ragged_batch(name, block_length):
    """S5: prompts of different lengths, padded on the left."""
    _, network = hashed()
    options = S6[name][2] | {"max_denoising_steps": 20 if name == "edit" else 3, "do_sample": False}
    options |= {"max_new_tokens": 6, "block_length": block_length}
    prompts = [[1, 2, 3, 4, 5], [2], [HASHED_MASK, 0, 3], []]
    ids = torch.tensor([[0] * (5 - len(prompt)) + prompt for prompt in prompts])
    real = torch.tensor([[0] * (5 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    together = network.generate(ids, attention_mask=real, **options)
    for i, prompt in enumerate(prompts):
        alone = network.generate(torch.tensor([prompt], dtype=torch.long), **options)[0]
        assert torch.equal(together[i, 5 - len(prompt) :], alone)


@pytest.mark.parametrize("name", ["spaced", "entropy_bound .3", "threshold", "klass"])
def test_a_row_has_its_law_in_a_batch_with_others(name):
    """S5, where tokens are drawn."""
    pattern = [MASK, 0, MASK, MASK]
    options = DETERMINISTIC[name]
    ids = torch.tensor([[MASK] * L, pattern]).repeat(50_000, 1)
    tokens = sample(model(), ids, **options)
    assert (tokens[1::2, 1] == 0).all()

    fits = TEXTS[:, 1] == 0
    scored = torch.tensor(pattern).eq(MASK).expand(int(fits.sum()), L)
    law = np.zeros(81)
    law[fits] = np.exp(-np.array(nats_of(options, TEXTS[fits], scored=scored).sequence_nats))
    assert abs(law.sum() - 1) < 1e-12 and distance(tokens[1::2], law) < TV


@pytest.mark.parametrize("sampler", ["dilated", "spaced", "top_k", "low_confidence"])
@pytest.mark.parametrize("steps", [1, 2, 5, 12, 40])
def test_calls_are_the_steps_or_the_masks(sampler, steps):
    """S8."""
    denoiser, network = hashed()
    ids = rows_of()
    options = {"sampler": sampler, "max_denoising_steps": steps, "return_dict_in_generate": True}
    out = sample(network, ids, **options)
    masks = (ids == HASHED_MASK).sum(-1)
    assert torch.equal(out.num_denoiser_calls, masks.clamp_max(steps))
    assert denoiser.calls == out.num_denoiser_calls.max()
    assert network.count_steps(ids, sampler=sampler, max_denoising_steps=steps) == denoiser.calls


def test_entropy_bound_counts_what_it_used():
    """S8."""
    denoiser, network = hashed()
    calls = {}
    for gamma in (0.0, 1.0, 1e9):
        denoiser.calls = 0
        out = sample(
            network,
            rows_of(),
            sampler="entropy_bound",
            gamma=gamma,
            return_dict_in_generate=True,
        )
        assert denoiser.calls == out.num_denoiser_calls.max()
        calls[gamma] = out.num_denoiser_calls.tolist()

    assert calls[0.0] == (rows_of() == HASHED_MASK).sum(-1).tolist() and calls[1e9] == [1, 1, 1]
    assert all(a < b < c for a, b, c in zip(calls[1e9], calls[1.0], calls[0.0], strict=True))


@pytest.mark.parametrize("sampler", ["dilated", "spaced", "top_k", "entropy_bound", "klass", "remdm", "edit"])
def test_nothing_to_fill_needs_no_call(sampler):
    denoiser, network = hashed()
    for ids in (
        torch.tensor([[1, 2]]),
        torch.zeros(0, 3, dtype=torch.long),
        torch.zeros(2, 0, dtype=torch.long),
    ):
        assert torch.equal(network.generate(ids, sampler=sampler), ids)
    assert denoiser.calls == 0
