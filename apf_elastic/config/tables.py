"""Reading one table of the file with its pydantic model: units, near matches of wrong keys, messages that teach.

A field ``join_s`` is written ``join = "15 min"`` and a field ``memory_mb`` is written ``memory = "2 GB"``; both plain
spellings stay valid for plain numbers. The same holds in tables within.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, RootModel, ValidationError
from pydantic.fields import FieldInfo

from apf_elastic.config.problems import Key, shown, suggestion
from apf_elastic.config.report import Report
from apf_elastic.config.units import DURATION, SIZE, Unit, UnitError

Model = TypeVar("Model", bound=BaseModel)


# ------------------------------------------------------------------------------------- what a model accepts


def alternatives(annotation: Any) -> Iterator[Any]:
    """The types of a union, without what ``Annotated`` says about them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for inner in get_args(annotation):
            yield from alternatives(inner)
    else:
        yield annotation


def is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel) and not issubclass(annotation, RootModel)


def unit_of(field: FieldInfo) -> Unit | None:
    """The unit that a field's type names."""
    return next((unit for unit in _marks(field.annotation, field.metadata) if isinstance(unit, Unit)), None)


def _marks(annotation: Any, metadata: Sequence[Any] = ()) -> Iterator[Any]:
    yield from metadata
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        yield from _marks(inner, more)
    elif get_origin(annotation) in (Union, types.UnionType):
        for inner in get_args(annotation):
            yield from _marks(inner)


@dataclass(frozen=True, slots=True)
class Spelling:
    """A word of the file: which key of the model it sets, and whether as a quantity or as a plain number."""

    target: str
    unit: Unit | None = None
    plain: bool = False


def spellings(model: type[BaseModel]) -> Mapping[str, Spelling]:
    """Every key that a table of `model` may have. The first spelling of a field is the one that is recommended."""
    exact: dict[str, Spelling] = {}
    short: dict[str, Spelling] = {}
    twice: set[str] = set()
    for name, field in model.model_fields.items():
        target = field.alias or name
        unit = unit_of(field)
        exact[target] = Spelling(target)
        if unit is not None and unit.suffix:
            short[target + unit.suffix] = Spelling(target, unit, plain=True)
        elif unit is None and (by_name := unit_by_name(target, field)):
            exact[target] = Spelling(target, by_name, plain=True)
            word = target.removesuffix(by_name.suffix)
            twice |= {word} & short.keys()
            short[word] = Spelling(target, by_name)
    return {**{word: it for word, it in short.items() if word not in twice}, **exact}


def unit_by_name(name: str, field: FieldInfo) -> Unit | None:
    """The unit that a plugin's field has by its suffix, if it is a number."""
    if not any(kind in (int, float) for kind in alternatives(field.annotation)):
        return None
    return next((unit for unit in (DURATION, SIZE) if name.endswith(unit.suffix) and name != unit.suffix), None)


def recommended(model: type[BaseModel]) -> Mapping[str, str]:
    """For every key of the model the word that users should write."""
    words: dict[str, str] = {}
    for word, spelling in spellings(model).items():
        if spelling.target not in words or not spelling.plain:
            words[spelling.target] = word
    return words


# ------------------------------------------------------------------------------------------------- reading


def read_table(
    model: type[Model], raw: Mapping[str, Any], key: Key, report: Report, more_keys: Collection[str] = ()
) -> Model | None:
    """Validate a table. None when something is wrong in it, which `report` then knows.

    `more_keys` are keys of the same table that belong to somebody else; they only serve for near matches.
    """
    before = len(report.problems)
    translation = _Translation(report, more_keys)
    values = translation.table(model, raw, key)
    try:
        made = model.model_validate(values)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            _explain(detail, model, values, key, translation.words, report)
        return None
    except Exception as error:  # a plugin's validator may raise anything
        report.problem(key, f"cannot be checked: {type(error).__name__}: {error}", "this is a fault of the plugin")
        return None
    return made if len(report.problems) == before else None


class _Translation:
    """From the words of the file to the keys of the model."""

    def __init__(self, report: Report, more_keys: Collection[str]) -> None:
        self.report = report
        self.more_keys = more_keys
        self.words: dict[Key, str] = {}  # full key in the model -> the last word of it in the file

    def table(self, model: type[BaseModel], raw: Mapping[str, Any], key: Key) -> dict[str, Any]:
        known = spellings(model)
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        values: dict[str, Any] = {}
        for word, value in raw.items():
            spelling = known.get(word)
            if spelling is None:
                if model.model_config.get("extra") == "allow":
                    values[word] = value
                else:
                    self._unknown(model, word, key)
                continue
            if spelling.target in values:
                first = self.words[(*key, spelling.target)]
                self.report.problem((*key, word), f"says the same as `{first}`, which is given too", "keep one of them")
                continue
            self.words[(*key, spelling.target)] = word
            annotation = fields[spelling.target].annotation
            values[spelling.target] = self._value(spelling, annotation, value, (*key, word))
        return values

    def _unknown(self, model: type[BaseModel], word: str, key: Key) -> None:
        words = {*recommended(model).values(), *(self.more_keys if len(key) <= 2 else ())}
        self.report.problem((*key, word), "is not a known key", suggestion(word, words, "keys here"))

    def _value(self, spelling: Spelling, annotation: Any, value: Any, key: Key) -> Any:
        unit = spelling.unit
        if unit is None:
            return self._inside(annotation, value, key)
        if spelling.plain:
            if isinstance(value, bool) or not isinstance(value, int | float):
                short = str(key[-1]).removesuffix(unit.suffix)
                cure = f"write `{short}` for {'a ' + unit.name} with a unit: {unit.how}"
                self.report.refuse(key, f"{shown(key, value)} is not a plain number", cure)
            return value
        try:
            number = unit.read(value)
        except UnitError as error:
            self.report.refuse(key, f"{shown(key, value)} {error}", error.cure)
            return value
        whole = int in set(alternatives(annotation)) and float(number).is_integer()
        return int(number) if whole else number

    def _inside(self, annotation: Any, value: Any, key: Key) -> Any:
        """Translate the tables within a value."""
        kinds = list(alternatives(annotation))
        if isinstance(value, dict):
            models = [kind for kind in kinds if is_model(kind)]
            if models:
                best = max(models, key=lambda model: len(spellings(model).keys() & value.keys()))
                return self.table(best, value, key)
            inner = _element(kinds, (dict, Mapping))
            return {word: self._inside(inner, it, (*key, word)) for word, it in value.items()} if inner else value
        if isinstance(value, list):
            inner = _element(kinds, (list, tuple, Sequence, set, frozenset))
            return [self._inside(inner, it, (*key, i)) for i, it in enumerate(value)] if inner else value
        return value


def _element(kinds: Sequence[Any], containers: tuple[Any, ...]) -> Any:
    """The type of what a container holds, if one of `kinds` is a container."""
    for kind in kinds:
        if get_origin(kind) in containers:
            return [arg for arg in get_args(kind) if arg is not ...][-1]
    return None


# ------------------------------------------------------------------------------------------------ messages


def _explain(
    detail: Any, model: type[BaseModel], values: Mapping[str, Any], key: Key, words: Mapping[Key, str], report: Report
) -> None:
    """Turn one of pydantic's errors into a problem at the right key of the file."""
    inner, place = _place(detail["loc"], values, key, words, missing=detail["type"] == "missing")
    value = detail["input"]
    if detail["type"] == "missing":
        field, word = _field(model, inner)
        meaning = f"{field.description}; " if field is not None and field.description else ""
        report.problem((*place[:-1], word or place[-1]), "is missing", meaning + _example(field, word))
        return
    wrong = (detail.get("ctx") or {}).get("error")
    if isinstance(wrong, UnitError):
        report.problem(place, f"{shown(place, value)} {wrong}", wrong.cure)
        return
    if wrong is not None:  # the model's own check; of a whole table it says what it means
        what = "" if isinstance(value, dict | list) else f"{shown(place, value)}: "
        if str(wrong).startswith(("is ", "has ", "must ")):
            what = what.replace(": ", " ")
        report.problem(place, f"{what}{wrong}")
        return
    message, cure = _words(detail, model, inner)
    report.problem(place, f"is {shown(place, value)}, {message}", cure)


def _place(loc: Sequence[str | int], values: Any, key: Key, words: Mapping[Key, str], missing: bool) -> tuple[Key, Key]:
    """Where an error is, in the model (below `key`) and in the words of the file.

    Pydantic's location also names alternatives of unions and the like; what is no key of the data is left out.
    """
    inside: Key = ()
    place = key
    for number, part in enumerate(loc, 1):
        last = number == len(loc)
        here = isinstance(values, dict) and part in values
        here = here or (isinstance(values, list) and isinstance(part, int) and part < len(values))
        if here or (missing and last):
            inside = (*inside, part)
            place = (*place, words.get((*key, *inside), part) if isinstance(part, str) else part)
            values = values[part] if here else None
    return inside, place


def _field(model: type[BaseModel], inner: Key) -> tuple[FieldInfo | None, str]:
    """The field at a place within a model, and how its key is best written."""
    current: Any = model
    field: FieldInfo | None = None
    word = ""
    for part in inner:
        models = [kind for kind in alternatives(current) if is_model(kind)]
        if models:
            fields = {f.alias or name: f for name, f in models[0].model_fields.items()}
            field = fields.get(str(part))
            word = recommended(models[0]).get(str(part), "")
            current = field.annotation if field is not None else None
        else:
            field, word = None, ""
            current = _element(list(alternatives(current)), (dict, Mapping, list, tuple, Sequence, set, frozenset))
    return field, word


def _example(field: FieldInfo | None, word: str) -> str:
    if field is None or not field.examples:
        return f"write {word} = ..." if word else "add it"
    value = field.examples[0]
    text = f'"{value}"' if isinstance(value, str) else str(value).replace("'", '"')
    return f"write {word} = {text}"


_EXPECTED: Mapping[str, tuple[str, str]] = {
    "string": ("must be a text", 'text goes in quotes: "..."'),
    "int": ("must be a whole number", "write it without quotes and without a decimal point"),
    "float": ("must be a number", "write it without quotes"),
    "finite": ("must be a finite number", "leave the key out if there is no limit"),
    "bool": ("must be true or false", "write it without quotes, in lower case"),
    "list": ("must be an array", 'arrays go in brackets: ["...", "..."]'),
    "tuple": ("must be an array", 'arrays go in brackets: ["...", "..."]'),
    "set": ("must be an array", 'arrays go in brackets: ["...", "..."]'),
    "dict": ("must be a table", "give it a [header] of its own, or write { key = value }"),
    "model": ("must be a table", "give it a [header] of its own, or write { key = value }"),
    "mapping": ("must be a table", "give it a [header] of its own, or write { key = value }"),
    "path": ("must be a path", 'text goes in quotes: "..."'),
}
_OF_THE_WRONG_TYPE = frozenset({"type", "parsing", "parsing_size", "from_float", "number", "attributes_type"})
_BOUNDS = {
    "greater_than": "more than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}


def _words(detail: Any, model: type[BaseModel], inner: Key) -> tuple[str, str]:
    """What is expected instead, and what to write."""
    kind, context = detail["type"], detail.get("ctx") or {}
    for bound, word in _BOUNDS.items():
        if kind == bound:
            limit = next(value for name, value in context.items() if name in ("gt", "ge", "lt", "le"))
            return f"must be {word} {limit:g}", f"write {word} {limit:g}, or leave the key out"
    if kind in ("enum", "literal_error"):
        return "not one of the choices", suggestion(str(detail["input"]), _choices(model, inner), "choices")
    if kind == "too_short":
        return f"needs at least {context['min_length']}", "name one"
    expected, _, reason = kind.partition("_")
    if reason in _OF_THE_WRONG_TYPE and expected in _EXPECTED:
        return _EXPECTED[expected]
    return detail["msg"][:1].lower() + detail["msg"][1:], ""


def _choices(model: type[BaseModel], inner: Key) -> list[str]:
    field, _ = _field(model, inner)
    kinds = list(alternatives(field.annotation)) if field is not None else []
    return list(choices_of(kinds))


def choices_of(kinds: Sequence[Any]) -> Iterator[str]:
    """The words that a field of these types may have."""
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Enum):
            yield from (str(member.value) for member in kind)
        elif get_origin(kind) is Literal:
            yield from map(str, get_args(kind))
