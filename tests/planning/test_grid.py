"""What is planned: sizes, strategies, and what is refused in one line."""

from __future__ import annotations

import pytest

from qfleet.errors import ConfigError, UsageError
from qfleet.planning.grid import Grid, Request, make_grid, parse_sizes

ENV = "qfleet/Identity-v0"


def grid(strategies: str = "all", workers: str = "1,2", **changes: object) -> Grid:
    return make_grid(Request(ENV, strategies, workers, recipe="vector", overrides=changes))


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("8", [8]),
        ("4, 2,2", [2, 4]),
        ("1,2,4,...,32", [1, 2, 4, 8, 16, 32]),
        ("1,2,4,...,40", [1, 2, 4, 8, 16, 32, 40]),
        ("1,3,...,27", [1, 3, 9, 27]),
        ("2,5,...,12", [2, 5, 8, 11, 12]),
    ],
)
def test_dots_go_on_by_factor_or_by_step(text: str, sizes: list[int]) -> None:
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize("text", ["0", "", "two", "1,...,8", "1,2,...", "1,2,...,...,8", "4,2,...,8", "-1", "1000000"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--workers"):
        parse_sizes(text)


def test_all_is_every_strategy_and_every_rule_of_the_servers() -> None:
    labels = list(dict.fromkeys(cell.label for cell in grid().cells))
    assert [name for name in labels if name.startswith("parameter_server")] == [
        "parameter_server:wait=sync",
        "parameter_server:wait=ssp",
        "parameter_server:wait=async",
    ]
    assert {"serial", "all_reduce", "sync_groups", "distributed_replay", "federated", "actor_learner"} < set(labels)


def test_what_cannot_be_is_a_cell_with_its_reason() -> None:
    cells = {cell.key: cell for cell in grid().cells}
    assert "does not fit" in str(cells["actor_learner", 1].why_not)
    assert "some would be empty" in str(cells["sync_groups", 1].why_not)
    assert cells["sync_groups", 2].config is not None
    assert ("serial", 1) in cells
    assert ("serial", 2) not in cells


def test_every_worker_has_room_for_batches() -> None:
    (cell,) = grid("parameter_server", "64", **{"algo.batch_size": 32, "replay.capacity": 1000}).cells
    assert cell.config is not None
    assert cell.config.replay.capacity == 64 * 2 * 32


def test_wait_rules_share_their_costs_and_other_roles_do_not() -> None:
    text = "parameter_server,parameter_server:wait=async,parameter_server:local_steps=4,all_reduce"
    found = grid(text, "8").calibrating()
    assert [label for label, _ in found] == ["parameter_server", "parameter_server", "all_reduce"]
    assert all(config.strategy.num_workers == 1 for _, config in found)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("strategies", "changes", "message"),
    [
        ("paralel_server", {}, "no such strategy"),
        ("serial,serial", {}, "serial is named twice"),
        ("parameter_server:wait=sometimes", {}, "wait"),
        ("all", {"engine.cluster": "x.toml"}, "--set engine.cluster"),
        ("serial", {"algo.batch_size": 0}, "batch_size"),
    ],
)
def test_what_is_wrong_with_all_of_it_is_one_line(strategies: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises((UsageError, ConfigError), match=message):
        grid(strategies, "2", **changes)
