"""A config field that nothing reads is a promise that nobody keeps: every one is read somewhere in the source."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import qfleet

PACKAGE = Path(qfleet.__file__).parent
BASES = {"Section", "BaseModel"}


def is_section(node: ast.ClassDef, sections: set[str]) -> bool:
    return any(isinstance(base, ast.Name) and base.id in sections for base in node.bases)


def unread_fields(package: Path) -> list[str]:
    """class.field of every field of a section that no attribute access in the package reads."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in sorted(package.rglob("*.py"))}
    classes = [
        (path, node) for path, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    ]
    sections = set(BASES)
    while new := {node.name for _, node in classes if is_section(node, sections)} - sections:
        sections |= new
    fields = {
        (path, node.name, item.target.id)
        for path, node in classes
        if is_section(node, sections)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    read = {
        node.attr
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    return sorted(f"{owner}.{field}" for _, owner, field in fields if field not in read)


def test_every_field_is_read() -> None:
    assert unread_fields(PACKAGE) == []


def test_a_planted_unread_field_is_caught(tmp_path: Path) -> None:
    copy = tmp_path / "qfleet"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for file, class_name in (
        ("config.py", "class StopConfig(Section):"),
        ("algos/dqn.py", "class Config(MunchausenConfig):"),
    ):
        path = copy / file
        text = path.read_text("utf-8")
        head, tail = text.split(class_name)
        docstring_end = tail.index('"""', tail.index('"""') + 3) + 3
        planted = "\n\n    planted_decoy: int = 99\n"
        path.write_text(head + class_name + tail[:docstring_end] + planted + tail[docstring_end:], "utf-8")
    assert unread_fields(copy) == ["Config.planted_decoy", "StopConfig.planted_decoy"]
