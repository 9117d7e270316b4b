"""A command whose failures are one line, and what it tells on the standard error."""

import os

import typer
from typer.core import TyperCommand

from edlm_hf import help_only
from edlm_hf.errors import explanation
from edlm_hf.hidden_secrets import hide_secrets
from edlm_hf.terminal import is_first_process, quiet_libraries, tell, visible


class Command(TyperCommand):
    """A command whose failures are one line on stderr and exit code 1, if the user can mend them.

    With EDLM_TRACEBACK=1 in the environment they keep their traceback. Ctrl-C is exit code 130.
    """

    def make_context(self, *args, **kwargs):
        """As usual. A message of wrong usage, which quotes the arguments, shows no secret."""
        try:
            return super().make_context(*args, **kwargs)
        except Exception as error:
            # The messages of click repeat what was typed, a token or an address with a password among it
            if isinstance(getattr(error, "message", None), str):
                error.message = visible(hide_secrets(error.message))
            raise

    def invoke(self, context):
        """Run it with the model types registered, which `import edlm_hf` leaves out where only help is wanted."""
        try:
            import edlm_hf.registration  # noqa: F401

            # A value looked like the question for help
            if help_only.is_wanted():
                quiet_libraries()
            return super().invoke(context)
        except KeyboardInterrupt:
            # 128 + SIGINT, as shells count it
            tell_line(context.command_path, "interrupted.")
            raise typer.Exit(130) from None
        except Exception as error:
            # A reader that closed the pipe (`edlm ... | head`) has seen enough, and wants no message
            line = None
            if not isinstance(error, BrokenPipeError):
                line = explanation(error)

            # What nothing explains is a fault of ours, whose traceback is needed
            wants_traceback = os.environ.get("EDLM_TRACEBACK", "0") not in ("", "0")
            if line is None or wants_traceback:
                raise
            tell_line(context.command_path, line)
            raise typer.Exit(1) from None


def tell_line(command: str, line: str) -> None:
    """Tell one line about a command (`edlm train-energy`). Of several processes only the first one does."""
    if is_first_process():
        tell(f"{command}: {line}")


__all__ = ["Command", "tell_line"]
