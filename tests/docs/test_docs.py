"""What the documentation says is tried: its Python runs, its commands parse, its names, files and links exist."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import typer

import qfleet
from qfleet.cli.main import app
from qfleet.comparison.plan import Request, make_plan
from qfleet.plugins import PLUGIN_SECTIONS, list_plugins, load_plugin
from qfleet.recipe import find_recipe, recipe_for_env
from qfleet.run_config import build_config, change_config, parse_override

ROOT = Path(__file__).parents[2]
PACKAGE = Path(qfleet.__file__).parent
README, CHINESE, CONTRIBUTING = ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "CONTRIBUTING.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FIELD = re.compile(
    r"(?:env|algo|network|strategy|engine|replay|evaluation|stop|checkpoint|logging|init)\.(?!py$)[a-z_.]*\*?"
)


class Block(NamedTuple):
    """A fenced block; `name` is the file that its first line names, as in "# corridor.py"."""

    language: str
    body: str

    @property
    def name(self) -> str | None:
        match = re.match(r"# (\S+\.py)\n", self.body)
        return match[1] if match else None


def blocks(page: Path, *languages: str) -> list[Block]:
    found = [Block(*match.groups()) for match in FENCE.finditer(page.read_text("utf-8"))]
    return [block for block in found if not languages or block.language in languages]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text("utf-8"))


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def headings(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^(#+) (.+)$", prose(page), re.MULTILINE)


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# Python


def run(folder: Path, *args: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *args], cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(args)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    found = blocks(README, "python")
    scripts = [block for block in found if block.name is None]
    assert len(scripts) >= 2
    for block in found:
        if block.name is not None:
            (tmp_path / block.name).write_text(block.body, "utf-8")
    outputs = []
    for number, block in enumerate(scripts):
        (tmp_path / f"block{number}.py").write_text(block.body, "utf-8")
        outputs.append(run(tmp_path, f"block{number}.py"))
    assert re.search(r"^\d+\.\d+ after \d+ env steps\naction [01] of values \[", outputs[0]), outputs[0]
    returns = [float(line.split()[-1]) for line in outputs[1].splitlines()]
    assert len(returns) >= 4, "a validation each thousand env steps"
    assert returns[-1] == 1.0, "the corridor is learned"


def test_the_readmes_own_parts_run_from_the_command_line(tmp_path: Path) -> None:
    (command,) = [words for words in shell_commands(README) if "corridor:impatient_corridor" in words]
    for block in blocks(README, "python"):
        if block.name is not None:
            (tmp_path / block.name).write_text(block.body, "utf-8")
    entry = "from qfleet.cli.main import main; main()"
    small = ["--quiet", "--max-env-steps", "3000"]
    assert "held-out return 0.9" in run(tmp_path, "-c", entry, *command[1:], *small, PYTHONPATH=".")


def test_the_examples_of_contributing_pass_the_contract_tests(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "src" / "qfleet", ignore=shutil.ignore_patterns("__pycache__"))
    names = []
    for block in blocks(CONTRIBUTING, "python"):
        assert block.name is not None
        assert not (ROOT / block.name).exists(), "an example must not hide a real file"
        (tmp_path / block.name).write_text(block.body, "utf-8")
        names.append(Path(block.name).stem)
    assert len(names) == 3, "an algorithm, a strategy, an engine"
    contracts = str(ROOT / "tests" / "contracts")
    ours = f"(test_floors or test_config_fields or {' or '.join(names)}) and not planted"
    options = [
        "-m",
        "pytest",
        contracts,
        "--rootdir",
        str(ROOT),
        "-p",
        "no:cacheprovider",
        "-rA",
        "--ray",
        "without",
        "-k",
        ours,
    ]
    output = run(ROOT, *options, PYTHONPATH=str(tmp_path / "src"))
    for name in names:
        assert re.search(rf"PASSED .*test_every_pair_trains\[.*{name}", output), f"{name} was not trained"


# Commands


def words_of(line: str) -> Iterator[list[str]]:
    """The commands of a shell line, as words, without the variables set for one of them."""
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word == "&&":
            if words:
                yield words
            words = []
        elif words or not re.fullmatch(r"[A-Z_]+=.*", word):
            words.append(word.removeprefix(".venv/bin/"))


def shell_commands(page: Path) -> list[list[str]]:
    lines = [line for block in blocks(page, "bash") for line in block.body.replace("\\\n", " ").splitlines()]
    lines += [code for code in inline_code(page) if re.match(r"(qfleet|make|pip install|python \S+\.py)( |$)", code)]
    return [words for line in lines for words in words_of(line)]


COMMANDS = [(page, words) for page in PAGES for words in shell_commands(page)]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page.stem}: {shlex.join(w)}" for page, w in COMMANDS])
def test_a_command_parses(page: Path, words: list[str]) -> None:
    program, *rest = words
    if program == "qfleet":
        parse_qfleet(rest)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets)
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert rest[0] == "install"
        pattern = r"\.(?:\[(.+)\])?" if rest[1] == "-e" else r"qfleet(?:\[(.+)\])?"
        extras = re.fullmatch(pattern, rest[-1])
        assert extras is not None
        assert set((extras[1] or "").split(",")) - {""} <= set(project["optional-dependencies"])
    elif program == "python" and rest[0] != "-m":
        source = (ROOT / rest[0]).read_text("utf-8")
        for option in (word for word in rest if re.match(r"--\S+$", word)):
            assert f'"{option}"' in source, f"{rest[0]} has no {option}"
    else:
        assert program in ("python", "ruff", "mypy"), f"a command that nothing checks: {shlex.join(words)}"


def test_every_benchmark_has_its_command() -> None:
    commands = shell_commands(ROOT / "docs" / "performance.md")
    named = {words[1] for words in commands if words[0] == "python"}
    assert named == {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")} - {
        "benchmarks/harness.py",
        "benchmarks/recorded.py",
        "benchmarks/marginal_rate.py",
        "benchmarks/serving_load.py",
        "benchmarks/serving_images.py",
    }


def parse_qfleet(args: list[str]) -> None:
    """Parse by the command line's own parser; nothing runs."""
    command: Any = typer.main.get_command(app)
    name = "qfleet"
    while args and args[0] in getattr(command, "commands", {}):
        name, args = args[0], args[1:]
        command = command.commands[name]
    try:
        context = command.make_context(name, list(args))
    except typer.Exit:  # --help and --version answer at once
        return
    if hasattr(command, "commands"):
        assert not args, f"{name} has no command {args[0]}"
    if name == "train":
        check_training(context.params)
    if name == "compare":
        check_comparison(context.params)
    if name == "show":
        find_recipe(context.params["name"])


def check_comparison(params: dict[str, Any]) -> None:
    """A `qfleet compare` would pass its own checks; nothing runs."""
    env = "CartPole-v1" if params["env"] == "ENV" else params["env"]
    overrides = dict(parse_override(text) for text in params["settings"] or [])
    names = ("algos", "seeds", "budget", "engine", "recipe", "workers")
    make_plan(Request(env, params["strategies"], *(params[name] for name in names), overrides), Path("nowhere"))


def check_training(params: dict[str, Any]) -> None:
    """The recipe, the fields and the values that a `qfleet train` names are there."""
    overrides = dict(parse_override(text) for text in params["settings"] or [])
    if params["resume"] is not None:
        assert params["env"] is params["recipe"] is None
        assert {key.split(".")[0] for key in overrides} <= {"stop", "checkpoint", "logging"}
    if params["until_return"] is not None:
        overrides["stop.until_return"] = parse_override(f"value={params['until_return']}")[1]
    overrides |= {key: params[key] for key in ("algo", "strategy", "engine") if params[key] is not None}
    named = params["recipe"]
    env = params["env"] or ""
    recipe = find_recipe(named, env) if named and not named.endswith(".toml") else recipe_for_env(env, params["algo"])
    build_config((recipe or find_recipe("vector")).values, list(overrides.items()))


@pytest.mark.parametrize(
    "line",
    [
        "qfleet train CartPole-v1 --no-such-option",
        "qfleet train CartPole-v1 --set algo.learning_rat=1",
        "qfleet train CartPole-v1 --set algo.loss=hubert",
        "qfleet train CartPole-v1 --algo decoy",
        "qfleet train CartPole-v1 --recipe decoy",
        "qfleet recipes show decoy",
        "qfleet compare CartPole-v1 --strategies serial,decoy",
        "qfleet compare CartPole-v1 --strategies parameter_server:wait=decoy",
        "qfleet decoy",
        "qfleet evaluate",
        "make decoy",
        "pip install -e '.[decoy]'",
        "pip install 'qfleet[decoy]'",
        "python benchmarks/replay.py --decoy",
    ],
)
def test_a_wrong_command_is_caught(line: str) -> None:
    (words,) = words_of(line)
    with pytest.raises(Exception):  # noqa: B017 - each parser has its own
        test_a_command_parses(README, words)


# Names, files, links


def all_fields() -> set[str]:
    """Dotted names of every field, and of every table; of every algorithm, strategy and engine there is."""
    names: set[str] = set()

    def visit(section: Any, prefix: str) -> None:
        for name, info in type(section).model_fields.items():
            dotted = f"{prefix}{info.alias or name}"
            names.add(dotted)
            value = getattr(section, name)
            if hasattr(type(value), "model_fields"):
                visit(value, f"{dotted}.")

    visit(change_config(build_config({}, []), []), "")
    for axis in PLUGIN_SECTIONS:
        for plugin in list_plugins(axis):
            visit(load_plugin(axis, plugin).Config(), f"{axis}.")
    return names


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_field_named_exists(page: Path) -> None:
    fields = all_fields()
    for code in inline_code(page):
        match = FIELD.fullmatch(re.split(r"[ =]", code)[0])
        if match is None:
            continue
        name = match[0]
        known = any(field.startswith(name[:-1]) for field in fields) if name.endswith("*") else name in fields
        assert known, f"{page_name(page)}: no field {name}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_file_named_exists(page: Path) -> None:
    for code in inline_code(page):
        if not re.fullmatch(r"[\w./-]+(\.py|/)", code) or code.endswith("qfleet/"):
            continue
        places = [ROOT / code, PACKAGE / code, PACKAGE.parent / code]
        found = any(place.exists() for place in places) or ("/" not in code and any(ROOT.glob(f"*/**/{code}")))
        assert found, f"{page_name(page)}: no file {code}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page_name(page)}: {target}"
        assert there.is_relative_to(ROOT)
        if anchor:
            slugs = {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for _, text in headings(there)}
            assert anchor in slugs, f"{page_name(page)}: {target}"


def test_the_floors_of_the_architecture_page_are_the_files_there_are() -> None:
    (floors,) = [block.body for block in blocks(ARCHITECTURE) if block.body.startswith("src/qfleet/\n8")]
    named = Counter(re.findall(r"\w+\.py", floors))
    there = Counter(path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    assert named - there == Counter(), "named, but not there"
    assert there - named == Counter(), "there, but not named"


# Pages that must agree


def test_the_chinese_readme_has_the_same_shape() -> None:
    assert [level for level, _ in headings(CHINESE)] == [level for level, _ in headings(README)]
    assert blocks(CHINESE) == blocks(README)
    assert Counter(inline_code(CHINESE)) == Counter(inline_code(README))
    own = {README.name, CHINESE.name}
    links = [[target for target in LINK.findall(prose(page)) if target not in own] for page in (README, CHINESE)]
    assert Counter(links[0]) == Counter(links[1])
    assert CHINESE.name in LINK.findall(prose(README))
    assert README.name in LINK.findall(prose(CHINESE))
    rows = [len(re.findall(r"^\|", prose(page), re.MULTILINE)) for page in (README, CHINESE)]
    assert rows[0] == rows[1]


def load_generator() -> ModuleType:
    path = ROOT / "docs" / "generate_configuration.py"
    spec = importlib.util.spec_from_file_location("generate_configuration", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_page_is_current() -> None:
    committed = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    assert load_generator().page() == committed, "run: python docs/generate_configuration.py > docs/configuration.md"


def test_a_field_without_a_meaning_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = load_generator()
    monkeypatch.delitem(generator.MEANINGS, "algo.gamma")
    with pytest.raises(SystemExit, match=r"algo\.gamma has no meaning"):
        generator.page()
    monkeypatch.setitem(generator.MEANINGS, "algo.gamma", "Discount.")
    monkeypatch.setitem(generator.MEANINGS, "algo.decoy", "Nothing.")
    with pytest.raises(SystemExit, match=r"without a field: algo\.decoy"):
        generator.page()
