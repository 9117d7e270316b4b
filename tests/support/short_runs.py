"""Runs of twelve steps of `edlm train-denoiser`, with a checkpoint after every four."""

from edlm_hf.commands.train import train_denoiser

FLAGS = """--normalize_text8 --style crop --start_token --length 16 --hidden_dim 8 --cond_dim 4 --n_blocks 1 --n_heads 2
--max_steps 12 --save_steps 4 --eval_blocks 4 --ema_decay 0.9 --dropout 0.1 --use_cpu --report_to none
--disable_tqdm true --learning_rate 1e-2""".split()


def train(text, folder, *more) -> dict:
    return train_denoiser(["--dataset", str(text), "--output_dir", str(folder), *FLAGS, *map(str, more)])
