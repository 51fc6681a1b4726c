"""Groups that average among themselves: by shared memory on one machine, by gloo else, with the same meaning."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from qfleet.placement import collective, shared_memory
from qfleet.placement.collective import BrokenGroup, Door, Group, announce_failure, open_store, run_averaging

SECONDS = 20.0


@pytest.fixture(params=["shared memory", "gloo"])
def carrier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways that tensors travel between members on CPUs."""
    if request.param == "gloo":
        monkeypatch.setattr(collective, "machine_key", lambda: None)
    elif shared_memory.machine_key() is None:
        pytest.skip("no memfd_create here")
    return str(request.param)


def together(size: int, member: Callable[[Group, int], object], arrivals: int | None = None) -> list[object]:
    """What each member's thread returned or raised; only the first `arrivals` come."""
    store, address = open_store("127.0.0.1")
    outcomes: list[object] = [None] * size
    doors = [Door("" if rank else address) for rank in range(size)]
    places = [door.arrival for door in doors]
    limit = SECONDS if arrivals is None else 1.0

    def live(rank: int) -> None:
        try:
            group = Group(0, rank, doors[rank], places, "127.0.0.1", limit, owns_gpus=False)
            try:
                outcomes[rank] = member(group, rank)
            finally:
                group.close()
        except Exception as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=live, args=(rank,)) for rank in range(size if arrivals is None else arrivals)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for door in doors:
        door.close()
    del store
    return outcomes


def soon() -> float:
    return time.monotonic() + SECONDS


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everybody_gets_the_mean_again_and_again(carrier: str, size: int, dtype: torch.dtype) -> None:
    values = torch.randn(7, size, 33, dtype=dtype, generator=torch.Generator().manual_seed(3))

    def member(group: Group, rank: int) -> object:
        own = [values[turn, rank].clone() for turn in range(7)]
        for tensor in own:
            group.mean_(tensor, soon())
        return torch.stack(own)

    outcomes = together(size, member)
    for outcome in outcomes:
        assert isinstance(outcome, torch.Tensor), outcome
        torch.testing.assert_close(outcome, values.mean(dim=1))
        assert outcome.equal(outcomes[0]), "bit for bit the same at every member"


def test_shared_memory_sums_by_rank() -> None:
    # (1 + 1e8) - 1e8 is 0 in float32, 1 + (1e8 - 1e8) would be 1: the order of the ranks decides.
    values = [1.0, 1e8, -1e8]

    def member(group: Group, rank: int) -> object:
        tensor = torch.tensor([values[rank]])
        group.mean_(tensor, soon())
        return tensor.item()

    assert together(3, member) == [0.0, 0.0, 0.0]


def test_a_tensor_larger_than_a_slot_goes_in_several_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "SLOT_BYTES", 4096)

    def member(group: Group, rank: int) -> object:
        tensor = torch.arange(5000, dtype=torch.float32).reshape(50, 100) * (rank + 1)
        for _ in range(3):
            group.mean_(tensor, soon())
        return tensor

    expected = torch.arange(5000, dtype=torch.float32).reshape(50, 100) * 1.5
    for outcome in together(2, member):
        torch.testing.assert_close(outcome, expected)


def test_a_tensor_that_is_not_contiguous_or_is_empty(carrier: str) -> None:
    def member(group: Group, rank: int) -> object:
        base = torch.full((4, 6), float(rank))
        group.mean_(base.t()[1:3], soon())
        group.mean_(torch.empty(0), soon())
        return base

    expected = torch.zeros(4, 6)
    expected[:, 1:3] = 0.5
    zero, one = together(2, member)
    torch.testing.assert_close(zero, expected)
    expected = torch.ones(4, 6)
    expected[:, 1:3] = 0.5
    torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("other", [torch.zeros(3), torch.zeros(2, 2), torch.zeros(4, dtype=torch.float64)])
def test_tensors_that_differ_in_shape_or_type_are_refused_at_all(carrier: str, other: torch.Tensor) -> None:
    def member(group: Group, rank: int) -> object:
        group.mean_(torch.ones(4) if rank else other.clone(), soon())
        return None

    for outcome in together(2, member):
        assert isinstance(outcome, ValueError)
        assert "one shape and type" in str(outcome)


def test_a_member_that_ends_earlier_is_out_of_step(carrier: str) -> None:
    def steps(count: int) -> Iterator[torch.Tensor]:
        for _ in range(count):
            yield torch.ones(2)

    for outcome in together(2, lambda group, rank: run_averaging(steps(1 + rank), group, soon())):
        assert isinstance(outcome, ValueError)


def test_a_failure_breaks_the_group_for_the_others_and_is_raised_by_its_own(carrier: str) -> None:
    def steps(rank: int) -> Iterator[torch.Tensor]:
        yield torch.ones(2)
        if rank == 1:
            raise RuntimeError("mine")
        yield torch.ones(2)

    outcomes = together(3, lambda group, rank: run_averaging(steps(rank), group, soon()))
    assert isinstance(outcomes[0], BrokenGroup)
    assert isinstance(outcomes[1], RuntimeError)
    assert isinstance(outcomes[2], BrokenGroup)


def test_a_member_that_leaves_breaks_the_group_at_once(carrier: str) -> None:
    started = time.monotonic()

    def member(group: Group, rank: int) -> object:
        if rank == 1:
            return None
        group.mean_(torch.ones(2), soon())
        return None

    if carrier == "gloo":  # a thread that drops its group keeps gloo's connection; a process's end closes it
        pytest.skip("only a process's end closes gloo's connections")
    assert isinstance(together(2, member)[0], BrokenGroup)
    assert time.monotonic() - started < SECONDS / 2


def test_a_silent_member_is_waited_for_till_the_deadline(carrier: str) -> None:
    done = threading.Event()

    def member(group: Group, rank: int) -> object:
        if rank == 1:
            done.wait(SECONDS)
            return None
        try:
            group.mean_(torch.ones(2), time.monotonic() + 0.2)
        finally:
            done.set()
        return None

    assert isinstance(together(2, member)[0], BrokenGroup)


def test_whoever_does_not_come_is_not_waited_for_for_ever(carrier: str) -> None:
    assert isinstance(together(2, lambda group, rank: None, arrivals=1)[0], BrokenGroup)


def test_announcing_a_failure_to_a_broken_group_is_no_failure(carrier: str) -> None:
    def member(group: Group, rank: int) -> object:
        announce_failure(group, time.monotonic() + 0.2 if rank == 0 else soon())
        return "on"

    assert together(2, member) == ["on", "on"]
    announce_failure(None, 0.0)
