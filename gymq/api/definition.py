"""The definition of a user's class, checked where it stands: a mistake is told with its place before a rollout is spent.

Each error names file and line, class and method or field, and the remedy.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any

from msgspec import inspect as types

from gymq.errors import UsageError

#: The likeness, from 0 to 1, from which on a method's name is a misspelt hook: a letter too few or too many in any hook
#: (`vrify`, `cose`), another letter in the longest (`rewpond`). A lower one takes words for hooks: `clone`, `police`.
ALIKE = 0.85

#: The name of a variable of the environment.
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

#: Kinds of parameters that no call by keywords fills in.
_UNNAMED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)

#: Types of which a stored value may be: what msgpack decodes without a hint.
_PLAIN = (dict, list, str, bytes, int, float, bool, type(None))

#: Where the types of `msgspec.inspect` hold those of their parts; structs have `fields`.
_PARTS = ("item_type", "item_types", "key_type", "value_type", "types", "type")


def refusal(cls: type, name: str, problem: str) -> UsageError:
    """Return the error about a class or its attribute, with file and line.

    Args:
        cls: the class.
        name: the attribute; "": the class itself.
        problem: what is wrong with it, and the remedy, as the rest of a sentence.
    """
    what = f"{cls.__name__}.{name}" if name else cls.__name__
    return UsageError(f"{_place(cls, name)}{what} {problem}")


def _place(cls: type, name: str) -> str:
    function = function_of(cls, name)
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    if code is not None:
        return f"{code.co_filename}:{code.co_firstlineno}: "
    try:
        return f"{inspect.getfile(cls)}:{inspect.getsourcelines(cls)[1]}: "
    except (OSError, TypeError):  # typed at a prompt
        return ""


def function_of(cls: type, name: str) -> Any:
    """Return a class's function as it was written, out of a `staticmethod` or `classmethod`; None without one.

    Args:
        cls: the class.
        name: the function's name.
    """
    attribute = inspect.getattr_static(cls, name, None)
    return attribute.__func__ if isinstance(attribute, staticmethod | classmethod) else attribute


def own_functions(cls: type, base: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the functions that a class adds to its checked bases, with their names: its own, and those of mixins.

    Args:
        cls: the class.
        base: the base whose subclasses are checked where they are defined.
    """
    parts = [part for part in cls.__mro__ if part is cls or not (issubclass(part, base) or part is object)]
    for name in dict.fromkeys(name for part in parts for name in vars(part)):
        function = function_of(cls, name)
        if inspect.isroutine(function):
            yield name, function


def check_spelling(cls: type, base: type, hooks: Mapping[str, frozenset[str] | None], exempt: Iterable[str]) -> None:
    """Refuse a public method whose name is a misspelt hook's that the class does not define.

    A name is misspelt if it begins like the hook's and has the same letters in another order, or is as like it as `ALIKE`. A
    name that contains the hook's is another word (`opened`, `reopen`), and so is a method that takes nothing of what
    the hook does.

    Args:
        cls: the class.
        base: the base of all such classes.
        hooks: by name, the parameters that gymq fills in; None: they are not filled in by name.
        exempt: methods that may have any name.

    Raises:
        UsageError: there is one.
    """
    missing = [hook for hook in hooks if getattr(cls, hook, None) is getattr(base, hook, None)]
    for name, _ in own_functions(cls, base):
        if name.startswith("_") or name in hooks or name in exempt:
            continue
        for hook in missing:
            filled = hooks[hook]
            parameters = parameters_of(cls, name) if filled is not None else {}
            if _misspelt(name, hook) and (not parameters or filled is None or parameters.keys() & filled):
                raise refusal(
                    cls,
                    name,
                    f"looks like the hook {hook}, which {cls.__name__} does not define; rename it to {hook}, or to _{name} if "
                    "it is a helper",
                )


def _misspelt(name: str, hook: str) -> bool:
    plain = name.lower().replace("_", "")
    if plain == hook:
        return True
    if plain[0] != hook[0] or hook in plain:
        return False
    return sorted(plain) == sorted(hook) or SequenceMatcher(None, plain, hook).ratio() >= ALIKE


def parameters_of(cls: type, name: str) -> dict[str, inspect.Parameter]:
    """Return the parameters of a method by name, without `self`.

    Args:
        cls: the class.
        name: the method.
    """
    function = function_of(cls, name)
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # written in C
        return {}
    if parameters and not isinstance(inspect.getattr_static(cls, name), staticmethod):
        del parameters[next(iter(parameters))]
    return parameters


def check_self(cls: type, name: str, filled: frozenset[str]) -> None:
    """Refuse a method whose first parameter is not the instance: there is none, it is filled in, or it has a type.

    Args:
        cls: the class.
        name: the method.
        filled: the names of the parameters that gymq fills in.

    Raises:
        UsageError: it has no such parameter.
    """
    function = inspect.getattr_static(cls, name)
    if not inspect.isfunction(function):
        return
    first = next(iter(inspect.signature(function).parameters.values()), None)
    if first is None or first.name in filled or (first.name != "self" and first.annotation is not first.empty):
        raise refusal(cls, name, "has no parameter self; write it first, or mark the method @staticmethod")


def check_filled(cls: type, name: str, filled: frozenset[str]) -> None:
    """Refuse a hook with a parameter that gymq cannot fill in: it is called with what its parameters name, by keyword.

    Args:
        cls: the class.
        name: the hook.
        filled: the names of the parameters that are filled in.

    Raises:
        UsageError: it has one, or is no method.
    """
    if not callable(function_of(cls, name)):
        raise refusal(cls, name, f"is no method; define {name}(self, ...), or call it otherwise")
    check_self(cls, name, filled)
    known = ", ".join(sorted(filled))
    for parameter in parameters_of(cls, name).values():
        if parameter.kind in _UNNAMED:
            problem = f"takes {str(parameter)!r}, and a hook is called with what its parameters name"
            raise refusal(cls, name, f"{problem}; name those it needs, of {known} (in a decorator, use functools.wraps)")
        if parameter.name not in filled and parameter.default is parameter.empty:
            problem = f"has the parameter {parameter.name!r}, for which gymq has no value"
            raise refusal(cls, name, f"{problem}; name some of {known}, give it a default, or rename a method that is no hook")


def check_calls(cls: type, name: str, *arguments: str) -> None:
    """Refuse a method that is not `def` or cannot be called with so many arguments in place.

    Args:
        cls: the class.
        name: the method.
        arguments: their names, for the error.

    Raises:
        UsageError: it is not, or cannot.
    """
    function = function_of(cls, name)
    wanted = f"{name}({', '.join(('self', *arguments))})"
    if not callable(function):
        raise refusal(cls, name, f"is no method; define {wanted}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise refusal(cls, name, f"must return its answer at once; define it with def, without async and yield: {wanted}")
    bound = not isinstance(inspect.getattr_static(cls, name), staticmethod)
    try:
        inspect.signature(function).bind(*([None] if bound else []), *arguments)
    except TypeError as error:
        raise refusal(cls, name, f"cannot be called as gymq does ({error}); define {wanted}") from None
    except ValueError:  # written in C
        return


def check_secrets(cls: type, secrets: Any) -> None:
    """Refuse what is no tuple of names of variables, or names one of gymq's own.

    Args:
        cls: the class.
        secrets: its `secrets`.

    Raises:
        UsageError: it is not, or does.
    """
    if not isinstance(secrets, tuple):
        raise refusal(cls, "", f'has as secrets {secrets!r}; write the names of variables as a tuple: secrets = ("NAME",)')
    for name in secrets:
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            raise refusal(
                cls, "", f"has among its secrets {name!r}, which is no name of a variable; write letters, digits and _"
            )
        if name.startswith("GYMQ_"):
            raise refusal(cls, "", f"has among its secrets {name}, which is gymq's own; remove it")


def check_state(cls: type, state: Any) -> None:
    """Refuse a state with a part that msgpack cannot write, or cannot read back as what it was.

    Args:
        cls: the environment.
        state: its `State`.

    Raises:
        UsageError: it has one, which the text names.
    """
    if not isinstance(state, type):
        raise refusal(cls, "", f"has as State no class but {state!r}; make it a msgspec.Struct")
    why = f"which cannot be stored as the State of {cls.__name__} is after each call"
    try:
        found = _unstorable("", types.type_info(state), set())
    except NameError:  # a name that the module defines later; msgspec looks it up when it needs it
        return
    except TypeError as error:
        raise refusal(state, "", f"has the field {_unreadable(state)}, {why}: {error}; change its type") from None
    if found is not None:
        path, kind = found
        if not path:
            raise refusal(state, "", f"is a type of its own, {why}; make it a msgspec.Struct")
        remedy = "keep plain data there, and make the object from it (hook session)"
        raise refusal(state, "", f"has the field {path} of type {kind.__name__}, {why}; {remedy}")


def _unstorable(path: str, kind: Any, seen: set[type]) -> tuple[str, type] | None:
    """Return where in a type a part is that msgpack cannot store, and that part's type; None: there is none.

    Args:
        path: where the type stands, as `cards.owner`.
        kind: the type, as `msgspec.inspect` describes it.
        seen: structs that were looked at, for those that contain themselves.
    """
    if isinstance(kind, types.CustomType):
        return None if any(issubclass(plain, kind.cls) for plain in _PLAIN) else (path, kind.cls)
    parts: list[tuple[str, Any]] = []
    if hasattr(kind, "fields") and kind.cls not in seen:
        seen.add(kind.cls)
        parts = [(f"{path}.{field.name}".lstrip("."), field.type) for field in kind.fields]
    for attribute in _PARTS:
        part = getattr(kind, attribute, ())
        parts += [(path, each) for each in (part if isinstance(part, tuple) else (part,))]
    return next(filter(None, (_unstorable(place, part, seen) for place, part in parts)), None)


def _unreadable(state: type) -> str:
    """Return the first field whose type msgspec does not support."""
    for name, hint in inspect.get_annotations(state, eval_str=True).items():
        try:
            types.type_info(hint)
        except TypeError:
            return name
    return "?"
