"""Trainers of the denoiser and of the autoregressive baseline: known minima, models that are taken, interruptions."""

import math
import shutil

import numpy as np
import pytest
import torch
from exact import MASK, SEQUENCES, TableDenoiser, V, marginals, random_joint
from published import tiny_config, tiny_gpt2
from torch import nn
from training import arguments, blocks, denoiser_trainer, logged, mean_and_error, random_blocks, same
from transformers import AutoModelForCausalLM, MraConfig, MraForMaskedLM, TrainingArguments

from edlm_hf import EDLMForMaskedDiffusion, MDLMConfig, MDLMForCausalLM, MDLMForMaskedLM
from edlm_hf.evaluation import autoregressive_nll
from edlm_hf.training import AutoregressiveTrainer, last_complete_checkpoint, trainer_denoiser


class Exact(TableDenoiser):
    """The exact posterior marginals of q_0, whose bound is the entropy. An unused weight keeps the optimiser happy."""

    def __init__(self):
        super().__init__(marginals(random_joint()))
        self.unused = nn.Parameter(torch.zeros(()))
        self.config = MDLMConfig(
            vocab_size=V + 1,
            mask_token_id=MASK,
            hidden_dim=2,
            n_heads=1,
            n_blocks=1,
        )

    def forward(self, input_ids, attention_mask=None, timesteps=None):
        output = super().forward(input_ids, attention_mask)
        output.logits = output.logits + 0 * self.unused
        return output


def losses_of_the_exact_model(folder, steps=150, **changes):
    rows = SEQUENCES[np.random.default_rng(0).choice(81, size=6000, p=random_joint())]
    trainer = denoiser_trainer(
        folder, Exact(), blocks(rows), max_steps=steps, per_device_train_batch_size=40, max_grad_norm=0, **changes
    )
    trainer.train()
    return mean_and_error(logged(trainer))


def entropy_per_token():
    joint = random_joint()
    return float(-(joint * np.log(joint)).sum()) / 4


@pytest.mark.parametrize("importance_sampling", [False, True])
def test_the_training_loss_of_the_exact_model_is_the_entropy(tmp_path, importance_sampling):
    loss, error = losses_of_the_exact_model(tmp_path, importance_sampling=importance_sampling)
    assert error < 0.02 and abs(loss - entropy_per_token()) < 4 * error


def test_a_weight_of_one_is_another_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_denoiser, "bound_weight", lambda schedule, t: torch.ones_like(t))
    loss, error = losses_of_the_exact_model(tmp_path)
    assert abs(loss - entropy_per_token()) > 10 * error


def test_a_shifted_label_is_another_loss(tmp_path, monkeypatch):
    right = trainer_denoiser.masked_token_losses
    shifted = lambda logits, clean, *rest: right(logits, clean.roll(1, -1), *rest)  # noqa: E731
    monkeypatch.setattr(trainer_denoiser, "masked_token_losses", shifted)
    loss, error = losses_of_the_exact_model(tmp_path)
    assert loss - entropy_per_token() > 5 * error


def test_thirty_two_blocks_are_learnt_to_the_entropy_of_choosing_one(tmp_path):
    """The bound of the exact posterior is the entropy, log 32 nats per block of six tokens."""
    torch.manual_seed(0)
    ids = np.repeat(np.arange(32)[:, None], 6, axis=1)
    model = MDLMForMaskedLM(tiny_config(vocab_size=33, hidden_dim=32, n_heads=4, n_blocks=1))
    trainer = denoiser_trainer(
        tmp_path, model, blocks(np.tile(ids, (4, 1))), blocks(ids), max_steps=250, per_device_train_batch_size=128,
        learning_rate=1e-2, lr_scheduler_type="cosine", warmup_steps=50, ema_decay=0.98, eval_num_samples=32,
    )  # fmt: skip
    trainer.train()
    metrics, minimum = trainer.evaluate(), math.log(32) / 6

    assert minimum * 0.98 < metrics["eval_loss"] < minimum * 1.03
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    assert metrics["eval_bits_per_token"] == pytest.approx(metrics["eval_loss"] / math.log(2))
    assert 0 < metrics["eval_loss_standard_error"] < 0.02


def test_models_and_arguments_of_another_kind_are_refused(tmp_path):
    causal = MDLMForCausalLM(tiny_config(causal=True))
    with pytest.raises(ValueError, match="causal language model.*cannot fill masks"):
        denoiser_trainer(tmp_path, causal)
    with pytest.raises(ValueError, match="sees the token that it is to predict"):
        AutoregressiveTrainer(MDLMForMaskedLM(tiny_config()), arguments(tmp_path))
    with pytest.raises(ValueError, match="args is TrainingArguments, but AutoregressiveTrainer takes EDLMTrain"):
        AutoregressiveTrainer(causal, arguments(tmp_path, TrainingArguments))


def new_composite(**changes):
    """A composite whose denoiser has a head of zeros, as it starts."""
    return EDLMForMaskedDiffusion.from_components(
        MDLMForMaskedLM(
            tiny_config(
                model_length=32,
                **changes,
            )
        )
    )


NEW_MODELS = {
    "composite": new_composite,
    "composite with time": lambda: new_composite(time_conditioning=True),
    # Reads texts of whole blocks of 32 tokens only
    "mra": lambda: MraForMaskedLM(
        MraConfig(
            vocab_size=13,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=34,
            mask_token_id=12,
        )
    ),
}


@pytest.mark.parametrize("name", NEW_MODELS)
def test_a_new_composite_and_a_model_of_others_can_be_trained(tmp_path, name):
    trainer = denoiser_trainer(tmp_path, NEW_MODELS[name](), random_blocks(8, length=32), max_steps=1)
    trainer.train()
    assert math.isfinite(logged(trainer)[0])


def with_code_from_elsewhere():
    return EDLMForMaskedDiffusion.from_components(Exact(), mask_token_id=MASK)


def with_undeclared_attention():
    """A GPT-2 that was made bidirectional, of which its configuration says nothing."""
    model = tiny_gpt2(vocab_size=13, mask_token_id=12)
    for block in model.transformer.h:
        block.attn.is_causal = False
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_code_from_elsewhere, "Exact, whose code is not part of this package"),
        (with_undeclared_attention, "say so there .config.is_causal = False"),
    ],
)
def test_a_model_whose_checkpoints_could_not_be_loaded_is_refused_before_the_training(
    tmp_path,
    make,
    message,
):
    for save in ("steps", "epoch"):
        with pytest.raises(ValueError, match=message):
            denoiser_trainer(tmp_path, make(), save_strategy=save)
    denoiser_trainer(tmp_path, make(), save_strategy="no")


def test_special_tokens_are_never_masked_and_never_counted(tmp_path):
    seen = []

    class Watched(MDLMForMaskedLM):
        def forward(self, input_ids, **kwargs):
            seen.append(input_ids)
            return super().forward(input_ids, **kwargs)

    rows = np.random.default_rng(0).integers(0, 10, (16, 12))
    rows[:, 0], rows[:, 5] = 11, 10
    model = Watched(tiny_config(bos_token_id=11, eos_token_id=10))
    denoiser_trainer(tmp_path, model, blocks(rows), max_steps=4).train()
    ids = torch.cat(seen)
    assert (ids[:, 0] == 11).all() and (ids[:, 5] == 10).all() and (ids == 12).any()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_continues_bitwise(tmp_path, accumulation):
    """With dropout, shuffled rows, several epochs and an average."""
    options = {
        "save_strategy": "steps", "save_steps": 7, "gradient_accumulation_steps": accumulation,
        "max_steps": 11, "lr_scheduler_type": "cosine",
    }  # fmt: skip

    def start():
        torch.manual_seed(0)
        return denoiser_trainer(tmp_path, MDLMForMaskedLM(tiny_config(dropout=0.1)), **options)

    whole = start()
    whole.train()
    (tmp_path / "checkpoint-9").mkdir()  # a run that was killed while it saved
    shutil.rmtree(tmp_path / "checkpoint-11")
    resumed = start()
    checkpoint = last_complete_checkpoint(tmp_path)
    assert checkpoint.endswith("checkpoint-7")

    resumed.train(resume_from_checkpoint=checkpoint)
    assert logged(resumed) == logged(whole) and len(logged(whole)) == 11
    assert same(resumed.model, whole.model)
    assert all(torch.equal(a, b) for a, b in zip(resumed.average.shadow, whole.average.shadow, strict=True))


def test_the_autoregressive_model_trains_and_evaluates_by_the_same_trainer(tmp_path):
    torch.manual_seed(0)
    rows = np.random.default_rng(0).integers(0, 2, (64, 12))
    rows[:, 0] = 11
    rows[:, 7] = 5
    args = arguments(
        tmp_path,
        max_steps=100,
        learning_rate=1e-2,
        ema_decay=0.9,
        save_strategy="steps",
        save_steps=100,
    )
    model, rows = MDLMForCausalLM(tiny_config(causal=True, bos_token_id=11)), blocks(rows)
    trainer = AutoregressiveTrainer(model, args, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    metrics = trainer.evaluate()
    # One token of 11 is known
    assert metrics["eval_loss"] == pytest.approx(math.log(2) * 10 / 11, abs=0.05)
    assert np.mean(logged(trainer)[-10:]) == pytest.approx(metrics["eval_loss"], abs=0.05)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-100")
    exact = autoregressive_nll(loaded, np.stack(rows["input_ids"]))
    assert metrics["eval_loss"] == pytest.approx(exact.value, abs=1e-6)
