"""Federated training: rounds in which clients learn on data of their own and a server averages what they learned.

    server:  initialise w_0                                             (McMahan et al. 2017, Algorithm 1)
             for each round t = 1, 2, ...
                 m <- max(C K, 1);  S_t <- a random set of m of the K clients
                 for each client k in S_t, side by side:   w_t+1^k <- ClientUpdate(k, w_t)
                 w_t+1 <- sum over k in S_t of n_k / n  w_t+1^k

    ClientUpdate(k, w):   for each of E local steps:   collect as its pace demands;  w <- w - alpha grad L(w; own batch)

    waits for                      unblocked by
    a round                        all its clients' answers, or `round_timeout` with `min_clients` of them in
    a client that died             its new life; the round goes on, another client is drawn where too few are left
    a client that comes late       its answer, discarded and counted; it may take part again afterwards
    the next round                 the aggregator's answer; a checkpoint or an evaluation where one is due

Client i is the role worker-i. K is `num_workers`, C `fraction`, E `local_steps`. The loop is strategies/base/rounds.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field, model_validator

from qfleet.config import NonNegativeInt, PositiveFloat, PositiveInt
from qfleet.engines.base import Engine
from qfleet.envs.make import probe_spec
from qfleet.envs.variants import vary
from qfleet.errors import UsageError
from qfleet.roles.aggregator import AggregationRule, RuleName
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.federation import Personal, shared_parameters
from qfleet.strategies.base import Control, Event, Saved
from qfleet.strategies.base.clients import Plan
from qfleet.strategies.base.config import FleetConfig
from qfleet.strategies.base.rounds import Rounds

# Which rules read which settings; with any other rule such a setting must be left at its default.
READ_BY: dict[str, tuple[RuleName, ...]] = {
    "mu": ("fedprox",),
    "server_learning_rate": ("fedadam",),
    "server_beta1": ("fedadam",),
    "server_beta2": ("fedadam",),
    "server_tau": ("fedadam",),
    "trim": ("trimmed_mean",),
    "num_byzantine": ("krum", "multi_krum"),
    "num_selected": ("multi_krum",),
}
Decay = Annotated[float, Field(ge=0, lt=1)]


class Config(FleetConfig):
    """The [strategy] section of federated training; `num_workers` is how many clients there are.

    Attributes:
        fraction: the part of the clients that takes part in a round, drawn anew for each; at least one.
        local_steps: updates that a client makes in a round, each on a batch of its own replay, which holds its share of
            `replay.capacity` and keeps to `replay.samples_per_insert` by itself.
        aggregator: how the clients' parameters become one. "fedavg": mean, weighted by samples trained on; "fedprox":
            the same, with each client drawn towards the global model; "fedadam": Adam's step towards the mean; "median"
            and "trimmed_mean" of each coordinate; "krum" and "multi_krum": of those that lie closest together.
        mu: how strongly fedprox draws a client towards the global model.
        server_learning_rate: step size of fedadam's server.
        server_beta1: decay of fedadam's first moment.
        server_beta2: decay of fedadam's second moment.
        server_tau: added to the root in fedadam, its degree of adaptivity.
        trim: how many values of each coordinate the trimmed mean drops at each end.
        num_byzantine: how many of a round's updates Krum expects to be arbitrary; with f of them it takes 2 f + 3.
        num_selected: how many updates multi_krum takes the mean of; not set: all but `num_byzantine`.
        min_clients: a round does not end with fewer updates than this, nor than its aggregator needs.
        round_timeout: a round ends after so many of the engine's seconds (inline: calls) with `min_clients` updates in;
            what comes later is discarded and counted. Not set: a round waits for all its clients that live.
        client_envs: by client, what its environment has different: fields of [env], arguments of its constructor, or
            numbers of it as `env.attributes` sets them. More clients than entries: they begin again.
        personal: "head" keeps each client's head to itself: it is neither sent nor overwritten.
        keep_optimizer: whether a client's optimizer state lasts from round to round, or begins anew in each.
    """

    name: str = "federated"
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    local_steps: PositiveInt = 10
    aggregator: RuleName = "fedavg"
    mu: PositiveFloat = 0.01
    server_learning_rate: PositiveFloat = 0.01
    server_beta1: Decay = 0.9
    server_beta2: Decay = 0.99
    server_tau: PositiveFloat = 1e-3
    trim: NonNegativeInt = 1
    num_byzantine: NonNegativeInt = 1
    num_selected: PositiveInt | None = None
    min_clients: PositiveInt = 1
    round_timeout: PositiveFloat | None = None
    client_envs: list[dict[str, object]] = Field(default_factory=list)
    personal: Personal = "none"
    keep_optimizer: bool = True

    @model_validator(mode="after")
    def _legal(self) -> Self:
        fields = type(self).model_fields
        for name, rules in READ_BY.items():
            if self.aggregator not in rules and getattr(self, name) != fields[name].default:
                raise ValueError(
                    f"{name} = {getattr(self, name)} is not read with aggregator {self.aggregator!r}; it goes with "
                    f"{' and '.join(rules)}"
                )
        num_drawn = self.num_participants(self.num_workers)
        of = f"of the {num_drawn} clients of a round (fraction {self.fraction:g} of num_workers {self.num_workers})"
        if self.min_clients > num_drawn:
            raise ValueError(f"min_clients {self.min_clients} {of} cannot be in; lower it or raise fraction")
        needed = self.rule().min_updates
        if needed > num_drawn:
            setting = (
                f"trim {self.trim}" if self.aggregator == "trimmed_mean" else f"num_byzantine {self.num_byzantine}"
            )
            raise ValueError(
                f"aggregator {self.aggregator!r} with {setting} takes at least {needed} {of}; "
                f"raise num_workers or fraction, or lower {setting.split()[0]}"
            )
        if self.aggregator == "multi_krum" and (self.num_selected or 1) > num_drawn - self.num_byzantine:
            raise ValueError(
                f"num_selected {self.num_selected} {of}: with num_byzantine {self.num_byzantine} it is at most "
                f"{num_drawn - self.num_byzantine}"
            )
        return self

    def num_participants(self, num_clients: int) -> int:
        """m, how many of so many clients take part in a round: C K, half rounded up, at least 1."""
        return max(1, int(self.fraction * num_clients + 0.5))

    def rule(self) -> AggregationRule:
        """The aggregator's rule with its settings."""
        return AggregationRule(
            name=self.aggregator,
            server_learning_rate=self.server_learning_rate,
            beta1=self.server_beta1,
            beta2=self.server_beta2,
            tau=self.server_tau,
            trim=self.trim,
            num_byzantine=self.num_byzantine,
            num_selected=self.num_selected,
        )


def client_blueprint(blueprint: Blueprint, config: Config, rank: int) -> Blueprint:
    """The plan of client `rank`: its share of the replay, and its own environment where clients differ.

    Entry i of `client_envs` is client i's; where there are more clients than entries, they begin again.

    Raises:
        UsageError: an unknown argument, or an environment of other observations or actions than the run's.
    """
    shared = blueprint.share_replay(config.num_workers)
    return dataclasses.replace(_own_env(blueprint, config, rank), replay=shared.replay)


def evaluation_blueprints(blueprint: Blueprint, config: Config) -> dict[str, Blueprint]:
    """On which environments the global model is to be played: each client's, by name; "" where all have the same.

    Clients with a head of their own have a name each even then, under which their own snapshots are played.
    """
    if not config.client_envs and config.personal == "none":
        return {"": blueprint}
    return {f"worker-{rank}": _own_env(blueprint, config, rank) for rank in range(config.num_workers)}


def _own_env(blueprint: Blueprint, config: Config, rank: int) -> Blueprint:
    if not config.client_envs:
        return blueprint
    index = rank % len(config.client_envs)
    where = f"strategy.client_envs.{index}"
    env = vary(blueprint.env, config.client_envs[index], where, blueprint.env_factory)
    spec, common = probe_spec(env, blueprint.env_factory), blueprint.spec
    for fact in ("obs_shape", "obs_dtype", "num_actions", "has_action_mask"):
        if getattr(spec, fact) != getattr(common, fact):
            raise UsageError(
                f"{where}: its {fact} is {getattr(spec, fact)}, the run's is {getattr(common, fact)}; the clients of "
                "one model need the same observations and actions"
            )
    return dataclasses.replace(blueprint, env=env, spec=spec)


def run(
    engine: Engine, blueprint: Blueprint, config: Config, control: Control, saved: Saved | None = None
) -> Iterator[Event]:
    """Rounds for ever; see strategies/base/rounds.py for the loop."""
    entries = [client_blueprint(blueprint, config, rank) for rank in range(max(1, len(config.client_envs)))]
    if config.personal != "none":
        shared_parameters(blueprint.build_network(trainable=False).module, config.personal)
    plan = Plan(
        rule=config.rule(),
        num_participants=config.num_participants,
        local_steps=config.local_steps,
        min_clients=config.min_clients,
        round_timeout=config.round_timeout,
        mu=config.mu if config.aggregator == "fedprox" else 0.0,
        personal=config.personal,
        keep_optimizer=config.keep_optimizer,
        blueprint_of=lambda rank: entries[rank % len(entries)],
    )
    yield from Rounds(engine, blueprint, config, control, plan).events(saved)
