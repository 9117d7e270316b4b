"""The trainer of draft heads: where it cuts, its loss by hand, what it learns, and what it refuses."""

import copy

import numpy as np
import pytest
import torch
from published import tiny_causal, tiny_denoiser, tiny_gpt2
from torch import nn
from training import arguments, blocks, logged, random_blocks, trainer_of
from transformers.modeling_outputs import CausalLMOutput

from edlm_hf import EDLMForMaskedDiffusion, MDLMConfig
from edlm_hf.training import DraftArguments, DraftTrainer
from edlm_hf.training.collators import CONTEXT_LABEL
from edlm_hf.training.objectives import drafts_after

MASK = 12


def flags(text: str) -> list[bool]:
    return [letter == "x" for letter in text]


@pytest.mark.parametrize(
    ("modelled", "draft_length", "masked", "drafted"),
    [
        # Every cut of a whole row, each with a quarter of the uniforms
        ("xxxxx", 3, ["xxxxx", ".xxxx", "..xxx", "...xx"], [".xx..", "..xx.", "...xx", "....x"]),
        ("xxxxx", 2, ["xxxxx", ".xxxx", "..xxx", "...xx"], [".x...", "..x..", "...x.", "....x"]),
        # A prompt before, padding after
        ("..xxx..", 9, ["..xxxxx", "...xxxx"], ["...xx..", "....x.."]),
        # A context token inside the text: a round needs two tokens, and context is not counted
        ("xx.xxx", 4, ["xxxxxx", "...xxx", "....xx"], [".x.x..", "....xx", ".....x"]),
        ("x.x.x", 4, ["....."], ["....."]),
    ],
)
def test_a_round_begins_anywhere_before_a_token_that_counts(modelled, draft_length, masked, drafted):
    count = len(masked)
    for cut in range(count):
        for within in (0.0, 0.5, 1 - 1e-9):
            uniforms = torch.tensor([(cut + within) / count], dtype=torch.float64)
            found = drafts_after(torch.tensor([flags(modelled)]), uniforms, draft_length)
            assert [x[0].tolist() for x in found] == [flags(masked[cut]), flags(drafted[cut])]


@torch.no_grad()
def test_the_loss_is_that_of_the_corrected_proposal(tmp_path):
    """By hand, one row and one draft at a time."""
    trainer = trainer_of("drafts", tmp_path, random_blocks(8), draft_length=3)
    denoiser = trainer.model.eval()
    head = denoiser.draft_head
    clean = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
    inputs, uniforms = {"input_ids": clean, "labels": clean}, torch.tensor([0.5, 0.9])
    found = trainer.measure(denoiser, inputs, uniforms)
    nats, num_drafts = found["nll"], found["tokens"]
    without_head = trainer.measure(denoiser, inputs, uniforms, with_head=False)["nll"]
    assert torch.equal(found["loss"], nats)

    # Five cuts of six tokens: the uniforms say 2 and 4
    embedding, project = denoiser.get_input_embeddings(), denoiser.projection()
    for row, cut in enumerate([2, 4]):
        noisy = clean[row : row + 1].clone()
        noisy[:, cut:] = MASK
        hidden = denoiser.hidden_at(noisy == MASK, noisy)

        of_head, of_denoiser = [], []
        for i in range(cut + 1, min(cut + 3, 6)):
            state, token = hidden[i - cut, None], clean[row, i]
            before = embedding(clean[row, [i - 1, i - 2]])
            for found, states in ((of_head, head(state, before[None])), (of_denoiser, state)):
                logits = project(states)[0]
                logits[MASK] = -torch.inf
                found.append(float(-logits.log_softmax(-1)[token]))

        assert nats[row] == pytest.approx(np.mean(of_head), abs=1e-5)
        assert without_head[row] == pytest.approx(np.mean(of_denoiser), abs=1e-5)
        assert num_drafts[row] == len(of_head)


@torch.no_grad()
def test_the_loss_of_a_target_is_how_often_it_refuses(tmp_path):
    """By hand, one draft at a time: sum of (p - q)+, and 0.3 KL(p || q)."""
    causal = tiny_causal()
    trainer = trainer_of("drafts", tmp_path, random_blocks(8), draft_length=3, given={"target": causal})
    denoiser = trainer.model.eval()
    clean = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
    inputs, uniforms = {"input_ids": clean, "labels": clean}, torch.tensor([0.5, 0.9])
    found = trainer.measure(denoiser, inputs, uniforms)

    embedding, project = denoiser.get_input_embeddings(), denoiser.projection()
    p_of_rows = causal(input_ids=clean).logits
    for row, cut in enumerate([2, 4]):
        noisy = clean[row : row + 1].clone()
        noisy[:, cut:] = MASK
        hidden = denoiser.hidden_at(noisy == MASK, noisy)

        refused, divergences = [], []
        for i in range(cut + 1, min(cut + 3, 6)):
            before = embedding(clean[row, [i - 1, i - 2]])
            q_logits = project(denoiser.draft_head(hidden[i - cut, None], before[None]))[0]
            p_logits = p_of_rows[row, i - 1].clone()
            q_logits[MASK:] = p_logits[MASK:] = -torch.inf
            p, q = p_logits.softmax(-1)[:MASK], q_logits.softmax(-1)[:MASK]
            refused.append(float((p - q).clamp_min(0).sum()))
            divergences.append(float((p * (p / q).log()).sum()))

        assert found["refused"][row] == pytest.approx(np.mean(refused), abs=1e-5)
        loss = np.mean(refused) + 0.3 * np.mean(divergences)
        assert found["loss"][row] == pytest.approx(loss, abs=1e-5)


@torch.no_grad()
def test_the_first_draft_learns_at_the_cut_and_its_own_expert_before_it(tmp_path):
    """By hand: the draft at the cut after the state two columns before, and C alone from the third token on."""
    causal = tiny_causal()
    denoiser = tiny_denoiser(draft_width=2, draft_target_dim=16)
    trainer = trainer_of("drafts", tmp_path, random_blocks(8), None, denoiser, {"target": causal}, draft_length=3)
    clean = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [2, 6, 5, 3, 5, 8, 1]])
    labels = clean.clone()
    labels[:, 0] = CONTEXT_LABEL
    inputs, uniforms = {"input_ids": clean, "labels": labels}, torch.tensor([0.5, 0.9])
    found = trainer.measure(denoiser.eval(), inputs, uniforms)
    without_head = trainer.measure(denoiser, inputs, uniforms, with_head=False)

    # The drafts after the first one do not know it. It begins after two tokens
    trainer.learns_first = False
    labels[:, :2] = CONTEXT_LABEL
    later = trainer.measure(denoiser, inputs, uniforms)
    torch.testing.assert_close(found["refused"], later["refused"])
    assert torch.equal(found["tokens"], later["tokens"])

    def losses(hidden, row, i):
        """Of the token i of a row, by the hidden state (1, H) of its draft."""
        p_logits, q_logits = causal(input_ids=clean).logits[row, i - 1].clone(), denoiser.projection()(hidden)[0]
        q_logits[MASK:] = p_logits[MASK:] = -torch.inf
        p, q = p_logits.softmax(-1)[:MASK], q_logits.softmax(-1)[:MASK]
        refused = float((p - q).clamp_min(0).sum())
        return refused, refused + 0.3 * float((p * (p / q).log()).sum())

    states, embedding = causal.backbone(input_ids=clean).last_hidden_state, denoiser.get_input_embeddings()
    for row, cut in enumerate([4, 5]):
        noisy = clean[row : row + 1].clone()
        noisy[:, cut:] = MASK
        hidden = denoiser.hidden_at(noisy == MASK, noisy)[:1]
        before = embedding(clean[row, [cut - 1, cut - 2]])[None]
        of_first = losses(denoiser.first_draft(hidden, states[row, cut - 2, None], before), row, cut)

        alone = []
        for i in range(2, cut):
            before = embedding(clean[row, [i - 1, i - 2]])[None]
            alone.append(losses(denoiser.first_draft.of_target(states[row, i - 2, None], before), row, i)[1])

        assert found["first_refused"][row] == pytest.approx(of_first[0], abs=1e-5)
        assert without_head["first_refused"][row] == pytest.approx(losses(hidden, row, cut)[0], abs=1e-5)
        expected = float(later["loss"][row]) + of_first[1] + np.mean(alone)
        assert found["loss"][row] == pytest.approx(expected, abs=1e-5)


def test_a_first_draft_that_reads_its_target_is_refused_less(tmp_path):
    causal = tiny_causal(bos_token_id=0)
    with torch.no_grad():
        causal.get_output_embeddings().weight.mul_(4)
    denoiser = tiny_denoiser(draft_width=64)
    denoiser.add_first_draft(16)
    rows = random_blocks(600)
    options = {"max_steps": 150, "per_device_train_batch_size": 32, "learning_rate": 0.01, "ema_decay": 0.9}
    trainer = trainer_of("drafts", tmp_path, rows, random_blocks(200), denoiser, {"target": causal}, **options)
    trainer.train()
    found = trainer.evaluate()

    error = found["eval_first_refused_change_standard_error"]
    assert found["eval_first_refused_change"] < -0.1 - 4 * error
    changed = {name for name, weight in denoiser.named_parameters() if weight.requires_grad}
    assert changed == {f"draft_head.{name}" for name, _ in denoiser.draft_head.named_parameters()} | {
        f"first_draft.{name}" for name, _ in denoiser.first_draft.named_parameters()
    }


@pytest.mark.parametrize("target", [None, lambda: tiny_gpt2(vocab_size=13)])
def test_without_states_to_read_a_first_draft_stays_as_it_is(tmp_path, target):
    denoiser = tiny_denoiser(draft_width=2, draft_target_dim=16)
    before = copy.deepcopy(denoiser.first_draft.state_dict())
    given = {} if target is None else {"target": target()}
    trainer = trainer_of("drafts", tmp_path, random_blocks(32), random_blocks(8), denoiser, given, max_steps=3)
    trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in denoiser.first_draft.state_dict().items())
    assert "eval_first_refused" not in trainer.evaluate()


def test_a_target_with_states_of_another_size_is_refused(tmp_path):
    denoiser = tiny_denoiser(draft_width=2, draft_target_dim=7)
    with pytest.raises(
        ValueError, match=r"of 7 numbers, but the target, a MDLMForCausalLM, has .* add_first_draft\(16\)"
    ):
        trainer_of("drafts", tmp_path, random_blocks(8), None, denoiser, {"target": tiny_causal()})


def test_a_target_of_fewer_tokens_is_refused(tmp_path):
    target = tiny_causal(vocab_size=6, mask_token_id=5)
    with pytest.raises(ValueError, match="can emit ids up to 11, but the autoregressive energy model has only 6 rows"):
        trainer_of("drafts", tmp_path, random_blocks(8), given={"target": target})


def test_a_new_head_has_the_loss_of_none_and_training_changes_the_head_alone(tmp_path):
    denoiser = tiny_denoiser(dropout=0.5)
    denoiser.add_draft_head(2)
    start = copy.deepcopy(denoiser.draft_head)
    before = {name: weight.clone() for name, weight in denoiser.state_dict().items()}
    trainer = trainer_of("drafts", tmp_path, random_blocks(32), random_blocks(8), denoiser, max_steps=3)
    first = trainer.evaluate()
    assert first["eval_loss"] == first["eval_nll_without_head"] and first["eval_nll_change"] == 0

    trainer.train()
    changed = {name for name, weight in denoiser.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {"draft_head.enter.weight", "draft_head.enter.bias", "draft_head.leave.weight"}

    # The denoiser is frozen in eval mode: without its dropout the losses are the same
    plain = tiny_denoiser()
    plain.add_draft_head(2)
    plain.draft_head.load_state_dict(start.state_dict())
    other = trainer_of("drafts", tmp_path, random_blocks(32), None, plain, max_steps=3)
    other.train()
    assert logged(other) == pytest.approx(logged(trainer), abs=1e-6)


def chain(seed: int = 0) -> np.ndarray:
    """The chances T[u, v] that token v follows u, each of a few likely ones."""
    weights = np.exp(2 * np.random.default_rng(seed).normal(size=(MASK, MASK)))
    return weights / weights.sum(-1, keepdims=True)


class MarkovLM(nn.Module):
    """The chain as a causal language model, whose first token is uniform."""

    def __init__(self, follows: np.ndarray):
        super().__init__()
        self.config = MDLMConfig(
            vocab_size=MASK + 2,
            mask_token_id=MASK,
            causal=True,
            bos_token_id=MASK + 1,
        )
        logits = torch.zeros(MASK + 2, MASK + 2)
        logits[:MASK, :MASK] = torch.tensor(np.log(follows))
        self.register_buffer("table", logits)

    def forward(self, input_ids, attention_mask=None):
        return CausalLMOutput(logits=self.table[input_ids])


def accepted_drafts(denoiser, follows) -> float:
    network = EDLMForMaskedDiffusion.from_components(denoiser, MarkovLM(follows), mask_token_id=MASK)
    out = network.generate(
        torch.full((400, 12), MASK),
        sampler="speculative",
        draft_length=4,
        generator=torch.Generator().manual_seed(0),
        return_dict_in_generate=True,
    )
    return float(out.num_accepted_drafts.sum() / out.num_denoiser_calls.sum())


def test_a_markov_chain_is_learnt_to_its_entropy_and_more_drafts_are_accepted(tmp_path):
    """The denoiser has random weights: all that the head can learn is who follows whom."""
    follows = chain()
    numbers = np.random.default_rng(1)
    texts = [numbers.integers(0, MASK, 2000)]
    for _ in range(11):
        draws = numbers.random((2000, 1))
        texts.append((draws > follows[texts[-1]].cumsum(-1)).sum(-1).clip(max=MASK - 1))

    rows = np.stack(texts, axis=1)

    torch.manual_seed(0)
    denoiser = tiny_denoiser(vocab_size=MASK + 2, mask_token_id=MASK, absent_token_ids=[[13, 13]])
    without = accepted_drafts(denoiser, follows)
    denoiser.add_draft_head(64)
    options = {
        "max_steps": 150,
        "per_device_train_batch_size": 64,
        "learning_rate": 0.01,
        "ema_decay": 0.9,
    }
    trainer = trainer_of(
        "drafts",
        tmp_path,
        blocks(rows[:1800]),
        blocks(rows[1800:]),
        denoiser,
        **options,
    )
    trainer.train()

    # The entropy of the chain at the tokens before the last one of a row
    entropies = -(follows * np.log(follows)).sum(-1)
    entropy = entropies[rows[1800:, :-1]].mean()
    measured = trainer.evaluate()
    assert abs(measured["eval_loss"] - entropy) < 0.05 + 4 * measured["eval_loss_standard_error"]
    assert measured["eval_nll_change"] < -0.5
    with trainer.averaged_weights():
        assert accepted_drafts(denoiser, follows) > without + 0.5

    # The same from the chain itself, as the target that is to accept
    denoiser.add_draft_head(64)
    given = {"target": MarkovLM(follows)}
    trainer = trainer_of(
        "drafts", tmp_path / "target", blocks(rows[:1800]), blocks(rows[1800:]), denoiser, given, **options
    )
    trainer.train()
    refused = trainer.evaluate()

    assert refused["eval_refused"] < 0.05 < 0.3 < refused["eval_refused_without_head"]
    with trainer.averaged_weights():
        assert accepted_drafts(denoiser, follows) > without + 0.5


def test_what_has_no_head_cannot_be_trained(tmp_path):
    for model in (
        tiny_denoiser(),
        tiny_causal(),
        EDLMForMaskedDiffusion.from_components(tiny_denoiser(draft_width=2)),
    ):
        with pytest.raises(ValueError, match="no draft head to train.*add_draft_head"):
            DraftTrainer(model, arguments(tmp_path, DraftArguments), train_dataset=random_blocks(8))
    with pytest.raises(ValueError, match="draft_length is 1, but it must be at least 2"):
        arguments(tmp_path, DraftArguments, draft_length=1)
    with pytest.raises(ValueError, match="neftune_noise_alpha is 5"):
        arguments(tmp_path, DraftArguments, neftune_noise_alpha=5)
