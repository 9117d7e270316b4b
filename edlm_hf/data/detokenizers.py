r"""Detokenisers: from the tokens between spaces that a corpus has back to running text.

They are pure functions of one document. They repeat the published zero-shot evaluation (SEDD, MDLM,
EDLM), its oddities included (in WikiText an opening quote after an s is read as a possessive, every N
as a number), because perplexities per token can be compared only on the same characters. Apply them
once: `wikitext` and `lm1b` pair up quotes, and a second time they would pair the joined ones
differently. AG News is evaluated as it is.
"""

import re


def wikitext(text: str) -> str:
    r"""WikiText: `@-@` and spaces around punctuation, inside brackets and quotes; `= =` headings; `N` becomes 1.

    >>> wikitext(" = = Early life = = \n He said : \" 3 @,@ 500 km \" ( about ) . \n")
    ' == Early life ==\nHe said: "3,500 km" (about).\n'
    """
    # The order is part of the protocol: later rules see what earlier ones have joined
    text = text.replace("s '", "s'")

    # Marks inside numbers and words, then marks between words
    for mark in "-,.":
        text = text.replace(f" @{mark}@ ", mark)
    for mark in ":;.!?,":
        text = text.replace(f" {mark} ", f"{mark} ")

    # White space inside brackets and quotes. Quotes are paired from the left.
    for opening, closing in ("()", "[]", "{}", '""', "''"):
        inside = rf"\s*([^{re.escape(closing)}]*?)\s*"
        pattern = re.escape(opening) + inside + re.escape(closing)
        text = re.sub(pattern, rf"{opening}\1{closing}", text)

    # Headings, from ==== to ==
    for level in (4, 3, 2):
        marks = "=" * level
        text = text.replace(" ".join(marks), marks)

    # Degrees, line ends, and N, which stands for a number
    text = text.replace(" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}")
    text = text.replace(" \n", "\n")
    text = text.replace("\n ", "\n")
    text = text.replace(" N ", " 1 ")
    return text.replace(" 's", "'s")


def ptb(text: str) -> str:
    r"""Penn Treebank: contractions and possessives are joined, the number sign `N` becomes 1 and `<unk>` becomes ?.

    >>> ptb("the <unk> 's stock did n't fall $ N \\/ share")
    "the ?'s stock didn't fall $1 / share"
    """
    # Possessives, contractions and lines
    text = text.replace(" 's", "'s")
    text = text.replace("s ' ", "s' ")
    text = text.replace(" n't", "n't")
    text = text.replace(" \n ", "\n")
    text = text.replace(r"\/", "/")

    # Numbers. The space after N is left for the next N.
    text = re.sub(" N(?= )", " 1", text)
    text = text.replace("$ 1", "$1")
    text = text.replace("# 1", "#1")
    return text.replace("<unk>", "?")


def lm1b(text: str) -> str:
    """One Billion Words: spaces before punctuation and contractions, inside quotes and brackets, after $ and pounds.

    >>> lm1b("He 's here ( today ) , for $ 5 .")
    "He's here (today), for $5."
    """
    # Addresses, and contractions such as he 's
    text = re.sub("(https?) : / / ", r"\1://", text)
    text = re.sub(r" '(\w+)", r"'\1", text)

    # Marks between words, and at the end
    text = re.sub(r" (\w+) \. ", r" \1. ", text)
    text = re.sub(r" (\w+) \.$", r" \1.", text)
    for mark in "?!":
        text = text.replace(f" {mark} ", f"{mark} ")
        text = re.sub(rf" \{mark}$", mark, text)
    for mark in ",:;":
        text = text.replace(f" {mark} ", f"{mark} ")
    text = text.replace(" / ", "/")

    # Quotes and brackets, with one space on either side inside
    for opening, closing in ('""', "''", "()", "[]"):
        inside = f" ([^{re.escape(opening + closing)}]+) "
        pattern = re.escape(opening) + inside + re.escape(closing)
        text = re.sub(pattern, rf"{opening}\1{closing}", text)

    # Amounts of money
    text = text.replace("$ ", "$")
    return text.replace("\N{POUND SIGN} ", "\N{POUND SIGN}")


def lambada(text: str) -> str:
    r"""LAMBADA as GPT-2 was tested: straight double quotes, and every passage begins on a new line.

    >>> lambada(" \u201cNo,\u201d he said. ")
    '\n"No," he said.'
    """
    text = re.sub("[\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}]", '"', text)
    return "\n" + text.strip()


def scientific_papers(text: str) -> str:
    """The articles of Pubmed and Arxiv: the rules of WikiText, then the rules of One Billion Words."""
    return lm1b(wikitext(text))
