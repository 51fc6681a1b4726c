"""The clients of federated rounds: who is here, what each has counted, and whose data wait on disk.

A client is its data: its name, its environment and its replay belong together, and nothing is dealt out anew when the
number of clients changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qfleet.engines.base import Engine, Future, RoleRef
from qfleet.ops.pacing import updates_allowed
from qfleet.roles.aggregator import AggregationRule
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.federated_client import FederatedClient
from qfleet.roles.federation import Personal
from qfleet.strategies.base import Control, Saved, call
from qfleet.strategies.base.config import FleetConfig
from qfleet.types import SavedFile


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round is.

    Attributes:
        rule: how updates are merged.
        num_participants: from the number of clients to how many take part.
        local_steps: updates of each client in a round.
        min_clients, round_timeout: a round may end after so many of the engine's seconds with so many updates in.
        mu, personal, keep_optimizer: as FederatedClient takes them.
        blueprint_of: the plan of client `rank`.
    """

    rule: AggregationRule
    num_participants: Callable[[int], int]
    local_steps: int
    min_clients: int
    round_timeout: float | None
    mu: float
    personal: Personal
    keep_optimizer: bool
    blueprint_of: Callable[[int], Blueprint]

    @property
    def num_needed(self) -> int:
        """With fewer updates no round ends."""
        return max(self.min_clients, self.rule.min_updates)


@dataclass(slots=True, eq=False)
class Client:
    """What the coordinator knows of one client, in all its lives.

    Attributes:
        ref: the role.
        num_inserted, num_samples: what it has inserted and trained on; what its pace is counted from.
        num_saved: transitions in its newest checkpoint.
        num_unsaved: those inserted since, or since its last death: what the next one would lose.
        future: its call under way, None while it is free.
        personal: the newest call that gave its own whole snapshot.
    """

    ref: RoleRef
    num_inserted: int = 0
    num_samples: int = 0
    num_saved: int = 0
    num_unsaved: int = 0
    future: Future | None = None
    personal: Future | None = None

    def inserted(self, number: int) -> None:
        """So many transitions have come into its replay."""
        self.num_inserted += number
        self.num_unsaved += number

    def counts(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"inserted": self.num_inserted, "samples": self.num_samples, "saved": self.num_saved}


class Crew:
    """Hires clients and lets them go.

    Args:
        engine, config, control: as the strategy got them.
        plan: what a round is.

    Attributes:
        clients: those that are here, by name, in order of rank.
    """

    def __init__(self, engine: Engine, config: FleetConfig, control: Control, plan: Plan) -> None:
        self.engine = engine
        self.config = config
        self.control = control
        self.plan = plan
        self.clients: dict[str, Client] = {}
        self._absent: dict[str, dict[str, int]] = {}  # what those that are not here had inserted and trained on

    def start(self, saved: Saved | None) -> None:
        """Hire as many as are wanted; each one that a checkpoint knows gets its own back. Nothing is in flight."""
        if saved is not None:
            counts_of = saved.state["clients"]
            assert isinstance(counts_of, dict)
            self._absent = {name: dict(counts) for name, counts in counts_of.items()}
        for _ in range(self.num_wanted()):
            name = self.hire().ref.name
            if saved is not None and name in saved.files:
                role, folder = self.clients[name].ref, self.control.checkpoint_folder
                call(self.engine, role, "load", folder, saved.tag, saved.files[name])
        for counts in self._absent.values():
            self.control.count("transitions_set_aside", counts["saved"])

    def num_wanted(self) -> int:
        """How many clients the user wants by now; at least as many as a round needs."""
        return max(self.plan.num_needed, self.control.num_workers or self.config.num_workers)

    def hire(self) -> Client:
        """The client of the next rank, known before or new."""
        rank, plan = len(self.clients), self.plan
        name = f"worker-{rank}"
        ref = self.engine.spawn(
            name,
            FederatedClient,
            plan.blueprint_of(rank),
            name,
            rank % self.config.num_workers,
            self.config.num_workers,
            plan.mu,
            plan.keep_optimizer,
            plan.personal,
            placement=self.config.worker_placement(),
        )
        counts = self._absent.pop(name, {"inserted": 0, "samples": 0, "saved": 0})
        client = Client(ref, counts["inserted"], counts["samples"], num_saved=counts["saved"])
        self.clients[name] = client
        return client

    def dismiss(self) -> Client:
        """Let the last one go; what it has saved waits for it on disk."""
        name, client = self.clients.popitem()
        self.engine.stop(client.ref)
        self.control.count("transitions_set_aside", client.num_saved)
        self.control.count("transitions_lost", client.num_unsaved)
        self._absent[name] = client.counts()
        return client

    def free(self) -> list[Client]:
        """Those that have no call under way, in order of rank."""
        return [client for client in self.clients.values() if client.future is None]

    def all_owe(self) -> bool:
        """Whether every client is free and could make a round's updates on what it has inserted already."""
        return all(client.future is None and self._owes(client) for client in self.clients.values())

    def saved(self) -> None:
        """Each client has written its files."""
        for client in self.clients.values():
            client.num_saved, client.num_unsaved = client.num_saved + client.num_unsaved, 0

    def files_set_aside(self) -> dict[str, list[SavedFile]]:
        """The files of those that are not here, to be kept."""
        return {name: files for name, files in self.control.saved_files.items() if name in self._absent}

    def state(self) -> dict[str, dict[str, int]]:
        """What everybody has counted, for a checkpoint."""
        return {name: client.counts() for name, client in self.clients.items()} | self._absent

    def _owes(self, client: Client) -> bool:
        blueprint = self.plan.blueprint_of(0)
        replay = blueprint.replay
        num_allowed = updates_allowed(
            client.num_inserted,
            client.num_samples,
            replay.min_transitions,
            replay.samples_per_insert,
            blueprint.batch_size,
        )
        return num_allowed >= self.plan.local_steps
