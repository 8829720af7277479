"""JSON read into dataclasses, every field checked against its annotation.

A file that somebody edited, or that another program wrote, is refused with the field's name.
"""

import json
import math
import os
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

_Record = TypeVar("_Record")
_WORDS = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.

    Returns:
        Objects as dictionaries, lists, texts, numbers, true, false and null.

    Raises:
        ValueError: if it is no JSON, holds NaN or infinity, or is nested too deeply.
        OSError: if it cannot be read.
    """
    try:
        return json.loads(Path(path).read_bytes(), parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse(constant: str) -> Any:
    raise ValueError(f"it holds {constant}, which is no JSON")


def read_record(kind: type[_Record], value: Any, place: str = "") -> _Record:
    """Make a dataclass of what a JSON object holds.

    Args:
        kind: the dataclass. Its fields are texts, numbers, other dataclasses, and lists, tuples,
            dictionaries and unions of those; `Annotated` ones are checked as `_arguments` says;
            `Any` passes. Those with a default may be missing.
        value: the object.
        place: where it stands, for messages; empty for the whole file.

    Returns:
        The dataclass.

    Raises:
        ValueError: naming the field, what it must be and what came.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Point:
        ...     x: float
        ...     label: str = ""
        >>> read_record(Point, {"x": 2})
        Point(x=2.0, label='')
        >>> read_record(Point, {"x": "2"})
        Traceback (most recent call last):
        ValueError: x must be a finite number, got '2'
    """
    if not isinstance(value, dict):
        raise ValueError(_message(place or "it", "an object", value))
    hints = get_type_hints(kind, include_extras=True)
    known = [f for f in fields(kind) if f.init]  # type: ignore[arg-type]
    for name in value:
        if name not in {f.name for f in known}:
            raise ValueError(f"{place or 'it'} has an unknown field, {name!r}"[:200])
    given = {}
    for f in known:
        if f.name in value:
            given[f.name] = read_value(hints[f.name], value[f.name], _inside(place, f.name))
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{_inside(place, f.name)} is missing")
    return kind(**given)


def read_value(kind: Any, value: Any, place: str) -> Any:  # noqa: PLR0911  one for each kind
    """A value checked against an annotation, as `read_record` checks a field.

    Args:
        kind: the annotation.
        value: of JSON.
        place: where it stands, for messages.

    Returns:
        The value, with tuples and dataclasses made where the annotation wants them.

    Raises:
        ValueError: naming the place, what it must be and what came.

    Examples:
        >>> read_value(tuple[int, int], [3, 4], "shape")
        (3, 4)
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        found = read_value(parts[0], value, place)
        for condition in kind.__metadata__:
            condition.check(place, found)
        return found
    if origin in (Union, types.UnionType):
        if value is None and type(None) in parts:
            return None
        (kind,) = (part for part in parts if part is not type(None))
        return read_value(kind, value, place)
    if origin in _CONTAINERS:
        return _CONTAINERS[origin](parts, value, place)
    if is_dataclass(kind):
        return read_record(kind, value, place)  # type: ignore[arg-type]
    if kind is Any:
        return value
    return _plain(kind, value, place)


def _plain(kind: type, value: Any, place: str) -> Any:
    # A bool is an int to Python, and an int is a number.
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise ValueError(_message(place, _WORDS[kind], value))
    if kind is not float:
        return value
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):  # 1e999 is infinite
        raise ValueError(_message(place, _WORDS[kind], value))
    return number


def _list(parts: tuple[Any, ...], value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(_message(place, "a list", value))
    return [read_value(parts[0], item, f"{place}[{i}]") for i, item in enumerate(value)]


def _tuple(parts: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) != len(parts):
        raise ValueError(_message(place, f"a list of {len(parts)}", value))
    return tuple(
        read_value(part, item, f"{place}[{i}]")
        for i, (part, item) in enumerate(zip(parts, value, strict=True))
    )


def _dict(parts: tuple[Any, ...], value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(_message(place, "an object", value))
    return {name: read_value(parts[1], item, _inside(place, name)) for name, item in value.items()}


_CONTAINERS: Mapping[Any, Callable[[tuple[Any, ...], Any, str], Any]] = {
    list: _list,
    tuple: _tuple,
    dict: _dict,
}


def _inside(place: str, name: str) -> str:
    return f"{place}.{name[:60]}" if place else name[:60]


def _message(place: str, needed: str, value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else None
    shown = "null" if value is None else shown or repr(value)
    return f"{place} must be {needed}, got {shown if len(shown) <= 60 else shown[:57] + '...'}"
