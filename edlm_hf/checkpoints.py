"""The checkpoints that ship with the package: small models of public-domain books, which need no network."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
CHECKPOINTS = {
    "edlm-books": "denoiser and NCE energy: 506 public-domain books, 256 tokens of 4,096",
    "edlm-books-ar": "the autoregressive baseline of the same books, which is also the energy of EDLM-AR",
    "edlm-grammar": "two tiny networks of a small language, the second one the energy of the first",
}


def checkpoint(name: str) -> str:
    """Return the folder of a checkpoint that ships with the package, for `from_pretrained`.

    >>> from transformers import AutoTokenizer
    >>> len(AutoTokenizer.from_pretrained(checkpoint("edlm-books")))
    4096

    Raises:
        ValueError: no checkpoint of that name ships.
    """
    if name not in CHECKPOINTS:
        names = ", ".join(CHECKPOINTS)
        raise ValueError(f"No checkpoint {name!r} ships with the package; there are {names}.")
    return str(ASSETS / name)


def ships(name: str | None) -> bool:
    """Whether a name means a checkpoint that ships. A local folder of the same name comes first."""
    # As for every `from_pretrained`: what lies in the working directory is what is meant
    return name in CHECKPOINTS and not Path(name).exists()


def locate(name: str) -> str:
    """Return the folder of a checkpoint that ships, or any other name of a model as it is."""
    return checkpoint(name) if ships(name) else name


def portable_name(path: str) -> str:
    """Return the name of a checkpoint that ships for its folder, or any other path as it is.

    >>> portable_name(checkpoint("edlm-books"))
    'edlm-books'
    """
    # For cards and results: the path of an installed package means nothing on another machine
    names = {str(ASSETS / name): name for name in CHECKPOINTS}
    return names.get(str(path), path)


__all__ = ["ASSETS", "CHECKPOINTS", "checkpoint", "locate", "portable_name", "ships"]
