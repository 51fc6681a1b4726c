"""Imports go downward only. Reads every import in the source, those inside functions and under TYPE_CHECKING too."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import qfleet

PACKAGE = Path(qfleet.__file__).parent
FRONT_DOOR = "qfleet"  # __init__.py: names Experiment and load_policy for the user, loaded when used
ENGINES, STRATEGIES = 5.0, 5.1
FLOORS = {
    **dict.fromkeys(["types", "config", "errors", "seeding", "storage", "version"], 0.0),
    "ops": 1.0,
    **dict.fromkeys(["networks", "envs", "replay"], 2.0),
    "algos": 3.0,
    "roles": 4.0,
    # What an engine is built from may know the protocol, and no more of learning than an engine does.
    **dict.fromkeys(["engines", "placement"], ENGINES),
    "strategies": STRATEGIES,
    **dict.fromkeys(
        [
            "experiment",
            "session",
            "schedule",
            "validation",
            "steering",
            "notices",
            "outcome",
            "histogram",
            "bottleneck",
            "tracker",
            "checkpoint",
            "run_dir",
            "plugins",
            "run_config",
            "metrics",
            "remote_logs",
            "policy",
            "onnx_policy",
            "client",
            "recipe",
            "recipes",
            "curve",
            "series",
            "machine",
            "detached",
            "attached",
        ],
        6.0,
    ),
    **dict.fromkeys(["comparison", "evaluation", "report", "export", "serving", "planning", "cloud", "tuning"], 7.0),
    "cli": 8.0,
    "__main__": 9.0,
}
Graph = dict[str, set[str]]


def module_name(path: Path, package: Path) -> str:
    parts = ["qfleet", *path.relative_to(package).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Dotted names of qfleet's that a file imports, `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")
                above = above[: len(above) - node.level + is_package]
                base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def import_graph(package: Path) -> Graph:
    """Which modules of qfleet each module imports."""
    files = {module_name(path, package): path for path in package.rglob("*.py")}
    graph: Graph = {}
    for module, path in files.items():
        edges = graph.setdefault(module, set())
        for name in imported_names(ast.parse(path.read_text("utf-8")), module, path.name == "__init__.py"):
            if name.split(".")[0] != "qfleet":
                continue
            target = name
            while target not in files:  # a class or function: the module that holds it
                target = target.rpartition(".")[0]
            if target != module:
                edges.add(target)
    return graph


def floor_of(module: str) -> float:
    return FLOORS[module.split(".")[1]]


def upward_imports(graph: Graph) -> list[str]:
    """One line for each import that the floors forbid."""
    faults = []
    for module, targets in graph.items():
        if module == FRONT_DOOR:
            continue
        floor = floor_of(module)
        for target in targets:
            if target == FRONT_DOOR:
                faults.append(f"{module} imports the front door; import the module itself")
                continue
            below = floor_of(target)
            if below > floor:
                faults.append(f"{module} (floor {floor:g}) imports {target} (floor {below:g})")
            elif floor == ENGINES and not (below == 0 or below == ENGINES):
                faults.append(f"engine {module} imports {target}: an engine knows nothing of learning")
            elif floor == STRATEGIES and below == ENGINES and target != "qfleet.engines.base":
                faults.append(f"strategy {module} imports {target}: a strategy sees engines/base.py only")
    return sorted(faults)


def circles(graph: Graph) -> list[str]:
    """Modules that import each other in the end, as "a -> b -> a"."""
    found: list[str] = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
            return
        if module in done:
            return
        for target in sorted(graph.get(module, ())):
            visit(target, [*path, module])
        done.add(module)

    for module in sorted(graph):
        if module != FRONT_DOOR:
            visit(module, [])
    return found


def test_every_module_stands_on_a_floor() -> None:
    unknown = {module for module in import_graph(PACKAGE) if "." in module and module.split(".")[1] not in FLOORS}
    assert not unknown, "give the new room a floor in DESIGN.md and in FLOORS"


def test_no_import_goes_up() -> None:
    assert upward_imports(import_graph(PACKAGE)) == []


def test_no_imports_go_in_a_circle() -> None:
    assert circles(import_graph(PACKAGE)) == []


def test_nothing_but_a_strategy_imports_a_strategy_or_an_engine() -> None:
    # recipe.py finds all of them by name, and imports their base classes only.
    graph = import_graph(PACKAGE)
    concrete = {m for m in graph if m.split(".")[1:2] in (["engines"], ["strategies"]) and m.count(".") == 2}
    concrete -= {"qfleet.engines.base", "qfleet.strategies.base"}
    assert concrete, "no engine and no strategy found"
    for module, targets in graph.items():
        # An engine may extend an engine, and a strategy a strategy; neither knows the other kind.
        folder = module.split(".")[1:2]
        others = {target for target in targets & concrete if target.split(".")[1:2] != folder}
        assert not others, f"{module} imports {others}"


PLANTED = [
    (
        "ops/pacing.py",
        "from qfleet.roles.worker import Worker",
        "qfleet.ops.pacing (floor 1) imports qfleet.roles.worker",
    ),
    (
        "envs/vector.py",
        "def later():\n    from qfleet import session",
        "qfleet.envs.vector (floor 2) imports qfleet.session",
    ),
    (
        "networks/flat.py",
        "def later():\n    import qfleet.algos.dqn as hidden",
        "qfleet.networks.flat (floor 2) imports qfleet.algos.dqn",
    ),
    (
        "roles/actor.py",
        "if TYPE_CHECKING:\n    from ..experiment import Experiment",
        "qfleet.roles.actor (floor 4) imports qfleet.experiment",
    ),
    (
        "strategies/serial.py",
        "from qfleet.engines.inline import Engine as Inline",
        "strategy qfleet.strategies.serial imports qfleet.engines.inline",
    ),
    (
        "engines/inline.py",
        "from qfleet.ops.pacing import updates_allowed",
        "engine qfleet.engines.inline imports qfleet.ops.pacing",
    ),
    (
        "engines/inline.py",
        "from qfleet.strategies.base import Event",
        "qfleet.engines.inline (floor 5) imports qfleet.strategies.base",
    ),
    ("types.py", "from qfleet import Experiment", "qfleet.types imports the front door"),
]


@pytest.mark.parametrize(("file", "line", "fault"), PLANTED)
def test_a_planted_import_is_caught(tmp_path: Path, file: str, line: str, fault: str) -> None:
    copy = tmp_path / "qfleet"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = upward_imports(import_graph(copy))
    with (copy / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    new = set(upward_imports(import_graph(copy))) - set(before)
    assert len(new) == 1
    assert new.pop().startswith(fault)


def test_a_planted_circle_is_caught(tmp_path: Path) -> None:
    copy = tmp_path / "qfleet"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "replay" / "storage.py").open("a", encoding="utf-8") as source:
        source.write("\ndef later():\n    from qfleet.replay.segments import save_replay\n")
    assert [circle for circle in circles(import_graph(copy)) if "storage -> qfleet.replay.segments" in circle]
