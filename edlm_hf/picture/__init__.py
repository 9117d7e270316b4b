"""A generation as a picture for a page: its states from mask to text, and the energies of the candidates."""

from edlm_hf.picture.generation import generation_picture, make_picture

__all__ = ["generation_picture", "make_picture"]
