"""Options by the names that they had in an earlier version, which still work and tell the new name."""

import functools
import warnings
from collections.abc import Mapping

# Which has the new names alone
NEXT_VERSION = "0.3.0"
# Of trainers, and what they are now
OLD_NAMES = {
    "denoising_steps": "max_denoising_steps",
    "eval_denoising_steps": "eval_max_denoising_steps",
    "eval_noise_samples": "eval_num_samples",
}


def takes_old_names(kind: type) -> type:
    """Let a dataclass of options be made with old names too, with one FutureWarning for all of them.

    Raises:
        ValueError: an option is given by both names.
    """
    make = kind.__init__

    @functools.wraps(make)
    def make_with_new_names(self, *args, **options):
        old = [name for name in OLD_NAMES if name in options]
        for name in old:
            if OLD_NAMES[name] in options:
                raise ValueError(f"{name} is the old name of {OLD_NAMES[name]}: give one of them.")
            options[OLD_NAMES[name]] = options.pop(name)

        if old:
            warnings.warn(changes_of({name: OLD_NAMES[name] for name in old}), FutureWarning, stacklevel=2)
        make(self, *args, **options)

    kind.__init__ = make_with_new_names
    return kind


def changes_of(names: Mapping[str, str]) -> str:
    """Tell old names and the new ones in one sentence."""
    changes = ", ".join(f"{old} (now {new})" for old, new in names.items())
    return f"old names, which work until {NEXT_VERSION}: {changes}."


__all__ = ["NEXT_VERSION", "OLD_NAMES", "changes_of", "takes_old_names"]
