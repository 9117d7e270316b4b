"""Generation and scoring run in eval mode, from several threads too, and leave a model as it was."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from published import randomised, seed, tiny_causal, tiny_config, tiny_denoiser, tiny_gpt2
from transformers import BertConfig, BertForMaskedLM

from edlm_hf import EDLMEnergyModel, EDLMForMaskedDiffusion
from edlm_hf.evaluation import nelbo, sampler_bound
from edlm_hf.modeling.custom_generate import generate as custom_generate
from edlm_hf.modeling.evaluation_mode import evaluating

MASK = 12
IDS = torch.tensor([[3, MASK, MASK, MASK], [5, 6, MASK, 4]])
build = EDLMForMaskedDiffusion.from_components


def bert(**changes):
    sizes = {"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    return randomised(BertForMaskedLM(BertConfig(**(sizes | {"intermediate_size": 8} | changes))))


MODELS = {
    "denoiser": lambda: tiny_denoiser(dropout=0.5),
    "ar": lambda: build(tiny_denoiser(dropout=0.5), tiny_causal(bos_token_id=10, dropout=0.5)),
    "gpt2": lambda: build(tiny_denoiser(dropout=0.5), tiny_gpt2(n_positions=13)),
    "nce": lambda: build(tiny_denoiser(dropout=0.5), randomised(EDLMEnergyModel(tiny_config(dropout=0.5)))),
    "shared": lambda: randomised(
        build(tiny_denoiser(dropout=0.5), energy_type="nce", energy_weights="shared", energy_adapter_rank=2)
    ),
    "bert": lambda: build(bert(), mask_token_id=MASK),
}


def readings(model):
    """Whatever reads a model without training it: texts, an energy, a bound."""
    options = {"max_new_tokens": 3, "max_denoising_steps": 3, "num_candidates": 3}
    yield model.generate(IDS, generator=seed(), **options).tolist()
    yield model.generate(IDS, max_new_tokens=4, block_length=2, sampler="first_hitting", generator=seed()).tolist()
    yield model.generate(IDS, do_sample=False, max_denoising_steps=2).tolist()
    yield nelbo(model, [[1, 2, 3, 4]], num_samples=2).value
    yield sampler_bound(model, [[1, 2, 3, 4]], num_steps=2, num_candidates=2, num_samples=2).value
    if hasattr(model, "energy"):
        candidates = torch.where((IDS == MASK).unsqueeze(1), 7, IDS.unsqueeze(1).repeat(1, 2, 1))
        yield model.energy(candidates, IDS).tolist()


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_in_train_mode_reads_as_in_eval_mode_and_stays_in_train_mode(kind):
    model = MODELS[kind]()
    expected = list(readings(model.eval()))
    model.train()
    if kind != "denoiser":
        model.denoiser.eval()  # as while an energy is trained
    modes = {name: module.training for name, module in model.named_modules()}
    before = torch.get_rng_state()

    assert list(readings(model)) == expected
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_back_when_training_goes_on():
    model = MODELS["shared"]().train()
    model.generate(IDS, generator=seed())
    candidates = torch.tensor([[[3, 1, 2, 4]], [[5, 6, 7, 4]]])
    one, two = (model(IDS, candidate_ids=candidates).energy for _ in range(2))
    assert not torch.equal(one, two)
    one, two = (model(IDS).logits for _ in range(2))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("kind", ["denoiser", "ar", "shared", "bert"])
def test_threads_that_share_a_model_in_train_mode_do_not_meet(kind):
    model = MODELS[kind]().train()

    def text(n):
        options = {"max_new_tokens": 4, "max_denoising_steps": 10, "num_candidates": 2}
        return model.generate(IDS, generator=seed(n), **options)

    expected = [text(n) for n in range(24)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(text, range(24)))
    assert all(map(torch.equal, found, expected))
    assert all(module.training for module in model.modules())


def state_of(model):
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    parameters = [(id(x), x.requires_grad) for x in model.parameters()]
    modules = {name: (module.training, sorted(vars(module))) for name, module in model.named_modules()}
    return weights, parameters, modules, model.config.to_dict()


def assert_unchanged(model, before):
    weights, *rest = state_of(model)
    assert rest == list(before[1:])
    assert all(torch.equal(x, before[0][name]) for name, x in weights.items())
    assert len(weights) == len(before[0])


def untied(model):
    """Input and output weights of their own, though the configuration ties them. The first are frozen."""
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().flip(0).clone())
    model.get_input_embeddings().weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("model", [bert().train(), untied(bert()).eval()], ids=["train", "untied"])
@pytest.mark.parametrize("energy", [None, tiny_gpt2(n_positions=20), untied(tiny_gpt2(n_positions=20)).train()])
def test_custom_generate_leaves_a_model_and_its_energy_as_they_are(model, energy):
    before = [state_of(part) for part in (model, energy) if part is not None]
    random, normal = torch.get_rng_state(), torch.nn.init.normal_
    run = partial(
        custom_generate,
        model,
        IDS,
        mask_token_id=MASK,
        energy_model=energy,
        max_new_tokens=3,
    )
    expected = [run(max_denoising_steps=5, generator=seed(n)) for n in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: run(max_denoising_steps=5, generator=seed(n)), range(12)))

    assert all(map(torch.equal, found, expected))
    for part, state in zip([part for part in (model, energy) if part is not None], before, strict=True):
        assert_unchanged(part, state)
    assert torch.equal(torch.get_rng_state(), random) and torch.nn.init.normal_ is normal


def test_the_last_call_that_needs_a_module_gives_it_its_mode_back():
    part = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    one, two = torch.nn.ModuleList([part]), torch.nn.ModuleList([part, torch.nn.Dropout()])
    two[1].eval()
    first, second = evaluating(one), evaluating(two, one)
    first.__enter__()
    second.__enter__()
    assert not any(module.training for module in (*one.modules(), *two.modules()))

    first.__exit__(None, None, None)
    assert not part.training and not part[1].training
    second.__exit__(None, None, None)
    assert part.training
    assert part[1].training
    assert one.training
    assert two.training
    assert not two[1].training


def test_errors_give_the_mode_back_too():
    model = tiny_denoiser().train()
    with pytest.raises(ValueError, match="NaN or -inf"):
        model.generate(IDS, energy=lambda c, *rest: torch.full(c.shape[:2], torch.nan))
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not model.training
        1 / 0  # noqa: B018
    assert all(module.training for module in model.modules())
