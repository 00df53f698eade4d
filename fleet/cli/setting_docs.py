"""What each setting of a scenario is, as the code says it: an option's help, or a field's docstring."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from functools import lru_cache
from itertools import pairwise
from typing import get_origin

import msgspec

from fleet.cli.options import SCENARIO_OPTIONS

_OPTIONS = {option.key: option for option in SCENARIO_OPTIONS}
_AS_IN_YAML = {"None": "null", "True": "true", "False": "false"}


def setting_text(struct: type[msgspec.Struct], name: str, key: str) -> str:
    """What the field `name` of a struct is, which a scenario knows by the dotted `key`; empty if nobody says.

    The help of its option, and the option, or the docstring under the field.
    """
    texts = (_field_docstrings(owner).get(name) for owner in struct.__mro__)
    docstring = _plain(next(filter(None, texts), ""))
    option = _OPTIONS.get(key)
    if option is None:
        return docstring
    if get_origin(option.type) is list:  # in a file it is written in another way
        return f"{docstring} ({option.flag}: {option.help})"
    return f"{_plain(option.help)} ({option.flag})"


def section_text(struct: type[msgspec.Struct]) -> str:
    """What a section is about: the first paragraph of its docstring."""
    return _plain((inspect.getdoc(struct) or "").partition("\n\n")[0])


def _plain(text: str) -> str:
    """On one line, as YAML spells what is nothing, true and false."""
    words = " ".join(text.split())
    return re.sub(r"\b(None|True|False)\b", lambda match: _AS_IN_YAML[match.group()], words)


@lru_cache
def _field_docstrings(struct: type) -> dict[str, str]:
    """The strings that stand under a class's fields; none of a class without source."""
    try:
        source = textwrap.dedent(inspect.getsource(struct))
    except (OSError, TypeError):
        return {}
    [definition] = ast.parse(source).body
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    return {
        field.target.id: text.value.value
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(text.value.value, str)
    }
