"""Shows the help of dataclass fields in the reference (an extension of griffe, see mkdocs.yml)."""

import ast

from griffe import Attribute, Docstring, Extension


class FieldHelp(Extension):
    """Take `metadata={"help": ...}` of a field as the docstring of the attribute."""

    def on_attribute_instance(self, *, node, attr: Attribute, **kwargs) -> None:
        value = getattr(node, "value", None)
        if attr.docstring is not None or not isinstance(value, ast.Call):
            return
        for keyword in value.keywords:
            if keyword.arg == "metadata":
                text = help_of(keyword.value)
                if text is not None:
                    attr.docstring = Docstring(text, parent=attr)


def help_of(metadata: ast.expr) -> str | None:
    """The text under "help" in a dictionary that is written out. None if it has none."""
    if not isinstance(metadata, ast.Dict):
        return None
    for key, value in zip(metadata.keys, metadata.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == "help" and isinstance(value, ast.Constant):
            return value.value
    return None
