"""Generation and scoring run in eval mode, from several threads too.

They leave a model as it was.
"""

from concurrent.futures import ThreadPoolExecutor

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
    sizes = {
        "vocab_size": 13,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    return randomised(BertForMaskedLM(BertConfig(**(sizes | changes))))


def dropping():
    return tiny_denoiser(dropout=0.5)


def with_ar():
    return build(dropping(), tiny_causal(bos_token_id=10, dropout=0.5))


def with_nce():
    energy = EDLMEnergyModel(tiny_config(dropout=0.5))
    return build(dropping(), randomised(energy))


def with_shared_weights():
    model = build(
        dropping(),
        energy_type="nce",
        energy_weights="shared",
        energy_adapter_rank=2,
    )
    return randomised(model)


MODELS = {
    "denoiser": dropping,
    "ar": with_ar,
    "gpt2": lambda: build(dropping(), tiny_gpt2(n_positions=13)),
    "nce": with_nce,
    "shared": with_shared_weights,
    "bert": lambda: build(bert(), mask_token_id=MASK),
}


def readings(model):
    """Yield all that reads a model without training it: texts, bounds, an energy."""
    ancestral = model.generate(
        IDS,
        generator=seed(),
        max_new_tokens=3,
        max_denoising_steps=3,
        num_candidates=3,
    )
    yield ancestral.tolist()

    # in two blocks, one token at a time
    in_blocks = model.generate(
        IDS,
        max_new_tokens=4,
        block_length=2,
        sampler="first_hitting",
        generator=seed(),
    )
    yield in_blocks.tolist()

    likeliest = model.generate(IDS, do_sample=False, max_denoising_steps=2)
    yield likeliest.tolist()

    texts = [[1, 2, 3, 4]]
    yield nelbo(model, texts, num_samples=2).value
    yield sampler_bound(model, texts, num_steps=2, num_candidates=2, num_samples=2).value

    if hasattr(model, "energy"):
        noisy = IDS.unsqueeze(1).repeat(1, 2, 1)  # (B, k, L)
        candidates = noisy.masked_fill(noisy == MASK, 7)
        yield model.energy(candidates, IDS).tolist()


def modes_of(model):
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_in_train_mode_reads_as_in_eval_mode_and_stays_in_train_mode(kind):
    model = MODELS[kind]()
    expected = list(readings(model.eval()))
    model.train()
    if kind != "denoiser":
        model.denoiser.eval()  # as while an energy is trained
    modes = modes_of(model)
    before = torch.get_rng_state()

    assert list(readings(model)) == expected
    assert modes_of(model) == modes
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_back_when_training_goes_on():
    model = MODELS["shared"]().train()
    model.generate(IDS, generator=seed())
    candidates = torch.tensor([[[3, 1, 2, 4]], [[5, 6, 7, 4]]])

    # of the energy, then of the denoiser
    first = model(IDS, candidate_ids=candidates)
    second = model(IDS, candidate_ids=candidates)
    assert not torch.equal(first.energy, second.energy)

    first = model(IDS)
    second = model(IDS)
    assert not torch.equal(first.logits, second.logits)


@pytest.mark.parametrize("kind", ["denoiser", "ar", "shared", "bert"])
def test_threads_that_share_a_model_in_train_mode_do_not_meet(kind):
    model = MODELS[kind]().train()

    def text(n):
        return model.generate(
            IDS,
            generator=seed(n),
            max_new_tokens=4,
            max_denoising_steps=10,
            num_candidates=2,
        )

    expected = [text(n) for n in range(24)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(text, range(24)))
    assert all(map(torch.equal, found, expected))
    assert all(module.training for module in model.modules())


def state_of(model):
    """Copies of the weights, and all else that reading a model must leave."""
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    parameters = [(id(x), x.requires_grad) for x in model.parameters()]
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    others = (parameters, modes_of(model), attributes, model.config.to_dict())
    return weights, others


def assert_unchanged(model, before):
    weights, others = state_of(model)
    weights_before, others_before = before
    assert others == others_before
    assert weights.keys() == weights_before.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, weights_before[name]), name


def untied(model):
    """Give a model input and output weights of their own, though its configuration ties them.

    The input weights are frozen.
    """
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().flip(0).clone())
    model.get_input_embeddings().weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("model", [bert().train(), untied(bert()).eval()], ids=["train", "untied"])
@pytest.mark.parametrize(
    "energy",
    [
        None,
        tiny_gpt2(n_positions=20),
        untied(tiny_gpt2(n_positions=20)).train(),
    ],
)
def test_custom_generate_leaves_a_model_and_its_energy_as_they_are(model, energy):
    def text(n):
        return custom_generate(
            model,
            IDS,
            mask_token_id=MASK,
            energy_model=energy,
            max_new_tokens=3,
            max_denoising_steps=5,
            generator=seed(n),
        )

    parts = [model] if energy is None else [model, energy]
    before = [state_of(part) for part in parts]
    rng_state = torch.get_rng_state()
    normal = torch.nn.init.normal_

    expected = [text(n) for n in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(text, range(12)))
    assert all(map(torch.equal, found, expected))

    for part, state in zip(parts, before, strict=True):
        assert_unchanged(part, state)
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert torch.nn.init.normal_ is normal


def test_the_last_call_that_needs_a_module_gives_it_its_mode_back():
    part = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    one = torch.nn.ModuleList([part])
    two = torch.nn.ModuleList([part, torch.nn.Dropout()])
    two[1].eval()

    first = evaluating(one)
    second = evaluating(two, one)
    first.__enter__()
    second.__enter__()
    assert not any(module.training for module in (*one.modules(), *two.modules()))

    # the second call still needs the part that both have
    first.__exit__(None, None, None)
    assert not part.training
    assert not part[1].training

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
    assert all(module.training for module in model.modules())

    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not model.training
        1 / 0  # noqa: B018
    assert all(module.training for module in model.modules())
