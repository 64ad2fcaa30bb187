"""Term rules: the YAML file of a domain that says which words are bound into one.

    words:                      classes of single words
      unit: [Formation, Shale]            a list, or
      unit: {words: [...], spellings: {Formation: [Fm, Fm.]}, shape: "...", also: [...], but_not: [...],
             learn: {from: name, after: [genus]}}
    terms:                      terms of several words, in full
      locality: [South China, ...]        a list, or {words: [...], spellings: {South China: [S. China]}}
    rules:                      terms made of words of classes
      formation: modifier? name{1,2} unit            a pattern, a list of patterns, or
      stage: {pattern: rank number, joints: [space, hyphen], initial_of: genus}

`shape` is a regular expression (RE2) for the whole word; a spelling or a shape that ends in a dot stands for
an abbreviation. `learn`: a word of class `from` right after one of the words `after` belongs to the class in
the rest of its document. A pattern's items are classes, `a|b`, with `?` or `{1,2}`. `initial_of`: the first
word is the initial of a word of that class, a listed one or one that was learned before in the document. A
pattern does not end on a small-lettered word that a hyphen joins to another one.
"""

import re
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from data_pipes.documents import pc
from data_pipes.normalizing.changes import NormalizerError
from data_pipes.normalizing.keys import suggest, take_keys, take_list, take_mapping

SHIPPED = Path(__file__).parent / "shipped"
JOINTS = ("space", "hyphen")
MAX_WORDS = 8
MAX_EXPANSIONS = 200
MAX_CHARACTERS = 16 << 20
MAX_DEPTH = 20
WORD = re.compile(r"\w+")
_TERM_GAP = re.compile(r" |-|\. ?|['\u2019]")
_ITEM = re.compile(r"([a-z][a-z0-9_]*(?:\|[a-z][a-z0-9_]*)*)(\?|\{(\d),(\d)\}|\{(\d)\})?")


@dataclass(frozen=True)
class WordClass:
    """Single words that play one part.

    Attributes:
        forms: spelling -> normal form; a spelling with a dot at its end is an abbreviation.
        shape: a regular expression for further words.
        also: classes whose words belong too.
        but_not: classes whose words do not belong.
        learn_from: the class of words that can be learned, and the words before them.
        learn_after: those words.
    """

    forms: dict[str, str] = field(default_factory=dict)
    shape: str | None = None
    also: tuple[str, ...] = ()
    but_not: tuple[str, ...] = ()
    learn_from: str | None = None
    learn_after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pattern:
    """One sequence of classes; `?` and `{1,2}` are written out. Each item lists the classes it allows."""

    rule: str
    items: tuple[tuple[str, ...], ...]
    joints: tuple[str, ...] = ("space",)
    initial_of: str | None = None


@dataclass(frozen=True)
class TermRules:
    """A read rule file.

    Attributes:
        place: the file's name, for messages.
        classes: by name.
        terms: rule -> spelling -> normal form, with spaces.
        patterns: in the file's order.
    """

    place: str
    classes: dict[str, WordClass]
    terms: dict[str, dict[str, str]]
    patterns: tuple[Pattern, ...]

    def spellings(self) -> dict[str, str]:
        """Every spelling that has another normal form, with that form."""
        tables = [*(item.forms for item in self.classes.values()), *self.terms.values()]
        return {old: new for table in tables for old, new in table.items() if old != new}


class _Loader(yaml.BaseLoader):
    """Every scalar is a string, so that `No` and `10` stay terms; a key must not stand twice.

    Aliases are refused, since nine lines of them stand for a gigabyte, and so is nesting beyond MAX_DEPTH.
    """

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        self._depth += 1
        if isinstance(event, yaml.AliasEvent) or self._depth > MAX_DEPTH:
            what = "an alias" if isinstance(event, yaml.AliasEvent) else f"nested more than {MAX_DEPTH} deep"
            raise NormalizerError(f"line {event.start_mark.line + 1}: {what}; write the terms out")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [str(self.construct_object(key, deep=True)) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                line = node.value[place][0].start_mark.line + 1
                raise NormalizerError(f"line {line}: the key {key!r} stands twice; keep one")
        return dict(
            zip(keys, (self.construct_object(value, deep=True) for _, value in node.value), strict=True)
        )


def find_rule_file(file: str) -> Path:
    """The path of a rule file: the name of a shipped one, or a path."""
    shipped = {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}
    if file in shipped:
        return shipped[file]
    path = Path(file).expanduser()
    if path.is_file():
        return path
    raise NormalizerError(
        f"there is no rule file {file!r}{suggest(file, shipped)}; "
        f"give a path, or the name of a shipped one ({', '.join(shipped)})"
    )


def read_term_rules(path: Path) -> TermRules:
    """Read and check a rule file.

    Raises:
        NormalizerError: with the file, the key and what to change.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
        if len(text) > MAX_CHARACTERS:
            raise NormalizerError(f"is longer than {MAX_CHARACTERS:,} characters; part it")
        data = yaml.load(text, Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, NormalizerError) as error:
        raise NormalizerError(f"{path}: cannot be read: {error}") from error
    try:
        top = take_keys(data, "the file", ("description", "words", "terms", "rules"))
        words = take_mapping(top.get("words", {}), "words")
        classes = {name: _read_class(value, f"words.{name}") for name, value in words.items()}
        _check_references(classes)
        terms = {
            name: _read_terms(value, f"terms.{name}")
            for name, value in take_mapping(top.get("terms", {}), "terms").items()
        }
        rules = take_mapping(top.get("rules", {}), "rules")
        patterns = [pattern for name, value in rules.items() for pattern in _read_rule(name, value, classes)]
    except NormalizerError as error:
        raise NormalizerError(f"{path}: {error}") from error
    if not patterns and not terms:
        raise NormalizerError(f"{path}: binds nothing; give terms or rules")
    return TermRules(path.name, classes, terms, tuple(patterns))


def _read_class(value: Any, place: str) -> WordClass:
    if isinstance(value, list):
        value = {"words": value}
    given = take_keys(value, place, ("words", "spellings", "shape", "also", "but_not", "learn"))
    forms = _read_forms(given, place)
    for word in forms:
        if not WORD.fullmatch(word.removesuffix(".")):
            raise NormalizerError(
                f"{place}: {word!r} is not a single word of letters and digits; "
                "write terms of several words under terms"
            )
    shape = given.get("shape")
    if shape is not None:
        try:
            pc.match_substring_regex(pa.array([""]), f"^(?:{shape})$")
        except (pa.ArrowInvalid, TypeError) as error:
            raise NormalizerError(f"{place}.shape: {shape!r} is no regular expression: {error}") from error
    also, but_not = (tuple(take_list(given.get(key, []), f"{place}.{key}")) for key in ("also", "but_not"))
    learn = take_keys(given.get("learn", {}), f"{place}.learn", ("from", "after"))
    if learn and set(learn) != {"from", "after"}:
        raise NormalizerError(f"{place}.learn: wanted both `from` (a class) and `after` (words)")
    if not forms and shape is None and not also:
        raise NormalizerError(f"{place}: has no words; give words, spellings, a shape or also")
    after = tuple(take_list(learn.get("after", []), f"{place}.learn.after"))
    return WordClass(forms, shape, also, but_not, learn.get("from"), after)


def _read_forms(given: dict[str, Any], place: str) -> dict[str, str]:
    forms = {" ".join(word.split()): "" for word in take_list(given.get("words", []), f"{place}.words")}
    forms = {word: word for word in forms}
    spellings = take_mapping(given.get("spellings", {}), f"{place}.spellings")
    for normal, others in spellings.items():
        normal = " ".join(normal.split())
        forms[normal] = normal
        for other in take_list(others, f"{place}.spellings.{normal}"):
            other = " ".join(other.split())
            if forms.get(other, normal) != normal:
                raise NormalizerError(
                    f"{place}.spellings: {other!r} has two normal forms, {forms[other]!r} and {normal!r}"
                )
            forms[other] = normal
    return forms


def _check_references(classes: dict[str, WordClass]) -> None:
    for name, item in classes.items():
        for other in [*item.also, *item.but_not, *([item.learn_from] if item.learn_from else [])]:
            _find_class(other, classes, f"words.{name}")
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise NormalizerError(f"words.{name}: refers to itself ({' -> '.join([*above, name])})")
        if name not in done:
            item = classes[name]
            for other in [*item.also, *item.but_not]:
                visit(other, (*above, name))
            done.add(name)

    for name in classes:
        visit(name, ())


def _find_class(name: str, classes: dict[str, WordClass], place: str) -> str:
    if name not in classes:
        raise NormalizerError(
            f"{place}: there is no class {name!r}{suggest(name, classes)}; add it under words"
        )
    return name


def _read_terms(value: Any, place: str) -> dict[str, str]:
    if isinstance(value, list):
        value = {"words": value}
    forms = _read_forms(take_keys(value, place, ("words", "spellings")), place)
    for term in forms:
        if not term[:1].isalnum() or not term[-1:].isalnum():
            raise NormalizerError(f"{place}: {term!r} must begin and end with a letter or a digit")
        if odd := [gap for gap in re.findall(r"\W+", term) if not _TERM_GAP.fullmatch(gap)]:
            raise NormalizerError(f"{place}: {term!r} has {odd[0]!r} in it; allowed are a space, -, . and '")
        if len(WORD.findall(term)) > MAX_WORDS:
            raise NormalizerError(f"{place}: {term!r} has more than {MAX_WORDS} words; shorten it")
    return forms


def _read_rule(name: str, value: Any, classes: dict[str, WordClass]) -> list[Pattern]:
    place = f"rules.{name}"
    if not isinstance(value, dict):
        value = {"pattern": value}
    given = take_keys(value, place, ("pattern", "joints", "initial_of"))
    sources = given.get("pattern", [])
    sources = [sources] if isinstance(sources, str) else take_list(sources, f"{place}.pattern")
    if not sources:
        raise NormalizerError(f"{place}: has no pattern; write the classes of its words in order")
    joints = tuple(take_list(given.get("joints", ["space"]), f"{place}.joints"))
    for joint in joints:
        if joint not in JOINTS:
            raise NormalizerError(f"{place}.joints: {joint!r} is not known; known are {', '.join(JOINTS)}")
    initial_of = given.get("initial_of")
    if initial_of is not None:
        _find_class(initial_of, classes, f"{place}.initial_of")
    return [
        Pattern(name, items, joints, initial_of)
        for source in sources
        for items in _expand(source, classes, f"{place}.pattern")
    ]


def _expand(source: str, classes: dict[str, WordClass], place: str) -> list[tuple[tuple[str, ...], ...]]:
    """A pattern with every `?` and `{1,2}` written out, for sequences of 2 to MAX_WORDS words."""
    choices = []
    for text in source.split():
        found = _ITEM.fullmatch(text)
        if not found:
            raise NormalizerError(
                f"{place}: {text!r} is no item; write a class, `a|b`, `class?` or `class{{1,2}}`"
            )
        names = tuple(_find_class(name, classes, place) for name in found[1].split("|"))
        fewest, most = (
            (0, 1) if found[2] == "?" else (int(found[3] or found[5] or 1), int(found[4] or found[5] or 1))
        )
        if fewest > most:
            raise NormalizerError(f"{place}: {text!r} asks for at least {fewest} and at most {most}")
        choices.append([(names,) * count for count in range(fewest, most + 1)])
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MAX_EXPANSIONS:
        raise NormalizerError(f"{place}: stands for {count} sequences; split it into rules of fewer items")
    expanded = dict.fromkeys(sum(picked, ()) for picked in product(*choices))
    sequences = [items for items in expanded if 2 <= len(items) <= MAX_WORDS]
    if not sequences:
        raise NormalizerError(f"{place}: {source!r} must stand for 2 to {MAX_WORDS} words")
    return sequences
