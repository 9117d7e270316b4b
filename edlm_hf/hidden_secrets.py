"""Hides tokens, passwords and keys of a user, which must not get into anything that is written.

They are known by the name of an option or variable (`--hub_token X`, `WANDB_API_KEY=X`), and by their shape wherever
they stand (`hf_...`, `https://user:password@host`).
"""

import re
from collections.abc import Iterable

HIDDEN = "***"
LEAST_LENGTH = 6  # of a value that is looked for inside other texts

# Words of a name that make it one of a secret
SECRET_WORDS = {"secret", "password", "passwd", "passphrase", "credential", "credentials", "apikey", "authorization"}
SECRET_WORDS |= {"signature", "sig"}
# A token may also be one of a text (mask_token), and a key one of a dictionary
TOKENS_OF_TEXT = {"bos", "eos", "pad", "unk", "cls", "sep", "mask", "start", "end", "stop", "special", "next", "per"}
TOKENS_OF_TEXT |= {"first", "last", "new", "max", "min", "num", "add", "image", "draft"}
SECRET_KEYS = {"api", "access", "secret", "private", "account", "auth", "encryption", "ssh", "signing"}

# What a secret looks like
SHAPES = re.compile(
    r"""
    (?<![A-Za-z0-9]) (?:hf|api_org)_[A-Za-z0-9]{20,}                          # of the Hub, anywhere
    | (?<![A-Za-z0-9]) hf_(?:oauth|jwt)_[\w.-]{16,}
    | (?<![\w/.-]) hf_[A-Za-z0-9]{5,} (?! [\w/-] | \.\w )                     # shorter, but not a part of a path
    | (?<![A-Za-z0-9]) (?:gh[pousr]_|github_pat_|glpat-|sk-|xox[abeprs]-|AKIA|ya29\.) [\w-]{16,}
    | (?<= ://) [^\s/:@"'<>]+ : [^\s"'<>]* (?= @)                             # user:password of an address
    | (?<= Bearer\ ) [\w.~+/-]{8,} =*
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----  .*? (?: -----END\ [A-Z ]*PRIVATE\ KEY----- | \Z)
    """,
    re.VERBOSE | re.DOTALL,
)
# A name, up to the value that follows it
NAMES = re.compile(
    r"""
    (?<![\w.-]) (?P<option> --?[A-Za-z][\w.-]*) (?: = | [ ]+ (?!-) )          # --hub_token X
    | (?<![\w.-]) (?P<variable> [A-Za-z][\w.-]*) [ ]?=[ ]?                    # HF_TOKEN=X
    | ["'] (?P<field> [A-Za-z][\w.-]*) ["'] \s*:\s*                           # "token": "X"
    | ^\s* (?P<line> [A-Za-z][\w.-]*) :[ ]+                                   # token: X
    """,
    re.VERBOSE | re.MULTILINE,
)
VALUE = re.compile(r"""(?: "[^"\n]*" | '[^'\n]*' | [^\s"'`] )+""", re.VERBOSE)  # a word, as a shell reads it
VALUES = {"field": re.compile(r"""\"[^"\n]*" | '[^'\n]*'""", re.VERBOSE), "line": re.compile(".+")}


def is_secret_name(name: str) -> bool:
    """Whether an option, a variable or a field of this name holds a secret.

    >>> [is_secret_name(name) for name in ("--hub_token", "WANDB_API_KEY", "mask_token", "tokenizer")]
    [True, True, False, False]
    """
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)  # hubToken -> hub_Token
    words = re.findall(r"[a-z]+", parts.lower())
    if not words:
        return False

    # `hub_token` and `access_key` are secrets, `token_ids` and `mask_token` are not
    *others, last = words
    is_token = last == "token" and not TOKENS_OF_TEXT & set(others)
    is_key = last == "key" and bool(SECRET_KEYS & set(others))
    return is_token or is_key or bool(SECRET_WORDS & set(words))


def hide_secrets(text: str, known: Iterable[str] = ()) -> str:
    """Put `***` in place of every secret in a text.

    Args:
        known: secrets that are hidden wherever they stand, besides those with a name or shape of one.
    """
    # A short value, such as "a", would be hidden inside every other word
    for value in known:
        if len(value) >= LEAST_LENGTH:
            text = text.replace(value, HIDDEN)
    return hide_shapes(hide_named(text))


def hide_shapes(text: str) -> str:
    """Put `***` in place of everything in a text that looks like a secret."""
    return SHAPES.sub(HIDDEN, text)


def hide_named(text: str) -> str:
    """Put `***` in place of every value in a text that follows the name of a secret."""
    parts = []
    done = 0  # everything before is in parts

    for name in NAMES.finditer(text):
        kind = name.lastgroup
        in_last_value = name.start() < done
        if in_last_value or not is_secret_name(name[kind]):
            continue

        # The name stays, so that a reader sees which option was given
        value = VALUES.get(kind, VALUE).match(text, name.end())
        if value is not None:
            parts += [text[done : value.start()], HIDDEN]
            done = value.end()

    return "".join([*parts, text[done:]])


def hide_in_command(arguments: Iterable[str], known: Iterable[str] = ()) -> list[str]:
    """Put `***` in place of secrets in the arguments of a program.

    A secret stands beside its option (--hub_token=X) or after it (--hub_token X).
    """
    arguments = list(arguments)
    secrets = set(known)

    # 1. Which values are secret: those of --hub_token=X, HF_TOKEN=X and --hub_token X
    for i, option in enumerate(arguments):
        name, equals, inside = option.partition("=")
        after = arguments[i + 1] if i + 1 < len(arguments) else ""

        if not is_secret_name(name):
            continue
        if equals:
            secrets.add(inside)
        elif name.startswith("-") and not after.startswith("--"):
            secrets.add(after)

    # 2. They are hidden in all arguments, short ones only as a whole
    secrets.discard("")
    return [HIDDEN if argument in secrets else hide_secrets(argument, secrets) for argument in arguments]


def hide_in_values(value, name: str = ""):
    """Put `***` in place of secrets in nested dictionaries, lists and texts.

    Args:
        name: name of the field with this value.
    """
    if isinstance(value, dict):
        return {key: hide_in_values(x, str(key)) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide_in_values(x, name) for x in value]
    if not isinstance(value, str):
        return value

    if value and is_secret_name(name):
        return HIDDEN
    return hide_secrets(value)


__all__ = ["HIDDEN", "hide_in_command", "hide_in_values", "hide_secrets", "hide_shapes", "is_secret_name"]
