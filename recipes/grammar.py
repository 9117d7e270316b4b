"""Train the two tiny networks of the demo's small language: a BERT and a GPT-2 (a minute on one core).

    python recipes/grammar.py --output edlm-grammar

They see 500 of the 1,440 sentences.
"""

import argparse
import random
import tempfile
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, set_seed

import edlm_hf
from edlm_hf.demo.grammar import grammar_tokenizer, sentences
from edlm_hf.training import (
    AutoregressiveTrainer,
    EDLMTrainingArguments,
    MaskedDiffusionArguments,
    MaskedDiffusionTrainer,
)

NUM_SEEN = 500


def train(trainer_class, model, arguments_class, rows: list[dict], max_steps: int) -> None:
    """Train a model on the seen rows and print its loss on the others."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = arguments_class(
            folder,
            max_steps=max_steps,
            per_device_train_batch_size=64,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            ema_decay=0,
            save_strategy="no",
            use_cpu=True,
            report_to="none",
        )
        trainer = trainer_class(model, arguments, train_dataset=rows[:NUM_SEEN], eval_dataset=rows[NUM_SEEN:700])
        trainer.train()
        print(trainer.evaluate())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("edlm-grammar"), help="The folder of the model.")
    output = parser.parse_args().output

    # 1. Sentences in a random order, behind the start token
    tokenizer = grammar_tokenizer()
    language = sentences()
    random.Random(0).shuffle(language)
    rows = [{"input_ids": [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]} for text in language]

    # 2. The two networks, each trained by its own loss
    set_seed(0)
    known = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    bert = BertForMaskedLM(
        BertConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=16,
            hidden_dropout_prob=0,
            attention_probs_dropout_prob=0,
            **known,
        )
    )
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            n_embd=64,
            n_layer=2,
            n_head=4,
            n_positions=16,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            eos_token_id=None,
            **known,
        )
    )
    denoiser = edlm_hf.EDLMForMaskedDiffusion.from_components(bert, tokenizer=tokenizer)
    train(MaskedDiffusionTrainer, denoiser, MaskedDiffusionArguments, rows, max_steps=300)
    train(AutoregressiveTrainer, gpt2, EDLMTrainingArguments, rows, max_steps=250)

    # 3. One model of both, in half the bytes. It computes in float32, which every processor is fast in
    model = edlm_hf.EDLMForMaskedDiffusion.from_components(
        bert, gpt2, energy_type="ar", tokenizer=tokenizer, energy_tokenizer=tokenizer
    )
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main()
