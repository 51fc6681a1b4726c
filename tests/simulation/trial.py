"""One seed, one trial: a strategy, its settings, a cluster and its faults are drawn; invariants hold after every event.

    python tests/simulation/trial.py --seed 17                        # one trial, told at length
    python tests/simulation/trial.py --first 0 --count 10000          # many; stops at the first that fails

A trial runs through a time of faults, in which checkpoints and snapshots are asked for at drawn moments. Then faults
end, and within a bound everybody must make progress; the last checkpoint is resumed, and goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

if __package__:
    from .course import Checkpoint, Course
    from .ledger import Ledger, check, watching
    from .plans import FAULT_SECONDS, SCENARIOS, Plan, draw_plan, pace_slack
else:  # run as a file
    sys.path.insert(0, str(Path(__file__).parent))
    from course import Checkpoint, Course  # type: ignore[no-redef]
    from ledger import Ledger, check, watching  # type: ignore[no-redef]
    from plans import FAULT_SECONDS, SCENARIOS, Plan, draw_plan, pace_slack  # type: ignore[no-redef]

from qfleet.errors import QfleetError, RoleDied

# Checkpoints are written and read again at once; where memory passes for a disk, nothing waits for one.
FOLDER = "/dev/shm" if Path("/dev/shm").is_dir() else None


@dataclass
class Outcome:
    """What a trial saw.

    Attributes:
        name, end: the scenario, and how the run ended.
        numbers: counts of what the books hold, and the strategy's tallies.
        struck: faults by kind.
    """

    name: str
    end: str
    numbers: dict[str, int] = field(default_factory=dict)
    struck: dict[str, int] = field(default_factory=dict)


def play(seed: int, only: str | None = None) -> Outcome:
    """Trial `seed`; what it saw.

    Raises:
        Exception: an invariant does not hold, or the strategy itself failed.
    """
    plan = draw_plan(seed, only)
    folder = Path(tempfile.mkdtemp(prefix="qfleet-trial-", dir=FOLDER))
    ledger, again = (Ledger(learning_rate(plan)) for _ in range(2))
    try:
        with watching(ledger):
            course = Course(plan, folder / "checkpoints", ledger)
            try:
                end, saved = endure(plan, course)
            finally:
                course.engine.close()
        numbers = {"merges": ledger.num_merges, "encoded": ledger.num_encoded, "keys": ledger.num_inserts}
        if saved is not None:
            with watching(again):
                numbers |= resume(plan, course, saved, folder / "checkpoints", again)
        numbers["updates"] = course.control.counters.num_updates
        return Outcome(plan.name, end, numbers | course.control.tallies, dict(course.struck))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def learning_rate(plan: Plan) -> float | None:
    """Of servers whose parameters are the sum of the pushes merged."""
    return 0.01 if not plan.changes.get("strategy.local_steps") else None


def endure(plan: Plan, course: Course) -> tuple[str, Checkpoint | None]:
    """The time of faults, and what comes after it; how it ended, and the last checkpoint to go on from."""
    control, engine = course.control, course.engine
    drains, snapshots = list(plan.drains), list(plan.snapshots)
    saved: Checkpoint | None = None
    try:
        while engine.now() < FAULT_SECONDS + 0.15:
            if snapshots and course.num_events >= snapshots[0]:
                snapshots.pop(0)
                course.parameters()
            elif drains and course.num_events >= drains[0]:
                saved = course.drain()
                drains.pop(0)
            elif course.notices.is_due():
                saved = course.drain()
                course.notices.move()
            else:
                course.step()
            if control.failure is not None:
                check(plan.budget is not None, f"gave up: {control.failure}")
                course.drain()
                return "gave up", None
        course.progress()
        saved = course.drain()
        course.progress(num_inserted=int(1.5 * pace_slack(plan)))
        seen, is_alone = course.seen, course.is_alone
        course.drain()
        course.seen, course.is_alone = seen, is_alone
        return "done", saved
    except QfleetError as error:
        if "gone with" in str(error):  # the newest parameters were on a machine that is lost: the run says so, and ends
            return "parameters lost", None
        if control.failure is not None and plan.budget is not None:
            return "gave up", None
        if isinstance(error, RoleDied) and plan.name == "serial":  # nobody mends it; it is resumed by hand
            return "died", saved
        if isinstance(error, RoleDied) and not course.num_events:  # nothing has begun that could be mended
            return "died at the start", None
        raise


def resume(plan: Plan, course: Course, saved: Checkpoint, folder: Path, ledger: Ledger) -> dict[str, int]:
    """The last checkpoint goes on; as the run itself did, where that does not depend on who comes first.

    Up to the first death in either of them: time goes by anew, so that a call may be too slow in one of them alone.

    Returns:
        how many versions of both were compared, and whether a call that was too slow ended the resumed run.
    """
    resumed = Course(plan, folder, ledger, saved, with_faults=False)
    try:
        resumed.progress()
        both = sorted(course.seen.keys() & resumed.seen.keys())
        others = [version for version in both if course.seen[version] != resumed.seen[version]]
        check(not others, f"the resumed run has other parameters from version {others[:1]} on")
        has_died = course.is_alone or resumed.is_alone or plan.name == "serial"
        check(bool(both) or has_died or not plan.is_ordered, "no version is of both")
        return {"versions compared": len(both)}
    except RoleDied as error:
        # A drawn cost has no bound, so that a call may be too slow without a fault. It ends a serial run at any time,
        # and any other before its first event, when nothing has begun that could be mended.
        if error.cause != "timeout" or (resumed.num_events and plan.name != "serial"):
            raise
        return {"resumes too slow": 1}
    finally:
        resumed.engine.close()


# Many trials


def attempt(job: tuple[int, str | None]) -> tuple[int, Outcome | str]:
    """Play one; what it saw, or how it failed and how to play it again."""
    seed, only = job
    try:
        return seed, play(seed, only)
    except Exception as error:
        more = f" --only {only}" if only else ""
        return seed, (
            f"seed {seed} ({draw_plan(seed, only).name}): {type(error).__name__}: {error}\n"
            f"  replay: python tests/simulation/trial.py --seed {seed}{more}"
        )


def attempts(jobs: list[tuple[int, str | None]], num_processes: int) -> Iterator[tuple[int, Outcome | str]]:
    """All of them, in their order; in this process, or in several."""
    if num_processes == 1:
        yield from map(attempt, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(num_processes, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap(attempt, jobs, chunksize=4)


def summarise(outcomes: list[Outcome], num_failed: int, seconds: float) -> str:
    """How many passed, over which strategies, under which faults, in how long."""
    by_name: dict[str, Counter[str]] = {}
    struck: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for outcome in outcomes:
        by_name.setdefault(outcome.name, Counter())[outcome.end] += 1
        struck.update(outcome.struck)
        numbers.update(outcome.numbers)
    rate = (len(outcomes) + num_failed) / seconds
    lines = [f"{len(outcomes)} seeds passed, {num_failed} failed, in {seconds:.0f} s ({rate:.2f} seeds/s)"]
    for name in SCENARIOS:
        ends = by_name.get(name, Counter())
        how = ", ".join(f"{number} {end}" for end, number in ends.most_common())
        lines.append(f"  {name:14} {ends.total():6}  {how}")
    for what, counts in (("faults struck", struck), ("counted", numbers)):
        lines.append(f"{what}: " + ", ".join(f"{name} {number}" for name, number in sorted(counts.items())))
    return "\n".join(lines)


def main() -> None:
    """Many trials, and the one command that replays the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--only", choices=sorted(SCENARIOS))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--keep-going", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.seed is not None:
        print(json.dumps(dataclasses.asdict(draw_plan(args.seed, args.only)), indent=1))
        print(json.dumps(dataclasses.asdict(play(args.seed, args.only)), indent=1))
        return
    started, num_failed, outcomes = time.perf_counter(), 0, []
    jobs = [(seed, args.only) for seed in range(args.first, args.first + args.count)]
    for _, outcome in attempts(jobs, args.processes):
        if isinstance(outcome, Outcome):
            outcomes.append(outcome)
            continue
        print(outcome, flush=True)
        num_failed += 1
        if not args.keep_going:
            break
    print(summarise(outcomes, num_failed, time.perf_counter() - started))
    if num_failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
