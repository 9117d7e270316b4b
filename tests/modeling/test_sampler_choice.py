"""Which sampler runs: names and parameters, objects of the user, configurations on disk, and options beside them."""

import json

import numpy as np
import pytest
import torch
from hashed import LENGTH, MASK, HashedDenoiser
from published import tiny_denoiser

from edlm_hf import EDLMForMaskedDiffusion
from edlm_hf.evaluation import sampler_bound
from edlm_hf.modeling.generation_config_edlm import EDLMGenerationConfig
from edlm_hf.modeling.planners import Klass, TopK
from edlm_hf.modeling.remasking import Gibbs
from edlm_hf.modeling.sampler_choice import SAMPLERS
from edlm_hf.modeling.samplers import Step
from edlm_hf.modeling.spacing import Spaced

EMPTY = torch.full((3, LENGTH), MASK)
# The other one draws from an autoregressive model (test_speculative_sampling.py)
OF_DENOISERS = [name for name in SAMPLERS if name != "speculative"]
PROMPT = torch.tensor([[1, MASK, MASK, 3, MASK, MASK, 2, MASK, MASK, MASK, 0, MASK]])


def model(seed=0):
    return EDLMForMaskedDiffusion.from_components(HashedDenoiser(seed))


def sample(ids=EMPTY, network=None, seed=0, **options):
    return (network or model()).generate(ids, generator=torch.Generator().manual_seed(seed), **options)


class LeftToRight:
    """Not a `Sampler`: two methods only. It also points at what is visible."""

    def steps(self, state, noise):
        for _ in range(LENGTH):
            left = state.masked.sum(-1).cpu()
            yield Step(state.time_of(left, state.free.sum(-1).cpu()))

    def reveal(self, step, proposal):
        first = proposal.free.long().argmax(-1, keepdim=True)
        return torch.ones_like(proposal.free).cumsum(-1) <= first + 1


class Lazy(LeftToRight):
    """It stops after one step."""

    def steps(self, state, noise):
        yield next(super().steps(state, noise))


class Endless(LeftToRight):
    """It goes on when no mask is left."""

    def steps(self, state, noise):
        while True:
            yield Step(torch.ones(len(state.ids)), reveal=state.masked.cpu())


class Idle(LeftToRight):
    """It never reveals anything."""

    def steps(self, state, noise):
        while True:
            yield Step(torch.ones(len(state.ids)), reveal=torch.zeros_like(state.masked))


class OddPlaces:
    """By masks: every other position, visible or not, then the rest."""

    sees = "masks"

    def steps(self, state, noise):
        for parity in (0, 1):
            where = torch.zeros(state.ids.shape, dtype=torch.bool)
            where[:, parity::2] = True
            yield Step(torch.full((len(where),), 1.0 - parity / 2, dtype=torch.float64), where, mask_again=None)

    def reveal(self, step, proposal):
        raise AssertionError("not asked")


@pytest.mark.parametrize("sampler", [LeftToRight(), Lazy(), OddPlaces()])
def test_an_object_with_steps_and_reveal_fills_masks_and_nothing_else(sampler):
    for options in ({}, {"corrector_sweeps": 1.0}, {"block_length": 4}, {"do_sample": False}):
        tokens = sample(PROMPT, sampler=sampler, **options)
        assert torch.equal(tokens[PROMPT != MASK], PROMPT[PROMPT != MASK])
        assert (tokens != MASK).all()
    text = [[1, 0, 2, 3, 4, 5, 2, 0, 1, 1, 0, 3]]
    bound = sampler_bound(model(), text, num_steps=4, sampler=sampler, scored=PROMPT == MASK)
    assert bound.value > 0


def test_an_object_is_the_order_that_it_says():
    out = sample(
        PROMPT,
        sampler=LeftToRight(),
        return_dict_in_generate=True,
        output_history=True,
        do_sample=False,
    )
    masks = [int((x == MASK).sum()) for x in out.history]
    assert masks[0] == 8
    assert masks == sorted(masks, reverse=True)
    assert out.num_denoiser_calls.item() == 8


def test_a_function_is_a_sampler():
    def surest(step, proposal):
        return proposal.confidence() >= proposal.confidence().amax(-1, keepdim=True)

    mine = sample(EMPTY, sampler=surest, max_denoising_steps=20, do_sample=False)
    assert torch.equal(mine, sample(EMPTY, sampler="top_k", max_denoising_steps=LENGTH, do_sample=False))
    nothing = sample(
        PROMPT,
        sampler=lambda step, proposal: torch.zeros_like(proposal.free),
        max_denoising_steps=3,
    )
    assert (nothing != MASK).all() and torch.equal(nothing[PROMPT != MASK], PROMPT[PROMPT != MASK])
    assert (sample(PROMPT, sampler=Spaced(num_steps=4, distance=2)) != MASK).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "nucleus"}, "sampler is 'nucleus'.*one of ancestral.*spaced.*object of your own"),
        ({"sampler": Spaced}, "one of ancestral"),
        ({"sampler": "spaced", "gamma": 1.0}, "'spaced' has no gamma: it takes distance, score"),
        ({"sampler": "ancestral", "distance": 8}, "'ancestral' has no distance: it has no parameters"),
        ({"sampler": "ancestral", "distance": 8, "do_sample": False}, "'ancestral' has no distance"),
        ({"sampler": Spaced(4), "distance": 8}, "no use for distance: sampler is an object"),
        ({"sampler": "spaced", "distance": 0}, "distance is 0.*at least 1"),
        ({"sampler": "spaced", "distance": 1.5}, "distance is 1.5.*whole number"),
        ({"sampler": "spaced", "score": "best"}, "score is 'best'.*confidence, entropy, margin, random"),
        ({"sampler": "top_k", "score": "random"}, "score is 'random'.*confidence, entropy, margin"),
        ({"sampler": "entropy_bound", "gamma": -1}, "gamma is -1.*at least 0"),
        ({"sampler": "entropy_bound", "gamma": float("nan")}, "gamma is nan"),
        ({"sampler": "threshold", "threshold": 1.5}, r"threshold is 1.5.*in \[0, 1\]"),
        ({"sampler": "threshold", "fill_up": 1}, "fill_up is 1.*True or False"),
        ({"sampler": "factor", "factor": "x"}, "factor is 'x'.*a number"),
        ({"sampler": "klass", "history_length": -1}, "history_length is -1"),
        ({"sampler": "remdm", "remasking": "all"}, "cap, rescale or loop"),
        ({"sampler": "remdm", "eta": 2}, "eta is 2"),
        ({"sampler": "remdm", "remasking_window": (0.7, 0.2)}, r"remasking_window is \(0.7, 0.2\)"),
        ({"sampler": "remdm", "remasking_window": (0.7,)}, "a pair of times"),
        ({"corrector_sweeps": -1}, "corrector_sweeps is -1"),
        ({"corrector_sweeps": "x"}, "corrector_sweeps is 'x'"),
        ({"corrector_sweeps": 1, "corrector_positions": 0}, "corrector_positions is 0"),
        ({"sampler": lambda step, proposal: 3}, "sampler returned int, but bools of shape"),
        ({"sampler": lambda step, proposal: proposal.ids}, "sampler returned torch.int64"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(options, message):
    with pytest.raises(ValueError, match=message):
        sample(**options)


def test_parameters_of_the_model_s_own_sampler_are_dropped_with_it():
    network = model()
    network.generation_config.update(sampler="spaced", distance=3, max_denoising_steps=4)
    assert torch.equal(sample(network=network, sampler="top_k"), sample(sampler="top_k", max_denoising_steps=4))
    assert torch.equal(sample(network=network), sample(sampler="spaced", distance=3, max_denoising_steps=4))
    assert (sample(network=network, sampler=LeftToRight()) != MASK).all()


@pytest.mark.parametrize("name", ["low_confidence", "edit"])
def test_samplers_that_look_at_tokens_have_no_likelihood(name):
    with pytest.raises(ValueError, match="no likelihood is known. The nearest sampler"):
        sampler_bound(model(), [[1, 2, 3]], num_steps=2, sampler=name)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "spaced", "distance": 3, "score": "margin", "max_denoising_steps": 5},
        {"sampler": "remdm", "remasking": "rescale", "eta": 0.3, "remasking_window": (0.1, 0.9)},
        {"sampler": "klass", "threshold": 0.5, "kl_threshold": 0.2, "history_length": 3},
        {"sampler": "dilated", "offset": 2, "corrector_sweeps": 1.5, "corrector_positions": 2},
    ],
)
def test_a_planner_comes_back_from_disk(tmp_path, options):
    config = EDLMGenerationConfig(**options)
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "generation_config.json").read_text())
    assert {name: tuple(x) if isinstance(x, list) else x for name, x in stored.items() if name in options} == options
    loaded = EDLMGenerationConfig.from_pretrained(tmp_path)
    assert torch.equal(sample(generation_config=loaded), sample(**options))


def test_an_object_is_not_saved_but_shown_and_passed_on(tmp_path):
    sampler = Spaced(4, distance=3)
    config = EDLMGenerationConfig(sampler=sampler)
    with pytest.raises(ValueError, match="sampler is Spaced.*cannot be saved.*pass the object to generate"):
        config.save_pretrained(tmp_path)
    assert "Spaced" in repr(config) and config.to_dict()["sampler"] is sampler
    assert torch.equal(sample(generation_config=config), sample(sampler=sampler))


@pytest.mark.parametrize("name", OF_DENOISERS)
def test_every_sampler_goes_with_prompts_blocks_and_several_texts(name):
    ids = torch.tensor([[0, 0, 2, 1], [3, 1, MASK, 4]])
    real = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    seen = []
    tokens = sample(
        ids,
        attention_mask=real,
        sampler=name,
        max_new_tokens=8,
        block_length=4,
        num_return_sequences=2,
        max_denoising_steps=3,
        min_p=0.02,
        guidance_scale=1.5,
        callback_on_step_end=lambda network, step, t, given: seen.append((step, t.shape, given["ids"].shape)),
    )
    given = ids.repeat_interleave(2, 0)
    assert tokens.shape == (4, 12) and (tokens != MASK).all()
    assert torch.equal(tokens[:, :4][given != MASK], given[given != MASK])

    steps = [step for step, *_ in seen]
    assert steps == sorted(set(steps)) and all(shape == (4,) for _, shape, _ in seen)


@pytest.mark.parametrize("name", OF_DENOISERS)
@pytest.mark.parametrize("scope", ["sequence", "revealed"])
def test_every_sampler_that_does_not_look_at_tokens_goes_with_an_energy(name, scope):
    def energy(candidate_ids, noisy_ids, proposal_log_probs, attention_mask):
        return -(candidate_ids == 2).sum(-1).double() * 50

    options = {"energy": energy, "num_candidates": 4, "energy_scope": scope}
    if name == "edit" or (name == "low_confidence" and scope == "revealed"):
        with pytest.raises(ValueError, match="Pass num_candidates=1"):
            sample(sampler=name, **options)
        return

    # The surest of the drawn tokens are kept, whatever the energy likes: in one step all are
    options["max_denoising_steps"] = steps = 1 if name == "low_confidence" else 6
    ids = EMPTY[:1].repeat(100, 1)
    weighed = sample(ids, sampler=name, **options)
    plain = sample(ids, sampler=name, max_denoising_steps=steps)
    assert (weighed != MASK).all() and (weighed == 2).sum() > (plain == 2).sum()


@pytest.mark.parametrize("name", OF_DENOISERS)
@pytest.mark.parametrize("do_sample", [True, False])
def test_log_probabilities_are_those_of_the_network_at_the_history(name, do_sample):
    network = model()
    out = sample(
        network=network,
        sampler=name,
        max_denoising_steps=4,
        do_sample=do_sample,
        return_dict_in_generate=True,
        output_history=True,
        output_log_probs=True,
    )

    # Tokens that are masked again or replaced have the log-probability of the last time
    expected = torch.full(out.sequences.shape, torch.nan, dtype=torch.float64)
    for before, after in zip(out.history, out.history[1:], strict=False):
        log_probs = network(input_ids=before).logits[..., :MASK].log_softmax(-1)
        of_tokens = log_probs.gather(-1, after.clamp_max(MASK - 1).unsqueeze(-1)).squeeze(-1)
        changed = (before != after) & (after != MASK)
        expected = torch.where(changed, of_tokens, expected)

    torch.testing.assert_close(out.log_probs, expected, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_guidance_and_min_p_are_what_they_say():
    """One step, the likeliest tokens and a filter, from the logits themselves."""
    network = model()
    alone = torch.full_like(PROMPT, MASK)
    with_prompt, without = (network(input_ids=x).logits[..., :MASK].log_softmax(-1) for x in (PROMPT, alone))
    guided = without + 2.5 * (with_prompt - without)
    options = {"sampler": "top_k", "max_denoising_steps": 1, "guidance_scale": 2.5}
    tokens = sample(PROMPT, do_sample=False, **options)
    assert torch.equal(tokens, torch.where(PROMPT == MASK, guided.argmax(-1), PROMPT))

    p = guided.softmax(-1)
    allowed = p >= 0.3 * p.amax(-1, keepdim=True)
    drawn = sample(PROMPT.repeat(3000, 1), min_p=0.3, **options)

    for i in (PROMPT[0] == MASK).nonzero().flatten():
        share = torch.bincount(drawn[:, i], minlength=MASK) / 3000
        law = torch.where(allowed[0, i], p[0, i], 0)
        assert (share - law / law.sum()).abs().max() < 0.05
        assert set(drawn[:, i].tolist()) <= set(allowed[0, i].nonzero().flatten().tolist())


@pytest.mark.parametrize("name", OF_DENOISERS)
def test_a_proposal_without_tokens_is_refused(name):
    with pytest.raises(ValueError, match="token"):
        sample(sampler=name, logits_processor=[lambda ids, logits: torch.full_like(logits, -torch.inf)])


@pytest.mark.parametrize(("sampler", "left"), [(Endless(), 0), (Idle(), LENGTH)])
def test_a_sampler_that_never_ends_is_refused(sampler, left):
    with pytest.raises(ValueError, match=f"changed nothing, with {left} masks left.*Let steps.. end"):
        sample(EMPTY[:1], sampler=sampler, max_denoising_steps=4)


def test_stored_parameters_are_those_of_the_stored_sampler():
    """`threshold` has a threshold as `klass` has, and `score` has other values for `top_k` than for `spaced`."""
    model = tiny_denoiser()
    made = model._prepare_generation_config

    model.generation_config = EDLMGenerationConfig(sampler="threshold", threshold=0.3, corrector_sweeps=0.5)
    assert made(None).make_sampler().base.threshold == 0.3
    assert made(None, sampler="klass").make_sampler() == Gibbs(Klass(num_steps=128), 0.5, 1)
    assert made(None, sampler="klass", threshold=0.4).make_sampler().base.threshold == 0.4
    assert made(EDLMGenerationConfig(sampler="klass")).make_sampler() == Gibbs(Klass(num_steps=128), 0.5, 1)

    model.generation_config = EDLMGenerationConfig(sampler="spaced", score="random")
    assert made(None, sampler="top_k").make_sampler() == TopK(num_steps=128)
    assert made(None, sampler="spaced", distance=3).make_sampler().score == "random"

    # Without a stored sampler they are for whatever sampler has them
    model.generation_config = EDLMGenerationConfig(score="margin")
    assert made(None, sampler="top_k").make_sampler().score == "margin"


def test_without_sampling_dilated_has_one_order():
    rows = [sample(seed=number, sampler="dilated", do_sample=False) for number in range(4)]
    assert all(torch.equal(row, rows[0]) for row in rows)


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("distance", np.int64(3), 3),
        ("energy_window", np.float32(0.5), 0.5),
        ("energy_window", (np.float32(0.25), torch.tensor(0.5)), [0.25, 0.5]),
        ("corrector_sweeps", np.float32(0.5), 0.5),
    ],
)
def test_numbers_of_others_are_saved_as_pythons_own(name, value, stored, tmp_path):
    EDLMGenerationConfig(sampler="spaced", **{name: value}).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())[name] == stored
    assert getattr(EDLMGenerationConfig.from_pretrained(tmp_path), name) == stored


def test_parameters_of_a_configuration_are_checked_when_it_is_made():
    with pytest.raises(ValueError, match="distance is -3"):
        EDLMGenerationConfig(sampler="spaced", distance=-3)
    with pytest.raises(ValueError, match="must be a number, positive"):
        EDLMGenerationConfig(energy_temperature=10**400)

    # One of another sampler may be left from an earlier setting
    assert EDLMGenerationConfig(sampler="spaced", gamma=3).gamma == 3


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda state: 3, "must yield objects of the class Step"),
        (lambda state: Step(0.5), "a tensor of 3 times"),
        (lambda state: Step(torch.full((3,), 7.0)), "times from 0 to 1"),
        (lambda state: Step(torch.ones(2)), "a tensor of 3 times"),
        (lambda state: Step(torch.ones(3), rows=torch.tensor([0, 5])), "numbers of rows"),
    ],
)
def test_steps_of_a_wrong_form_are_refused(step, message):
    class Wrong(LeftToRight):
        def steps(self, state, noise):
            yield step(state)

    with pytest.raises(ValueError, match=message):
        sample(sampler=Wrong())


def test_a_sampler_that_forgets_to_yield_is_refused():
    class Silent(LeftToRight):
        def steps(self, state, noise):
            return None

    with pytest.raises(ValueError, match="Write it as a generator"):
        sample(sampler=Silent())
