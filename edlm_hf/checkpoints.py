"""The checkpoints that ship with the package: small models of public-domain books, which need no network."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
CHECKPOINTS = {
    "edlm-books": "denoiser and NCE energy: 506 public-domain books in the alphabet of text8, 256 characters",
    "edlm-books-ar": "the autoregressive baseline of the same books, which is also the energy of EDLM-AR",
}


def checkpoint(name: str) -> str:
    """The folder of a checkpoint that ships with the package, for `from_pretrained`.

    >>> AutoModelForMaskedLM.from_pretrained(edlm_hf.checkpoint("edlm-books"))

    Raises:
        ValueError: no checkpoint of that name ships.
    """
    if name not in CHECKPOINTS:
        raise ValueError(f"No checkpoint {name!r} ships with the package; there are {' and '.join(CHECKPOINTS)}.")
    return str(ASSETS / name)


def locate(name: str) -> str:
    """A model as users name it on the command line: a checkpoint that ships unless a local folder has its name."""
    return checkpoint(name) if name in CHECKPOINTS and not Path(name).exists() else name


__all__ = ["CHECKPOINTS", "checkpoint", "locate"]
