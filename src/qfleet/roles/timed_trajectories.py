"""Timing twins of actors and a learner that corrects their trajectories; see timing_twins.py."""

from __future__ import annotations

from collections.abc import Sequence

from qfleet.roles.timing_twins import Twin, blank
from qfleet.types import ParamSnapshot, Progress, Receipt, Reply, Trajectories


class TimedTrajectoryActor(Twin):
    """Of an actor that sends trajectories."""

    def rollout(self, progress: Progress, num_vector_steps: int, newest: ParamSnapshot) -> Reply:
        """Every environment gives a transition a step."""
        self.version = newest.version
        spec, num_envs = self.blueprint.spec, self.blueprint.env.num_envs
        shape = (num_vector_steps, num_envs)
        floats = blank(shape, "float32")
        has_mask = spec.has_action_mask
        trajectories = Trajectories(
            obs=blank((*shape, *spec.obs_shape), spec.obs_dtype),
            action=blank(shape, "int64"),
            reward=floats,
            discount=floats,
            valid=blank(shape, "bool"),
            log_prob=floats,
            value=blank((num_vector_steps + 1, num_envs), "float32"),
            last_obs=blank((num_envs, *spec.obs_shape), spec.obs_dtype),
            action_mask=blank((*shape, spec.num_actions), "bool") if has_mask else None,
            last_action_mask=blank((num_envs, spec.num_actions), "bool") if has_mask else None,
            version=self.version,
        )
        number = num_vector_steps * num_envs
        receipt = Receipt(version=self.version, num_env_steps=number, num_inserted=number)
        receipt.seconds = {"environment": 1.0}
        return Reply(receipt, trajectories)

    def restore(self, incarnation: int, tag: str) -> Receipt:
        """Begin a new life."""
        return Receipt(version=self.version)


class TimedActorsLearner(Twin):
    """Of the learner: one version further by each batch of trajectories."""

    def learn(self, *trajectories: Trajectories) -> Reply:
        """One update; the payload is the new snapshot."""
        lags = [self.version - one.version for one in trajectories]
        self.version += 1
        reply = self.snapshot()
        reply.receipt.num_updates = 1
        reply.receipt.num_samples = sum(one.action.size for one in trajectories)
        reply.receipt.seconds, reply.receipt.lags = {"learner": 1.0}, {"policy_lag": lags}
        return reply

    def restore(self, folder: str, files: Sequence[object], *published: ParamSnapshot) -> Receipt:
        """Begin a new life at the newest snapshot."""
        self.version = published[-1].version if published else self.version
        return Receipt(version=self.version, metrics={"moments_age": 0.0})
