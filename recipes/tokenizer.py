"""Train the sub-word tokenizer of the checkpoints that ship (half a minute on one core).

python recipes/tokenizer.py --texts books/train.parquet --output books-tokenizer
"""

import argparse
from collections.abc import Iterator

from edlm_hf.data import load_corpus
from edlm_hf.tokenization import train_subword_tokenizer

# Two thousand characters of every eight: a quarter of the books gives the same tokens sooner
PIECE = 2_000
STRIDE = 8_000


def pieces(path: str) -> Iterator[str]:
    """Parts of the texts of a corpus."""
    for text in load_corpus(path, "train")["text"]:
        for first in range(0, len(text), STRIDE):
            yield text[first : first + PIECE]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", default="books/train.parquet", help="A corpus with a column `text`.")
    parser.add_argument("--output", default="books-tokenizer", help="The folder of the tokenizer.")
    parser.add_argument("--vocab-size", type=int, default=4096, help="Tokens, special ones included.")
    parser.add_argument("--length", type=int, default=256, help="Longest row, in tokens.")
    args = parser.parse_args()

    tokenizer = train_subword_tokenizer(pieces(args.texts), args.vocab_size, args.length)
    tokenizer.save_pretrained(args.output)
    print(f"{args.output}: {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
