"""A small language whose sentences can be counted: where an energy helps, nobody has to guess.

A sentence has ten words, six of which must agree: the person, the word before it, two verbs and two
possessives.

>>> "the queen opens her map and sits in her tower" in sentences()
True
"""

import itertools

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Article, possessive and number (0: one, 1: several) of the persons
PERSONS = {
    ("the", "his", 0): ("king", "monk", "boy"),
    ("the", "her", 0): ("queen", "nun", "girl"),
    ("some", "their", 1): ("kings", "queens", "monks", "nuns"),
}
FIRST_VERBS = (("opens", "open"), ("hides", "hide"), ("reads", "read"), ("burns", "burn"))
SECOND_VERBS = (("waits", "wait"), ("sits", "sit"), ("sleeps", "sleep"), ("sings", "sing"))
THINGS = ("letter", "book", "map")
PLACES = ("garden", "tower", "house")

NUM_WORDS = 10


def sentences() -> list[str]:
    """All 1,440 sentences of the language, in a fixed order."""
    # 10 persons, 4 verbs, 3 things, 4 verbs and 3 places: 10 * 4 * 3 * 4 * 3 = 1,440
    rest = (FIRST_VERBS, THINGS, SECOND_VERBS, PLACES)
    found = []
    for (article, whose, number), persons in PERSONS.items():
        for person, first, thing, second, place in itertools.product(persons, *rest):
            # Article, possessives and the forms of both verbs follow from the person
            beginning = f"{article} {person} {first[number]} {whose} {thing}"
            end = f"{second[number]} in {whose} {place}"
            found.append(f"{beginning} and {end}")
    return found


def grammar_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word, the start token "<s>", and a mask."""
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()

    # Trained on all sentences, so that every word has an id and none is unknown
    special_tokens = ["<s>", "[PAD]", "[UNK]", "[MASK]"]
    trainer = trainers.WordLevelTrainer(special_tokens=special_tokens)
    words.train_from_iterator(sentences(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
    )
