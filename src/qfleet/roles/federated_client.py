"""Federated client: environments, replay, learner and optimizer of its own; only parameters leave it.

    global model -> local updates on its own data, at its own pace -> its parameters back       (McMahan et al. 2017)

With mu > 0 each gradient is drawn towards the global parameters (FedProx, Li et al. 2020). A personal head (Arivazhagan
et al. 2019) is neither sent nor overwritten.
"""

from __future__ import annotations

import numpy as np
import torch

from qfleet.config import EvaluationConfig
from qfleet.errors import DivergenceError
from qfleet.networks.flat import FlatNetwork
from qfleet.ops.aggregation import proximal_gradient
from qfleet.ops.pacing import updates_allowed
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.evaluator import Evaluator
from qfleet.roles.federation import ClientUpdate, Float32, GlobalModel, Personal, shared_parameters
from qfleet.roles.learner import Drawn, Learner
from qfleet.roles.worker import Worker
from qfleet.types import FloatArray, ParamSnapshot, Progress, Receipt, Reply, SavedFile


class ProximalLearner(Learner):
    """A learner whose gradients include mu (w - w_global).

    Args:
        blueprint, name: as a learner's.
        mu: 0 leaves the gradient as it is.

    Attributes:
        anchor: float32 [P], w_global: the parameters that the round began with.
    """

    def __init__(self, blueprint: Blueprint, name: str, mu: float) -> None:
        super().__init__(blueprint, name)
        self.mu = mu
        self.anchor = self.online.vector.clone()

    def gradient(self, sample: Drawn) -> FloatArray:
        """As a learner's, drawn towards the anchor; the norm, for clipping, is that of the sum."""
        priority = super().gradient(sample)
        if self.mu:
            vector = self.online.gradient
            assert vector is not None
            vector.copy_(proximal_gradient(vector, self.online.vector, self.anchor, self.mu))
            self.gradient_norm = float(torch.linalg.vector_norm(vector))
        return priority


class FederatedClient(Worker):
    """One client.

    Args:
        blueprint: the run's plan, with this client's own environment and replay.
        name: the role's name; its seeds and files are called after it.
        rank, num_clients: which of how many clients this is.
        mu: of FedProx, 0 without.
        keep_optimizer: whether the optimizer's moments last from round to round.
        personal: "head" keeps the head's parameters here.
    """

    timing_twin = "qfleet.roles.timed_federation:TimedClient"

    learner: ProximalLearner

    def __init__(
        self,
        blueprint: Blueprint,
        name: str,
        rank: int = 0,
        num_clients: int = 1,
        mu: float = 0.0,
        keep_optimizer: bool = True,
        personal: Personal = "none",
    ) -> None:
        self.mu = mu
        super().__init__(blueprint, name, rank, num_clients)
        self.blueprint = blueprint
        self.keep_optimizer = keep_optimizer
        self.is_shared = shared_parameters(self.learner.online.module, personal)
        self._evaluator: Evaluator | None = None

    def build_learner(self, blueprint: Blueprint) -> ProximalLearner:
        """A learner that knows the proximal term."""
        return ProximalLearner(blueprint, self.name, self.mu)

    def train_round(
        self,
        progress: Progress,
        num_inserted: int,
        num_samples: int,
        num_updates: int,
        collect_steps: int,
        *published: GlobalModel,
    ) -> Reply:
        """Begin at the global model, make `num_updates` updates of one's own, collecting as the pace demands.

        Args:
            progress: the run's counters as the round began; this client's own steps are added as it goes.
            num_inserted, num_samples: what this client has inserted and trained on in all its lives.
            num_updates: local updates, each on a fresh sample of its own replay.
            collect_steps: vector steps between two looks at how many updates are due.
            published: the newest version first; another one where the target network did not change with it.

        Returns:
            A receipt (counts of this round, `num_updates` local ones) and a ClientUpdate. One that diverged sends NaN,
            which the aggregator refuses, and is back where it was.
        """
        learner = self.learner
        self._take_over(*published)
        if not self.keep_optimizer:
            self._forget_moments()
        before, target_before = learner.online.vector.clone(), learner.target.vector.clone()
        learner.anchor = before
        receipt = Receipt(version=learner.version)
        try:
            self._make_updates(receipt, progress, num_inserted, num_samples, num_updates, collect_steps)
            vector: Float32 = learner.online.vector.cpu().numpy()[self.is_shared]
        except DivergenceError:
            receipt.num_updates = learner.version - receipt.version
            receipt.num_samples = receipt.num_updates * self.batch_size
            learner.online.vector.copy_(before)
            learner.target.vector.copy_(target_before)
            self._forget_moments()
            vector = np.full(int(self.is_shared.sum()), np.nan, np.float32)
        update = ClientUpdate(
            vector, learner.online.buffers.cpu().numpy().copy(), receipt.num_samples, learner.online.layout_hash
        )
        receipt.num_bytes = update.num_bytes
        return Reply(receipt, update)

    def personal_snapshot(self, *published: GlobalModel) -> Reply:
        """The global model with this client's own head, if it has one."""
        newest = published[0]
        own = self.learner.online.vector.cpu().numpy()
        vector: Float32 = np.where(self.is_shared, newest.vector, own)
        vector.setflags(write=False)
        snapshot = ParamSnapshot(newest.version, vector, newest.buffers, newest.layout_hash)
        return Reply(Receipt(version=newest.version), snapshot)

    def evaluate(self, num_episodes: int, seed: int, *published: GlobalModel) -> Receipt:
        """Greedy episodes on this client's own environment, with its own head if it has one."""
        if self._evaluator is None:
            self._evaluator = Evaluator(self.blueprint, EvaluationConfig())
        snapshot = self.personal_snapshot(*published).payload
        assert isinstance(snapshot, ParamSnapshot)
        return self._evaluator.evaluate(snapshot, num_episodes, seed)

    def revive(self, folder: str, tag: str, files: list[SavedFile], *life: int) -> Receipt:
        """Begin a new life from the newest checkpoint's replay, head and optimizer, in fresh episodes.

        Args:
            folder: the run's checkpoints folder.
            tag, files: the checkpoint and this client's files in it; no files, no memory.
            life: which life; part of the seeds.
        """
        if files:
            self.load(folder, tag, files)
        self.actor.reseed("life", tag, *life)
        return Receipt(version=self.learner.version)

    def close(self) -> None:
        """Close the environments."""
        super().close()
        if self._evaluator is not None:
            self._evaluator.close()

    def _make_updates(
        self,
        receipt: Receipt,
        progress: Progress,
        num_inserted: int,
        num_samples: int,
        num_updates: int,
        collect_steps: int,
    ) -> None:
        """Collect and train in turn, as serial training does, until `num_updates` are made; counted in `receipt`."""
        replay = self.blueprint.replay
        while receipt.num_updates < num_updates:
            inserted = num_inserted + receipt.num_inserted
            num_allowed = updates_allowed(
                inserted,
                num_samples + receipt.num_samples,
                replay.min_transitions,
                replay.samples_per_insert,
                self.batch_size,
            )
            # A new life may have less in its replay than its pace knows of.
            is_empty = len(self.replay) < min(self.batch_size, self.replay.capacity, inserted)
            if num_allowed and not is_empty:
                _add(receipt, self.train(min(num_allowed, num_updates - receipt.num_updates)))
            else:
                now = Progress(progress.num_env_steps + receipt.num_env_steps, progress.num_updates)
                _add(receipt, self.collect(now, collect_steps))

    def _take_over(self, *published: GlobalModel) -> None:
        """The global parameters, but for the head where that is this client's own; the target network's likewise."""
        learner, newest = self.learner, published[0]
        self._load(learner.online, newest)
        target = next(model.target for model in published if model.target is not None)
        self._load(learner.target, ParamSnapshot(newest.version, target, newest.buffers, newest.layout_hash))
        learner.version = newest.version

    def _load(self, network: FlatNetwork, snapshot: ParamSnapshot) -> None:
        is_own = torch.from_numpy(~self.is_shared).to(network.vector.device)
        own = network.vector[is_own]
        network.load(snapshot)
        network.vector[is_own] = own

    def _forget_moments(self) -> None:
        self.learner.optimizer.moments.zero_()
        self.learner.optimizer.num_steps.zero_()


def _add(total: Receipt, part: Receipt) -> None:
    """Sum up counts and seconds; of the metrics the newest stay."""
    total.num_env_steps += part.num_env_steps
    total.num_inserted += part.num_inserted
    total.num_updates += part.num_updates
    total.num_samples += part.num_samples
    total.episode_returns += part.episode_returns
    total.episode_lengths += part.episode_lengths
    for activity, seconds in part.seconds.items():
        total.seconds[activity] = total.seconds.get(activity, 0.0) + seconds
    total.metrics.update(part.metrics)
