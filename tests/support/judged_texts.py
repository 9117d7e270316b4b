"""Texts of numbers, and their generative perplexity by a tiny judge."""

from published import tiny_gpt2
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from edlm_hf.evaluation.perplexity import generative_perplexity

END = 11  # of tiny_gpt2, which is also its start token


def numbers_tokenizer(size=12, end=END):
    """Words w0, w1, ... are tokens 0, 1 and so on. One of them is both start and end of text, as in GPT-2."""
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=f"w{end}", bos_token=f"w{end}")


def as_text(row):
    return " ".join(f"w{token}" for token in row)


def judged(rows, judge=None, **options):
    return generative_perplexity(
        [as_text(row) for row in rows],
        judge or tiny_gpt2(),
        numbers_tokenizer(),
        **options,
    )
