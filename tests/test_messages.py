"""How the messages of the user's errors read: one sentence that ends with a full stop."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"scripts", "benchmarks"}
TREES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
    for folder in sorted(FOLDERS)
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def names_of_errors() -> set[str]:
    """`InputError` and all classes that derive from it."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    names = {"InputError"}
    while derived := {name for name in bases if bases[name] & names} - names:
        names |= derived
    return names


ERRORS = names_of_errors()


def messages(tree: ast.AST) -> Iterator[ast.expr]:
    """The message of each of these errors that a module makes."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[message, *_]) if name in ERRORS:
                yield message


MODULES = [name for name, tree in TREES.items() if any(True for _ in messages(tree))]


def ends(message: ast.expr) -> list[str]:
    """The texts that a message may end with; an empty one where a value comes last."""
    match message:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=[*_, last]) | ast.BinOp(op=ast.Add(), right=last):
            return ends(last)
        case ast.IfExp(body=body, orelse=orelse):
            return ends(body) + ends(orelse)
    return [""]


def test_errors_and_their_messages_are_found():
    assert {"InputError", "DatasetError", "ImageError", "SourceError"} <= ERRORS
    assert sum(1 for tree in TREES.values() for _ in messages(tree)) > 100


@pytest.mark.parametrize("module", MODULES)
def test_messages_end_with_a_full_stop(module):
    wrong = [
        f"{module}:{message.lineno}: {ast.unparse(message)}"
        for message in messages(TREES[module])
        if not all(end.endswith(".") and not end.endswith("..") for end in ends(message))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", MODULES)
def test_a_message_within_a_message_loses_its_full_stop(module):
    """`one_line(error)`, not the error itself, where that is one of these errors."""
    wrong = [
        f"{module}:{value.lineno}: {ast.unparse(message)}"
        for handler in ast.walk(TREES[module])
        if isinstance(handler, ast.ExceptHandler) and handler.name and handler.type
        if any(isinstance(x, ast.Name) and x.id in ERRORS for x in ast.walk(handler.type))
        for message in messages(handler)
        for value in ast.walk(message)
        if isinstance(value, ast.FormattedValue)
        and isinstance(value.value, ast.Name)
        and value.value.id == handler.name
    ]
    assert not wrong, "\n".join(wrong)
