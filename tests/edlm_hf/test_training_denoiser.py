"""Trainers of the denoiser and of the autoregressive baseline: known minima, averages, checkpoints, interruptions."""

import math
import shutil

import numpy as np
import pytest
import torch
from exact import MASK, SEQUENCES, TableDenoiser, V, marginals, random_joint
from published import tiny_config, tiny_gpt2
from torch import nn
from training import arguments, blocks, denoiser_trainer, logged, mean_and_error, random_blocks, same
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    ByT5Tokenizer,
    MraConfig,
    MraForMaskedLM,
    TrainingArguments,
)

from edlm_hf import EDLMForMaskedDiffusion, MDLMConfig, MDLMForCausalLM, MDLMForMaskedLM
from edlm_hf.evaluation import autoregressive_nll, nelbo
from edlm_hf.tokenization import add_mask_token, text8_tokenizer
from edlm_hf.training import (
    AutoregressiveTrainer,
    DataCollatorForBlocks,
    ExponentialMovingAverage,
    last_complete_checkpoint,
    trainer_denoiser,
)
from edlm_hf.training.row_evaluation import is_character_level

# --------------------------------------------------------------------------------------------------------- right target


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


# ------------------------------------------------------------------------------------------------------------- collator


def test_blocks_of_small_integers_become_int64_with_padding_and_labels():
    config = tiny_config(bos_token_id=11, eos_token_id=[10], pad_token_id=9)
    rows = [
        {"input_ids": np.array([11, 3, 4, 10], np.uint8)},
        {"input_ids": [11, 5], "attention_mask": [1, 1]},
    ]
    batch = DataCollatorForBlocks(config)(rows)
    assert batch["input_ids"].tolist() == [[11, 3, 4, 10], [11, 5, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 3, 4, -100], [-100, 5, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert {x.dtype for x in batch.values()} == {torch.int64}


def test_without_special_ids_every_token_is_modelled_and_full_blocks_have_no_attention_mask():
    batch = DataCollatorForBlocks(tiny_config())([{"input_ids": [0, 1, 0]}])
    assert batch["labels"].tolist() == [[0, 1, 0]] and "attention_mask" not in batch


def test_texts_of_a_causal_model_with_a_start_token_begin_with_it():
    collate = DataCollatorForBlocks(tiny_config(causal=True, bos_token_id=11))
    collate([{"input_ids": [11, 1]}])
    with pytest.raises(ValueError, match="begins with token 1.*start token 11"):
        collate([{"input_ids": [11, 1]}, {"input_ids": [1, 2]}])


def test_rows_that_no_text_of_the_model_can_have_are_refused():
    collate = DataCollatorForBlocks(tiny_config(pad_token_id=12))
    collate([{"input_ids": [1, 2]}, {"input_ids": [3]}])  # padding may be the mask token
    for row, message in (
        ([1, 12], "mask token 12"),
        ([1, 13], "ids from 1 to 13"),
        ([-1, 2], "ids from -1 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            collate([{"input_ids": row}])


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


# ------------------------------------------------------------------------------------------------ averaging, evaluation


def test_the_average_warms_up_and_then_decays():
    model = nn.Linear(1, 1, bias=False)
    average, weights = ExponentialMovingAverage(0.5), [1.0, 2.0, 4.0, 8.0]
    state = lambda step: type("State", (), {"global_step": step})  # noqa: E731
    nn.init.constant_(model.weight, weights[0])
    average.on_train_begin(None, state(0), None, model=model)
    expected = weights[0]

    for step, weight in enumerate(weights[1:], 1):
        nn.init.constant_(model.weight, weight)
        average.on_step_end(None, state(step), None, model=model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight

    with average.applied(model):
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == weights[-1]
    with pytest.raises(ValueError, match=r"ema_decay is 1.*\[0, 1\)"):
        ExponentialMovingAverage(1)


def test_a_checkpoint_holds_the_averaged_model_and_agrees_with_the_evaluation(tmp_path):
    rows = random_blocks(8)
    trainer = denoiser_trainer(
        tmp_path,
        rows=rows,
        eval_rows=rows,
        save_strategy="steps",
        save_steps=10,
    )
    trainer.train()
    metrics = trainer.evaluate()
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "checkpoint-10").eval()
    assert not same(loaded, trainer.model)
    with trainer.averaged_weights():
        assert same(loaded, trainer.model)

    bound = nelbo(loaded, np.stack(rows["input_ids"]), num_samples=2, seed=trainer.args.seed)
    assert metrics["eval_loss"] == pytest.approx(bound.value, abs=1e-6)
    trainer.save_model(tmp_path / "final")
    assert same(loaded, AutoModelForMaskedLM.from_pretrained(tmp_path / "final"))


def test_evaluation_reaches_the_last_row_where_training_drops_incomplete_batches(tmp_path):
    rows = random_blocks(11)
    trainer = denoiser_trainer(
        tmp_path,
        rows=rows,
        eval_rows=rows,
        dataloader_drop_last=True,
        eval_num_samples=1,
    )
    found = trainer.predict(rows).predictions
    assert len(found) == 11 and (found[:, trainer.measured.index("tokens")] == 12).all()
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    assert trainer.args.dataloader_drop_last


def test_without_an_average_the_present_weights_are_evaluated_and_saved(tmp_path):
    trainer = denoiser_trainer(tmp_path, ema_decay=0, save_strategy="steps", save_steps=10)
    trainer.train()
    assert same(AutoModelForMaskedLM.from_pretrained(tmp_path / "checkpoint-10"), trainer.model)


def test_the_best_model_is_the_averaged_one(tmp_path):
    rows = random_blocks(8)
    trainer = denoiser_trainer(
        tmp_path, rows=rows, eval_rows=rows, save_strategy="steps", save_steps=5, eval_strategy="steps", eval_steps=5,
        load_best_model_at_end=True, metric_for_best_model="loss",
    )  # fmt: skip
    trainer.train()
    best = AutoModelForMaskedLM.from_pretrained(trainer.state.best_model_checkpoint)
    assert same(best, trainer.model)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric)


def test_bits_are_per_character_where_tokens_are_characters():
    assert is_character_level(text8_tokenizer())
    assert not is_character_level(None)
    words = add_mask_token(text8_tokenizer(start_token=False))
    words.add_tokens(["ab"])
    assert not is_character_level(words)


# --------------------------------------------------------------------------------------------------------- interruption


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


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulated_steps_are_those_of_the_whole_batch(tmp_path, accumulation):
    runs = []
    for parts in (1, accumulation):
        trainer = denoiser_trainer(
            tmp_path, per_device_train_batch_size=8 // parts, gradient_accumulation_steps=parts, max_steps=6
        )
        trainer.train()
        runs.append((logged(trainer), logged(trainer, "grad_norm")))

    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-5)
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-4)


# ------------------------------------------------------------------------------------------------------- autoregressive


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


def test_bits_are_not_per_character_where_tokens_are_bytes():
    bytes_of_text = ByT5Tokenizer()
    assert len(bytes_of_text.tokenize("é")) == 2
    assert not is_character_level(bytes_of_text)
