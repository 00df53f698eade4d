"""Doors: wherever a name of ours is taken, `package.module:name` is too, for what somebody else has written.

A door is a table of ours beside what a thing of that kind must be. Names are looked up here and nowhere else;
what stands behind `package.module:name` is imported as Python imports anything (installed, or on PYTHONPATH),
and checked before it is used: each way in which it doesn't fit is one line.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import re
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, Generic, Protocol, TypeVar, get_args, get_origin, get_type_hints

from protocol.errors import Mistake, SettingError

T = TypeVar("T")

SEPARATOR = ":"
"""Between module and name; no name of ours has one."""
FOREIGN_CHOICE = "or package.module:name of your own"
"""Ends every list of names that may be given."""
_SPEC = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_NOT_MEMBERS = (object, Protocol, Generic)
_MOST_NAMES = 8
MOST_CHARACTERS = 128
"""Of a name: it is sent over the network, and becomes part of file names."""


class DoorError(SettingError):
    """Nothing that fits is behind a name."""


@dataclass(frozen=True)
class Door(Generic[T]):
    """One kind of thing that is taken by name."""

    what: str
    """What users call it, such as `encoder`."""
    kind: type[T]
    """A class of which it must be an instance, or a `Protocol` class whose members it must have."""
    table: Mapping[str, T]
    """Those of our own, by name."""
    also: str = ""
    """What else a name may be, for help and errors."""

    @property
    def choices(self) -> str:
        """What a name may be, for help and errors."""
        return ", ".join(filter(None, (*self.table, FOREIGN_CHOICE, self.also)))

    def find(self, name: str) -> T:
        """What stands behind a name.

        Raises:
            DoorError: no row of the table has this name, it can't be imported, or it doesn't fit.
        """
        if name in self.table:
            return self.table[name]
        if not is_foreign(name):
            raise DoorError(f"unknown {self.what} {name!r}, expected one of: {self.choices}")
        return load(name, self.kind, self.what)

    @contextlib.contextmanager
    def guard(self, name: str, *, keeping: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """While somebody else's code runs: whatever it raises becomes a `DoorError` that says where.

        What our own code raises goes through, and what is `keeping` its class.
        """
        try:
            yield
        except Exception as error:
            if not is_foreign(name) or isinstance(error, (DoorError, *keeping)):
                raise
            told = str(error) if isinstance(error, Mistake) else _told(error)
            raise self.refuse(name, told) from error

    def refuse(self, name: str, reason: str) -> DoorError:
        """The error that what is behind a name is not usable."""
        return DoorError(f"{self.what} {name}: {reason}")


def is_foreign(name: str) -> bool:
    """Whether a name is one of somebody else's."""
    return SEPARATOR in name


def file_name(name: str) -> str:
    """A name as a file or folder can have it, different for different names."""
    return name.replace(SEPARATOR, "@")


def load(name: str, kind: type[T], what: str) -> T:
    """Import `package.module:name` and check that it is of a kind.

    Args:
        kind: a class, or a `Protocol` class.
        what: what users call it, for errors.

    Raises:
        DoorError: it can't be imported, raises at import, or doesn't fit.
    """
    if not _SPEC.fullmatch(name):
        raise DoorError(f"{what} of your own must be package.module:name, got {name!r}")
    if len(name) > MOST_CHARACTERS:
        raise DoorError(
            f"{what} {name}: a name must have at most {MOST_CHARACTERS} characters, got {len(name)}"
        )
    module_name, _, attribute = name.partition(SEPARATOR)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise DoorError(f"{what} {name}: {_not_found(error, module_name)}") from error
    except (Exception, SystemExit) as error:  # whatever somebody else's module does when it is imported
        raise DoorError(f"{what} {name}: importing {module_name} failed: {_told(error)}") from error
    try:
        value = getattr(module, attribute)
    except AttributeError:
        raise DoorError(
            f"{what} {name}: {module_name} has no {attribute!r}{_near(module, attribute)}"
        ) from None
    reason = misfit(value, kind)
    if reason is not None:
        raise DoorError(f"{what} {name}: {reason}")
    fitting: T = value
    return fitting


def misfit(value: Any, kind: type) -> str | None:
    """Why a value is not of a kind, in a few words; None where it is.

    A `Protocol` class asks for its methods, which must take the same arguments, and for its annotated
    attributes, which must be of the annotated class.
    """
    if not getattr(kind, "_is_protocol", False):
        return (
            None if isinstance(value, kind) else f"must be of class {kind.__name__}, got {_described(value)}"
        )
    for name, member in _methods(kind).items():
        found = value if name == "__call__" else getattr(value, name, None)
        if not callable(found):
            if name == "__call__":
                return f"must be callable with {_arguments(member)}, got {_described(value)}"
            return f"lacks the method {name}{_arguments(member)}, got {_described(value)}"
        if not _takes(found, member):
            label = "" if name == "__call__" else f"{name} "
            return f"{label}must take {_arguments(member)}, takes {inspect.signature(found)}"
    for name, hint in _attributes(kind).items():
        if not hasattr(value, name):
            return f"lacks the attribute {name}, got {_described(value)}"
        if not _is_of(getattr(value, name), hint):
            return f"its {name} must be {_hint_name(hint)}, got {getattr(value, name)!r}"
    return None


def _members(kind: type) -> dict[str, Any]:
    classes = [base for base in reversed(kind.__mro__) if base not in _NOT_MEMBERS]
    return {name: member for base in classes for name, member in vars(base).items()}


def _methods(kind: type) -> dict[str, FunctionType]:
    return {
        name: member
        for name, member in _members(kind).items()
        if isinstance(member, FunctionType) and (name == "__call__" or not name.startswith("_"))
    }


def _attributes(kind: type) -> dict[str, Any]:
    """Annotated attributes and properties, by name, with what they are to be."""
    properties = {
        name: get_type_hints(member.fget).get("return", Any)
        for name, member in _members(kind).items()
        if isinstance(member, property)
    }
    return {**get_type_hints(kind), **properties}


def _wanted(member: FunctionType) -> list[inspect.Parameter]:
    return list(inspect.signature(member).parameters.values())[1:]


def _arguments(member: FunctionType) -> str:
    """`(tools, *, seed)`."""
    parameters = [
        p.replace(
            annotation=inspect.Parameter.empty,
            kind=p.KEYWORD_ONLY if p.kind is p.KEYWORD_ONLY else p.POSITIONAL_OR_KEYWORD,
        )
        for p in _wanted(member)
    ]
    return str(inspect.Signature(parameters))


def _takes(function: Any, member: FunctionType) -> bool:
    """Whether a function can be called as a protocol's method is."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in functions don't tell
        return True
    wanted = [p for p in _wanted(member) if p.default is inspect.Parameter.empty]
    keywords = {p.name: None for p in wanted if p.kind is inspect.Parameter.KEYWORD_ONLY}
    try:
        signature.bind(*[None] * (len(wanted) - len(keywords)), **keywords)
    except TypeError:
        return False
    return True


def _is_of(value: Any, hint: Any) -> bool:
    if get_origin(hint) is type:
        [bound] = get_args(hint)
        return isinstance(value, type) and issubclass(value, bound)
    plain = get_origin(hint) or hint
    return not isinstance(plain, type) or isinstance(value, plain)


def _hint_name(hint: Any) -> str:
    if get_origin(hint) is type:
        return f"a subclass of {get_args(hint)[0].__name__}"
    return f"of class {(get_origin(hint) or hint).__name__}"


def _described(value: Any) -> str:
    """`the class Net`, `the function build(a, b)`, `a str`."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, FunctionType):
        return f"the function {value.__name__}{inspect.signature(value)}"
    if isinstance(value, ModuleType):
        return f"the module {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"


def _not_found(error: ModuleNotFoundError, module_name: str) -> str:
    missing = error.name or ""
    if not f"{module_name}.".startswith(f"{missing}."):
        return f"importing {module_name} failed: {_told(error)}"
    parent = missing.rpartition(".")[0]
    if parent:
        return f"package {parent} has no module {missing.rpartition('.')[2]!r}"
    return (
        f"no package or module {missing!r} is found; install it, or put the folder it lies in on PYTHONPATH"
    )


def _near(module: ModuleType, attribute: str) -> str:
    names = [name for name in vars(module) if not name.startswith("_")]
    near = difflib.get_close_matches(attribute, names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; it has {', '.join(names[:_MOST_NAMES])}" if names else "; it is empty"


def _told(error: BaseException) -> str:
    """`ZeroDivisionError: division by zero (cars/encoders.py, line 3)`, in one line."""
    if isinstance(error, SyntaxError):
        place: tuple[str | None, int | None] = (error.filename, error.lineno)
        text = error.msg
    else:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
        place = (frames[-1].filename, frames[-1].lineno) if frames else (None, None)
        text = str(error)
    said = f"{type(error).__name__}: {' '.join(text.split())}" if text else type(error).__name__
    return f"{said} ({place[0]}, line {place[1]})" if place[0] else said
