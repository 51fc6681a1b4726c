"""Prices and money, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from qfleet.errors import ConfigError, UsageError
from qfleet.planning.prices import Fleet, MachineType, Needs, cost_of, fleet_of, read_prices

MACHINE = MachineType(name="m", cores=4, on_demand=3.6, spot=0.9, preemptions_per_hour=0.1)
FILE = 'date = 2025-01-02\nsource = "mine"\n'


def test_workers_fill_up_the_heads_machine_first() -> None:
    # 3 others on 4 cores leave one for a worker; 9 more fill 2.25 machines.
    fleet = fleet_of(MACHINE, Needs(num_workers=10, num_others=3))
    assert (fleet.num_head, fleet.num_worker) == (1, 3)
    # Half a core each: two on the head's, 8 on each further one.
    assert fleet_of(MACHINE, Needs(10, 3, worker_cpus=0.5)).num_worker == 1
    assert fleet_of(MACHINE, Needs(1, 5)).num_head == 2


def test_a_worker_that_fits_no_machine_is_refused() -> None:
    with pytest.raises(UsageError, match="m has 4 cores, and a worker asks for 5"):
        fleet_of(MACHINE, Needs(1, 1, worker_cpus=5.0))
    with pytest.raises(UsageError, match="m has 0 GPUs"):
        fleet_of(MACHINE, Needs(1, 1, other_gpus=1.0))


def test_gpus_decide_where_they_are_scarcer_than_cores() -> None:
    machine = MachineType(name="g", cores=8, gpus=2, on_demand=1.0)
    # The learner takes one GPU of the first machine, a worker the other; six more workers fill three machines.
    fleet = fleet_of(machine, Needs(7, 3, worker_gpus=1.0, other_gpus=1.0))
    assert (fleet.num_head, fleet.num_worker) == (1, 3)


def test_money_is_the_machines_hours_and_spot_pays_for_what_is_lost() -> None:
    # Two machines on demand for an hour: 7.2. With the worker's on spot: 3.6 + 0.9 = 4.5 an hour; a preemption every
    # ten hours on each of 1 machine loses 0.05 hours: 0.5% longer.
    cost = cost_of(Fleet(MACHINE, 1, 1, waits=True), 3600.0, restart_seconds=180.0)
    assert cost.money == pytest.approx(7.2)
    assert cost.spot_seconds == pytest.approx(3600 * 1.005)
    assert cost.spot_money == pytest.approx(4.5 * 1.005)
    assert cost.least == cost.spot_money


def test_where_all_wait_every_machine_adds_its_preemptions() -> None:
    assert Fleet(MACHINE, 1, 10, waits=True).lost_share(180.0) == pytest.approx(0.05)
    assert Fleet(MACHINE, 1, 10, waits=False).lost_share(180.0) == pytest.approx(0.005)
    assert Fleet(MACHINE, 1, 0, waits=False).lost_share(180.0) == 0.0


def test_without_workers_machines_there_is_no_spot() -> None:
    cost = cost_of(Fleet(MACHINE, 1, 0, waits=True), 10.0, 180.0)
    assert (cost.spot_seconds, cost.spot_money) == (None, None)
    assert cost.least == cost.money == pytest.approx(0.01)


def test_the_list_that_comes_with_it_is_dated_and_says_what_it_is() -> None:
    prices = read_prices(None)
    assert prices.date.year >= 2025
    assert "replace" in prices.source
    assert {one.name.split("-")[0] for one in prices.machine} == {"aws", "gcp", "azure"}
    assert all(one.spot is not None and one.spot < one.on_demand for one in prices.machine)
    chosen = prices.choose(None)
    assert chosen.gpus == 0
    assert prices.choose(None, needs_gpu=True).gpus == 1
    with pytest.raises(UsageError, match=r"--machine aws-c7g.4xlarg: .*did you mean aws-c7g.4xlarge\?"):
        prices.choose("aws-c7g.4xlarg")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("date =", "not TOML"),
        ('date = 2025-01-02\nmachine = "m"\nsource = "s"', r"write \[\[machine\]\]"),
        (FILE, "machine: this field is required|no machine"),
        (FILE + '[[machine]]\nname = "a"\ncores = 0\non_demand = 1', r"machine\[0\].cores = 0"),
        (
            FILE + '[[machine]]\nname = "a"\ncores = 1\non_demand = 1\nspots = 1',
            r"machine\[0\].spots = 1: no such field",
        ),
        (FILE + '[[machine]]\nname = "a"\ncores = 1\ngpus = 1\non_demand = 1', "no machine without a GPU"),
        (FILE + 2 * '[[machine]]\nname = "a"\ncores = 1\non_demand = 1\n', "the same name"),
        ('source = "s"\n[[machine]]\nname = "a"\ncores = 1\non_demand = 1', "date: this field is required"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_prices(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"--prices nowhere\.toml: No such file"):
        read_prices("nowhere.toml")
