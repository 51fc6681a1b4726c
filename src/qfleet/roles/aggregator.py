"""Aggregator: owner of the global model; from the clients' parameters to the next version, with the target beside it.

client updates -> refuse what is not finite -> merge by the rule (ops/aggregation.py) -> version + local steps

FedAvg (McMahan et al. 2017), FedAdam (Reddi et al. 2021), median and trimmed mean (Yin et al. 2018), Krum (Blanchard et
al. 2017).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from qfleet.errors import CheckpointError, DivergenceError
from qfleet.ops import aggregation
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.federation import ClientUpdate, Float32, GlobalModel, Personal, shared_parameters
from qfleet.storage import read_verified, write_file
from qfleet.types import Receipt, Reply, SavedFile

RuleName = Literal["fedavg", "fedprox", "fedadam", "median", "trimmed_mean", "krum", "multi_krum"]


@dataclass(frozen=True, slots=True)
class AggregationRule:
    """How N updates become one.

    Attributes:
        name: which rule; "fedprox" merges as "fedavg" does, its term is in the clients' gradients.
        server_learning_rate, beta1, beta2, tau: of FedAdam.
        trim: of the trimmed mean, values dropped at each end.
        num_byzantine: f of Krum.
        num_selected: m of multi-Krum; None for as many as may be, N - f.
    """

    name: RuleName = "fedavg"
    server_learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    trim: int = 1
    num_byzantine: int = 1
    num_selected: int | None = None

    @property
    def min_updates(self) -> int:
        """Fewer than this the rule cannot merge."""
        if self.name in ("krum", "multi_krum"):
            return 2 * self.num_byzantine + 3
        return 2 * self.trim + 1 if self.name == "trimmed_mean" else 1

    def merge(self, updates: Sequence[ClientUpdate]) -> tuple[Float32, Float32]:
        """Parameters float32 [S] and buffers float32 [F] of at least `min_updates` finite updates.

        The robust rules weigh all alike: a weight is the client's own word.
        """
        vectors, buffers = [update.vector for update in updates], [update.buffers for update in updates]
        if self.name == "median":
            return aggregation.coordinate_median(vectors), aggregation.coordinate_median(buffers)
        if self.name == "trimmed_mean":
            return aggregation.trimmed_mean(vectors, self.trim), aggregation.trimmed_mean(buffers, self.trim)
        if self.name in ("krum", "multi_krum"):
            most = len(updates) - self.num_byzantine
            num_kept = 1 if self.name == "krum" else min(self.num_selected or most, most)
            distances_NN = aggregation.squared_distances(vectors)
            kept = aggregation.krum_selection(distances_NN, self.num_byzantine, num_kept)
            return aggregation.mean([vectors[i] for i in kept]), aggregation.mean([buffers[i] for i in kept])
        weights = np.array([update.num_samples for update in updates], np.float64)
        return aggregation.mean(vectors, weights), aggregation.mean(buffers, weights)


class Aggregator:
    """The federated server.

    Args:
        blueprint: the run's plan.
        name: the role's name; its files are called after it.
        rule: how updates are merged.
        personal: which parameters stay with the clients.

    Attributes:
        version: optimizer updates along the path from the first weights: rounds times local updates.
        vector, target: float32 [P], the global model and its target network; replaced, never written to.
    """

    timing_twin = "qfleet.roles.timed_federation:TimedAggregator"

    def __init__(self, blueprint: Blueprint, name: str, rule: AggregationRule, personal: Personal = "none") -> None:
        self.name = name
        self.config = blueprint.algo
        self.rule = rule
        network = blueprint.build_network(trainable=False)
        self.layout_hash = network.layout_hash
        self.is_shared = shared_parameters(network.module, personal)
        self.vector: Float32 = network.vector.cpu().numpy().copy()
        self.target = self.vector
        self.buffers: Float32 = network.buffers.cpu().numpy().copy()
        self.version = self.target_version = 0
        num_shared = int(self.is_shared.sum()) if rule.name == "fedadam" else 0
        self.first_moment: Float32 = np.zeros(num_shared, np.float32)
        self.second_moment: Float32 = np.full(num_shared, rule.tau**2, np.float32)

    def aggregate(self, num_updates: int, *updates: ClientUpdate) -> Reply:
        """Merge a round's updates and publish.

        Updates that are not finite or of another network are refused. Where fewer are left than the rule needs, the
        round is void and the present version is published again.

        Args:
            num_updates: local updates behind each: by how much the version grows.
            updates: in an order that does not depend on who came first.

        Returns:
            A receipt with the version reached, whose metrics are "num_aggregated", "num_refused" and
            "target_version"; a GlobalModel.

        Raises:
            DivergenceError: not one of the updates is finite, or the merged parameters are not.
        """
        sound = [update for update in updates if self._is_sound(update)]
        if not sound:
            raise DivergenceError(
                f"learning diverged: not one of {len(updates)} client updates after update {self.version} is finite; "
                "lower algo.learning_rate, or scale rewards or observations"
            )
        is_void = len(sound) < self.rule.min_updates or not any(update.num_samples for update in sound)
        if not is_void:
            self._apply(sound, num_updates)
        reply = self.publish(with_target=self.target_version == self.version)
        reply.receipt.metrics["num_aggregated"] = 0.0 if is_void else float(len(sound))
        reply.receipt.metrics["num_refused"] = float(len(updates) - len(sound))
        return reply

    def publish(self, with_target: bool = True) -> Reply:
        """The present version."""
        model = GlobalModel(
            version=self.version,
            vector=_frozen(self.vector),
            buffers=_frozen(self.buffers),
            layout_hash=self.layout_hash,
            target=_frozen(self.target) if with_target else None,
            target_version=self.target_version,
        )
        return Reply(Receipt(version=self.version, metrics={"target_version": float(self.target_version)}), model)

    def restore(self, folder: str, files: list[SavedFile], newest: GlobalModel, target: GlobalModel) -> Reply:
        """Begin a new life at the newest published version; only FedAdam's moments may be older.

        Args:
            folder: the run's checkpoints folder.
            files: the newest checkpoint's, for the moments; may be empty.
            newest, target: published models; of the second only the target is taken.
        """
        if files:
            self.load(folder, "", files)
        self.vector, self.buffers, self.version = newest.vector, newest.buffers, newest.version
        source = newest.target if newest.target is not None else target.target
        assert source is not None
        self.target, self.target_version = source, newest.target_version
        return self.publish()

    def save(self, folder: str, tag: str, previous: list[SavedFile]) -> Receipt:
        """Write this role's part of the checkpoint `tag`; see Worker.save."""
        arrays = {
            "vector": self.vector,
            "target": self.target,
            "buffers": self.buffers,
            "first_moment": self.first_moment,
            "second_moment": self.second_moment,
        }
        values = {"version": self.version, "target_version": self.target_version, "layout_hash": self.layout_hash}
        state = save_tensors(arrays, {"aggregator": json.dumps(values)})
        return Receipt(
            version=self.version, files=[write_file(Path(folder), f"{self.name}/state-{tag}.safetensors", state)]
        )

    def load(self, folder: str, tag: str, files: list[SavedFile]) -> Receipt:
        """Continue from what `save` wrote.

        Raises:
            CheckpointError: the file does not fit this run.
        """
        path = Path(folder) / files[0].path
        content = read_verified(Path(folder), files[0])
        try:
            arrays = load_tensors(content)
            with safe_open(path, framework="np") as file:
                values = json.loads(file.metadata()["aggregator"])
        except Exception as error:
            raise CheckpointError(f"{path}: not an aggregator's state file: {error}") from error
        if values["layout_hash"] != self.layout_hash or len(arrays["first_moment"]) != len(self.first_moment):
            raise CheckpointError(f"{path}: the state of another network or rule; use the same configuration")
        self.vector, self.target, self.buffers = arrays["vector"], arrays["target"], arrays["buffers"]
        self.first_moment, self.second_moment = arrays["first_moment"], arrays["second_moment"]
        self.version, self.target_version = values["version"], values["target_version"]
        return Receipt(version=self.version)

    def _is_sound(self, update: ClientUpdate) -> bool:
        return (
            update.layout_hash == self.layout_hash
            and len(update.vector) == int(self.is_shared.sum())
            and len(update.buffers) == len(self.buffers)
            and bool(np.isfinite(update.vector).all() and np.isfinite(update.buffers).all())
        )

    def _apply(self, updates: Sequence[ClientUpdate], num_updates: int) -> None:
        merged, self.buffers = self.rule.merge(updates)
        rule = self.rule
        if rule.name == "fedadam":
            own = self.vector[self.is_shared]
            merged, self.first_moment, self.second_moment = aggregation.fed_adam(
                own,
                own - merged,
                self.first_moment,
                self.second_moment,
                rule.server_learning_rate,
                rule.beta1,
                rule.beta2,
                rule.tau,
            )
        if not np.isfinite(merged).all():
            raise DivergenceError(
                f"a global parameter is NaN or infinite after update {self.version}; lower "
                "strategy.server_learning_rate or algo.learning_rate"
            )
        vector = self.vector.copy()
        vector[self.is_shared] = merged
        self.vector = vector
        before, self.version = self.version, self.version + num_updates
        self._follow(before)

    def _follow(self, before: int) -> None:
        """Let the target follow, as it would have after each of the updates since version `before`."""
        share = self.config.target_share(before, self.version)
        if share > 0.0:
            # torch's lerp, so that one client with one local step is serial training bit for bit.
            self.target = torch.lerp(torch.tensor(self.target), torch.tensor(self.vector), share).numpy()
            self.target_version = self.version


def _frozen(array: Float32) -> Float32:
    copy = array.copy()
    copy.setflags(write=False)
    return copy
