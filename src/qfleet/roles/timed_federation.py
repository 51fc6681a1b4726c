"""Timing twins of federated training: rounds by the numbers alone; see timing_twins.py."""

from __future__ import annotations

from qfleet.ops.pacing import updates_allowed
from qfleet.roles.federation import ClientUpdate, GlobalModel
from qfleet.roles.timing_twins import TimedWorker, Twin, follow_target
from qfleet.types import ParamSnapshot, Progress, Receipt, Reply


class TimedClient(TimedWorker):
    """Of a federated client; the arguments are FederatedClient's."""

    def train_round(
        self,
        progress: Progress,
        num_inserted: int,
        num_samples: int,
        num_updates: int,
        collect_steps: int,
        *published: ParamSnapshot,
    ) -> Reply:
        """Collect and train in turn, by the numbers alone."""
        self.version = published[0].version
        receipt, replay = Receipt(version=self.version), self.blueprint.replay
        batch_size = self.blueprint.batch_size
        while receipt.num_updates < num_updates:
            number = updates_allowed(
                num_inserted + receipt.num_inserted,
                num_samples + receipt.num_samples,
                replay.min_transitions,
                replay.samples_per_insert,
                batch_size,
            )
            made = min(number, num_updates - receipt.num_updates)
            receipt.num_updates += made
            receipt.num_samples += made * batch_size
            if not made:
                number = collect_steps * self.blueprint.env.num_envs
                receipt.num_env_steps += number
                receipt.num_inserted += number
        first = self.sizes.first
        update = ClientUpdate(first.vector, first.buffers, receipt.num_samples, first.layout_hash)
        receipt.num_bytes, receipt.seconds = update.num_bytes, {"learner": 1.0}
        return Reply(receipt, update)

    def personal_snapshot(self, *published: ParamSnapshot) -> Reply:
        """The global model."""
        return Reply(Receipt(version=published[0].version), published[0])

    def revive(self, *_: object) -> Receipt:
        """Begin a new life."""
        return Receipt(version=self.version)


class TimedAggregator(Twin):
    """Of the federated server; every update is sound."""

    target_version = 0

    def aggregate(self, num_updates: int, *updates: object) -> Reply:
        """A version further by a round's local updates."""
        before = self.version
        self.version += num_updates
        self.target_version = follow_target(self.blueprint.algo, before, self.version, self.target_version)
        reply = self.publish(with_target=self.target_version == self.version)
        reply.receipt.metrics |= {"num_aggregated": float(len(updates)), "num_refused": 0.0}
        return reply

    def publish(self, with_target: bool = True) -> Reply:
        """The first parameters under the present version."""
        first, version = self.sizes.first, self.version
        target = first.vector if with_target else None
        model = GlobalModel(version, first.vector, first.buffers, first.layout_hash, target, self.target_version)
        return Reply(Receipt(version=version, metrics={"target_version": float(self.target_version)}), model)

    def restore(self, folder: str, files: object, newest: GlobalModel, target: GlobalModel) -> Reply:
        """Begin a new life at the newest published version."""
        self.version, self.target_version = newest.version, newest.target_version
        return self.publish()
