"""The simulated cluster, by roles whose every second is worked out by hand: clocks, messages, rings, faults, places."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from qfleet.engines.base import Future, Part, Placement, RoleRef
from qfleet.engines.sim import Config, Engine
from qfleet.errors import NoRoom, RoleDied, ValueLost
from qfleet.types import Receipt, Reply

MakeEngine = Callable[..., Engine]


class Probe:
    """Counts its calls; `make` answers with so many bytes."""

    def __init__(self) -> None:
        self.num_calls = 0

    def work(self, *values: object) -> Receipt:
        self.num_calls += 1
        return Receipt(num_env_steps=3, num_updates=self.num_calls)

    def make(self, num_bytes: int) -> Reply:
        return Reply(Receipt(), np.zeros(num_bytes, np.uint8))

    def halves(self, num_bytes: int) -> Reply:
        return Reply(Receipt(), [np.zeros(num_bytes, np.uint8), np.zeros(0, np.uint8)])

    def average(self, num_rounds: int) -> Iterator[torch.Tensor]:
        for _ in range(num_rounds):
            yield torch.ones(100)  # 400 bytes


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[MakeEngine]:
    """cluster({"network": {...}}, seed=3): an engine; calls take a second, messages nothing, unless told otherwise."""
    made: list[Engine] = []

    def make(tables: dict[str, Any] | None = None, seed: int = 0, **engine: Any) -> Engine:
        base = {"network": {"latency": 0.0, "bandwidth": 1e30}, "compute": [{"seconds": 1.0}]}
        path = tmp_path / f"cluster-{len(made)}.toml"
        path.write_text(tomli_w.dumps({**base, **(tables or {})}))
        made.append(Engine(Config(cluster=str(path), **engine), seed))
        return made[-1]

    yield make
    for one in made:
        one.close()


def call(engine: Engine, role: RoleRef, method: str, *args: object) -> Future:
    future = engine.submit(role, method, *args)
    assert engine.wait() is future
    return future


def spawn(engine: Engine, number: int) -> list[RoleRef]:
    return [engine.spawn(f"worker-{i}", Probe) for i in range(number)]


def test_a_roles_calls_follow_each_other_and_roles_work_side_by_side(cluster: MakeEngine) -> None:
    engine = cluster()
    one, other = spawn(engine, 2)
    futures = [engine.submit(role, "work") for role in (one, one, other)]
    arrivals = {id(engine.wait()): engine.now() for _ in futures}
    assert [arrivals[id(future)] for future in futures] == [1.0, 2.0, 1.0]


def test_a_message_takes_latency_and_bytes(cluster: MakeEngine) -> None:
    engine = cluster({"network": {"latency": 2.0, "bandwidth": 10.0}})
    maker, user = spawn(engine, 2)
    made = call(engine, maker, "make", 40)
    assert engine.now() == 2 + 1 + 2, "request, work, receipt; the payload stays where it is"
    call(engine, user, "work", made)
    # Request 2, its asking for the payload 2, 40 bytes at 10 a second 4 and their latency 2, work 1, receipt 2.
    assert engine.now() == 5 + 2 + 2 + 4 + 2 + 1 + 2
    call(engine, user, "work", made)
    assert engine.now() == 18 + 2 + 1 + 2, "it is there already"
    call(engine, maker, "work", made)
    assert engine.now() == 23 + 5, "it has always been there"


def test_messages_queue_at_the_senders_and_at_the_receivers_port(cluster: MakeEngine) -> None:
    engine = cluster({"network": {"latency": 0.0, "bandwidth": 10.0}, "compute": [{"seconds": 0.0}]})
    roles = spawn(engine, 4)
    made = call(engine, roles[0], "make", 40)
    futures = [engine.submit(role, "work", made) for role in roles[1:]]
    moments = []
    for _ in futures:
        engine.wait()
        moments.append(engine.now())
    assert moments == [4.0, 8.0, 12.0], "one after the other leaves the sender"
    gifts = []
    for role in roles[1:]:
        gifts.append(engine.submit(role, "make", 40))
        engine.wait()
    engine.submit(roles[0], "work", *gifts)
    engine.wait()
    assert engine.now() == 12.0 + 12.0, "they leave at once, and come in one after the other"


def test_only_the_part_that_is_asked_for_travels(cluster: MakeEngine) -> None:
    engine = cluster({"network": {"latency": 0.0, "bandwidth": 10.0}, "compute": [{"seconds": 0.0}]})
    maker, user = spawn(engine, 2)
    made = engine.submit(maker, "halves", 40, num_parts=2)
    engine.wait()
    call(engine, user, "work", Part(made, 1))
    assert engine.now() == 0.0
    call(engine, user, "work", Part(made, 0))
    assert engine.now() == 4.0
    assert engine.usage()["worker-0"].num_bytes_out == 40


def test_links_speeds_devices_and_units_are_those_of_the_first_table_that_matches(cluster: MakeEngine) -> None:
    engine = cluster(
        {
            "network": {"latency": 0.0, "bandwidth": 10.0},
            "link": [
                {"between": ["worker-0", "worker-[12]"], "latency": 5.0},
                {"between": ["*", "*"], "latency": 99.0},
            ],
            "speed": {"worker-1": 0.5},
            "compute": [
                {"role": "worker-*", "method": "work", "device": "gpu", "seconds": 0.25},
                {"method": "work", "per": "env_step", "seconds": 2.0},
                {"seconds": 0.0},
            ],
        }
    )
    engine.network.file = engine.network.file.model_copy(
        update={"link": (engine.network.file.link[0],)}
    )  # the decoy would be for requests as well
    plain, slow = spawn(engine, 2)
    gpu = engine.spawn("worker-2", Probe, placement=Placement(num_gpus=1))
    call(engine, plain, "work")
    assert engine.now() == 6.0, "3 env steps at 2 s"
    call(engine, slow, "work")
    assert engine.now() == 6.0 + 12.0
    call(engine, gpu, "work")
    assert engine.now() == 18.25
    made = call(engine, plain, "make", 0)
    call(engine, slow, "work", made)
    assert engine.now() == 18.25 + 5 + 5 + 12, "there and back over the slow link"


def test_an_all_reduce_starts_at_the_last_arrival_and_charges_the_ring(cluster: MakeEngine) -> None:
    engine = cluster(
        {"network": {"latency": 0.5, "bandwidth": 100.0}, "compute": [{"seconds": 1.0}], "speed": {"worker-2": 0.25}}
    )
    group = spawn(engine, 4)
    futures = engine.all_reduce(group, "average", [(2,)] * 4)
    for _ in futures:
        engine.wait()
    # Request 0.5; twice: the slowest member's second at a quarter of the speed, 4, and the ring,
    # 2 (4 - 1) x (400 / 4 bytes / 100 + 0.5) = 9; the receipt 0.5.
    assert engine.now() == 0.5 + 2 * (4 + 9) + 0.5


@pytest.mark.parametrize(
    ("table", "mean"),
    [
        ({"distribution": "lognormal", "seconds": 2.0, "sigma": 0.8}, 2.0),
        ({"distribution": "shifted_exponential", "shift": 1.0, "scale": 0.5}, 1.5),
        ({"distribution": "pareto", "minimum": 1.0, "alpha": 4.0}, 4.0 / 3.0),  # alpha x_m / (alpha - 1)
        ({"distribution": "trace", "values": [1.0, 2.0, 6.0]}, 3.0),
    ],
)
def test_draws_have_the_mean_that_their_distribution_has(
    cluster: MakeEngine, table: dict[str, Any], mean: float
) -> None:
    engine = cluster({"compute": [table]})
    costs = engine.costs.of_role("worker-0", False)
    drawn = np.array([costs.draw("work", 0.0) for _ in range(20_000)])
    assert abs(drawn.mean() - mean) < 0.03 * mean
    assert drawn.std() > 0.1
    again = cluster({"compute": [table]}).costs.of_role("worker-0", False)
    assert [again.draw("work", 0.0) for _ in range(9)] == drawn[:9].tolist()
    other = cluster({"compute": [table]}).costs.of_role("worker-1", False)
    assert [other.draw("work", 0.0) for _ in range(9)] != drawn[:9].tolist()


def test_slowdowns_hit_a_share_of_the_roles_for_a_share_of_the_time(cluster: MakeEngine) -> None:
    table = {"role": "worker-*", "every": 3.0, "seconds": 1.0, "factor": 7.0, "share": 0.25}
    engine = cluster({"slowdown": [table]})
    names = [f"worker-{i}" for i in range(40)]
    factors = np.array([[engine.costs.slowdown(name, time) for name in names] for time in np.arange(0.0, 4000.0, 1.0)])
    assert set(np.unique(factors)) == {1.0, 7.0}
    is_on = (factors > 1.0).any(axis=1)
    assert abs(is_on.mean() - 0.25) < 0.03, "1 of 3 + 1 seconds"
    assert abs((factors[is_on] > 1.0).mean() - 0.25) < 0.03, "together: the same time for a quarter of them"
    assert engine.costs.slowdown("server-0", 0.5) == 1.0


def at(moment: float, kind: str, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "role": "worker-0", "at": moment, **fields}


def failure(engine: Engine, future: Future) -> Exception:
    with pytest.raises((RoleDied, ValueLost)) as caught:
        engine.result(future)
    return caught.value


def test_a_crash_takes_the_call_that_runs_and_leaves_what_was_made(cluster: MakeEngine) -> None:
    engine = cluster({"fault": [at(1.5, "crash")]})
    role, other = spawn(engine, 2)
    made = call(engine, role, "make", 5)
    dead = call(engine, role, "work")
    error = failure(engine, dead)
    assert isinstance(error, RoleDied)
    assert (engine.now(), error.cause, error.incarnation) == (1.5, "process died", 0)
    assert engine.result(call(engine, other, "work", made)).num_updates == 1, "its machine is there still"
    engine.respawn(role)
    assert engine.result(call(engine, role, "work")).num_updates == 1, "a new life"


@pytest.mark.parametrize("begins_anew", [False, True])
def test_an_answer_on_its_way_is_heard_unless_its_role_begins_anew_meanwhile(
    cluster: MakeEngine, begins_anew: bool
) -> None:
    # There at 0.5 s, done at 1.5 s, dead at 1.6 s, and the answer would be here at 2 s.
    engine = cluster({"fault": [at(1.6, "crash")], "network": {"latency": 0.5}})
    (role,) = spawn(engine, 1)
    asked = engine.submit(role, "work")
    assert engine.wait(timeout=1.7) is None
    if begins_anew:
        engine.respawn(role)
    assert engine.wait() is asked
    if begins_anew:
        error = failure(engine, asked)
        assert isinstance(error, RoleDied)
        assert (engine.now(), error.cause, error.incarnation) == (1.7, "process died", 0)
        assert engine.result(call(engine, role, "work")).num_updates == 1
    else:
        assert engine.result(asked).num_updates == 1
        assert engine.now() == 2.0
    assert engine.wait() is None


@pytest.mark.parametrize(("kind", "further", "moment"), [("loss", {}, 1.5), ("preemption", {"notice": 0.25}, 1.75)])
def test_a_lost_machine_takes_its_values_along(
    cluster: MakeEngine, kind: str, further: dict[str, float], moment: float
) -> None:
    engine = cluster({"fault": [at(1.5, kind, **further)], "cluster": {"places": 3}})
    role, other = spawn(engine, 2)
    made = call(engine, role, "make", 5)
    assert engine.room_for(Placement()) == 1
    error = failure(engine, call(engine, role, "work"))
    assert isinstance(error, RoleDied)
    assert (engine.now(), error.cause) == (moment, "node lost")
    assert engine.room_for(Placement()) == 1, "one place less, and one role less"
    lost = failure(engine, call(engine, other, "work", made))
    assert isinstance(lost, ValueLost)
    assert lost.producer == "worker-0"
    with pytest.raises(ValueLost):
        engine.payload(made)
    engine.respawn(role)
    assert engine.room_for(Placement()) == 0


@pytest.mark.parametrize("places", [None, 4])
def test_a_role_that_is_told_in_time_begins_elsewhere_and_leaves_its_values_until_the_end(
    cluster: MakeEngine, places: int | None
) -> None:
    limit = {} if places is None else {"cluster": {"places": places}}
    engine = cluster({"fault": [at(1.5, "preemption", notice=2.0)], **limit})
    role, other, third = spawn(engine, 3)
    made = call(engine, role, "make", 5)
    assert engine.notices() == {}
    call(engine, role, "work")
    assert engine.notices() == {"worker-0": 3.5}
    engine.kill(role)
    error = failure(engine, call(engine, role, "work"))
    assert isinstance(error, RoleDied)
    assert error.cause == "preempted"
    engine.respawn(role)
    assert engine.notices() == {}, "it lives elsewhere now"
    assert places is None or engine.room_for(Placement()) == 0, "and nobody else is given the old place"
    assert engine.result(call(engine, other, "work", made)).num_updates == 1, "at 2 s it is there still"
    engine.result(call(engine, role, "work"))
    assert engine.now() == 4.0, "the machine was lost at 3.5 s, and nobody with it"
    assert isinstance(failure(engine, call(engine, third, "work", made)), ValueLost)
    assert places is None or engine.room_for(Placement()) == 0, "its place is gone with it"


def test_a_role_that_has_nowhere_else_to_go_stays_until_its_machine_is_lost(cluster: MakeEngine) -> None:
    engine = cluster({"fault": [at(0.5, "preemption", notice=2.0)], "cluster": {"places": 1}})
    (role,) = spawn(engine, 1)
    call(engine, role, "work")
    engine.kill(role)
    engine.respawn(role)
    assert engine.notices() == {"worker-0": 2.5}
    engine.result(call(engine, role, "work"))
    error = failure(engine, call(engine, role, "work"))
    assert isinstance(error, RoleDied)
    assert (engine.now(), error.cause) == (2.5, "node lost")


def test_a_copy_elsewhere_outlives_the_machine(cluster: MakeEngine) -> None:
    engine = cluster({"fault": [at(2.5, "loss")]})
    role, other, third = spawn(engine, 3)
    made = call(engine, role, "make", 5)
    call(engine, other, "work", made)
    engine.wait(timeout=0.0)
    engine.submit(role, "work")
    engine.wait()
    assert engine.result(call(engine, other, "work", made)).num_updates == 2
    assert isinstance(failure(engine, call(engine, third, "work", made)), ValueLost)


def test_a_role_without_a_place_waits_for_one_and_then_fails(cluster: MakeEngine) -> None:
    arrival = {"kind": "arrival", "at": 5.0, "places": 1}
    engine = cluster({"cluster": {"places": 1}, "fault": [arrival]}, placement_timeout=10.0)
    spawn(engine, 1)
    second, third = engine.spawn("worker-1", Probe), engine.spawn("worker-2", Probe)
    assert engine.room_for(Placement()) == 0
    waiting, hopeless = engine.submit(second, "work"), engine.submit(third, "work")
    assert engine.wait() is waiting
    assert engine.now() == 6.0, "from the arrival on"
    assert engine.wait() is hopeless
    assert engine.now() == 10.0
    error = failure(engine, hopeless)
    assert isinstance(error, NoRoom)
    assert "worker-2 found no place in 10 virtual seconds: all 2 are taken" in str(error)


def test_a_frozen_role_goes_on_later_or_is_taken_for_dead(cluster: MakeEngine) -> None:
    engine = cluster({"fault": [at(0.5, "freeze", seconds=3.0)]})
    (role,) = spawn(engine, 1)
    call(engine, role, "work")
    assert engine.now() == 4.0
    engine = cluster({"fault": [at(0.5, "freeze", seconds=30.0)]}, role_timeout=10.0)
    (role,) = spawn(engine, 1)
    frozen = call(engine, role, "work")
    error = failure(engine, frozen)
    assert isinstance(error, RoleDied)
    assert (engine.now(), error.cause) == (10.0, "timeout")


def test_a_frozen_member_holds_up_its_group_until_it_is_taken_for_dead(cluster: MakeEngine) -> None:
    engine = cluster({"fault": [at(0.5, "freeze", seconds=3.0)]})
    group = spawn(engine, 2)
    for future in engine.all_reduce(group, "average", [(1,)] * 2):
        engine.wait()
        engine.result(future)
    assert engine.now() == 3.5, "it thaws after its step was over, and then they meet"
    engine = cluster({"fault": [at(0.5, "freeze", seconds=99.0)]}, role_timeout=10.0)
    group = spawn(engine, 2)
    futures = engine.all_reduce(group, "average", [(1,)] * 2)
    for _ in futures:
        engine.wait()
    assert [type(failure(engine, future)) for future in futures] == [RoleDied, ValueLost]
    assert engine.now() == 10.0


def test_a_slow_role_is_slow_for_calls_that_begin_meanwhile(cluster: MakeEngine) -> None:
    engine = cluster({"fault": [at(0.5, "slow", seconds=2.0, factor=3.0)]})
    (role,) = spawn(engine, 1)
    moments = []
    for _ in range(3):
        call(engine, role, "work")
        moments.append(engine.now())
    assert moments == [1.0, 4.0, 5.0]


def test_a_lost_reply_is_of_a_call_that_took_effect(cluster: MakeEngine) -> None:
    engine = cluster({"fault": [at(0.5, "lost_reply", method="w*")]})
    (role,) = spawn(engine, 1)
    built = engine._roles["worker-0"].built
    assert isinstance(built, Probe)
    error = failure(engine, call(engine, role, "work"))
    assert isinstance(error, RoleDied)
    assert (engine.now(), error.cause, built.num_calls) == (1.0, "process died", 1)


def test_a_delayed_and_a_duplicated_delivery(cluster: MakeEngine) -> None:
    faults = [at(0.5, "delay", seconds=7.0), at(0.5, "duplicate", method="work")]
    engine = cluster({"fault": faults})
    (role,) = spawn(engine, 1)
    assert engine.result(call(engine, role, "make", 0)) == Receipt(), "a second in which they are armed"
    twice = call(engine, role, "work")
    assert engine.now() == 1.0 + 7.0 + 1.0
    assert engine.result(twice).num_updates == 1, "the first answer counts"
    assert engine.result(call(engine, role, "work")).num_updates == 3, "and it was carried out twice"


def test_a_partition_holds_messages_back(cluster: MakeEngine) -> None:
    parts = [at(0.5, "partition", others="worker-1", seconds=9.0)]
    engine = cluster({"fault": parts})
    one, other, third = spawn(engine, 3)
    made = call(engine, one, "make", 5)
    engine.submit(other, "work", made)
    engine.submit(third, "work", made)
    assert getattr(engine.wait(), "role", None) == third
    assert engine.now() == 2.0
    engine.wait()
    assert engine.now() == 9.5 + 1.0


def test_a_coordinator_cut_off_takes_a_role_for_dead(cluster: MakeEngine) -> None:
    parts = [at(0.5, "partition", others="coordinator", seconds=90.0)]
    engine = cluster({"fault": parts}, role_timeout=10.0)
    (role,) = spawn(engine, 1)
    error = failure(engine, call(engine, role, "work"))
    assert isinstance(error, RoleDied)
    assert (engine.now(), error.cause) == (10.0, "timeout")


def test_random_faults_strike_one_of_those_that_match_until_their_end(cluster: MakeEngine, tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    fault = {"kind": "slow", "role": "worker-[01]", "every": 2.0, "until": 400.0, "seconds": 1e-9, "factor": 1.5}
    engine = cluster({"fault": [fault]}, event_log=str(log))
    roles = spawn(engine, 3)
    for _ in range(1000):
        call(engine, roles[2], "work")
    engine.close()
    struck = [line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "fault"]
    assert 160 < len(struck) < 240, "400 s, one in 2 s"
    assert {line["role"] for line in struck} == {"worker-0", "worker-1"}
    assert max(line["time"] for line in struck) <= 400.0


def test_a_startup_and_a_busy_coordinator_take_their_time(cluster: MakeEngine) -> None:
    engine = cluster({"cluster": {"startup_seconds": 4.0, "coordinator_seconds": 0.5}})
    roles = spawn(engine, 2)
    for role in roles:
        engine.submit(role, "work")
    moments = []
    for _ in roles:
        engine.wait()
        moments.append(engine.now())
    assert moments == [5.5, 6.0], "both are there at 5; the coordinator takes them one after the other"


def test_wait_lets_no_more_than_its_timeout_pass(cluster: MakeEngine) -> None:
    engine = cluster()
    (role,) = spawn(engine, 1)
    future = engine.submit(role, "work")
    assert engine.wait(timeout=0.25) is None
    assert engine.now() == 0.25
    assert engine.wait(timeout=0.75) is future
    assert engine.wait(timeout=9.0) is None
    assert engine.now() == 1.0, "nothing is under way"
