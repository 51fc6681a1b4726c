"""Timing twins of actors and a learner: trajectories of the real size, one version a batch; see timing_twins.py."""

from __future__ import annotations

from qfleet.roles.blueprint import Blueprint
from qfleet.roles.timing_twins import Twin, blank
from qfleet.types import ParamSnapshot, Progress, Receipt, Reply, Trajectories


class TimedTrajectoryActor(Twin):
    """Of an actor that sends whole trajectories."""

    def rollout(self, progress: Progress, num_vector_steps: int, newest: ParamSnapshot) -> Reply:
        """Every environment makes every step, and no episode ends."""
        self.version = newest.version
        trajectories = _blank_trajectories(self.blueprint, num_vector_steps, self.version)
        number = trajectories.action.size
        receipt = Receipt(version=self.version, num_env_steps=number, num_inserted=number)
        receipt.seconds = {"environment": 1.0}
        return Reply(receipt, trajectories)

    def restore(self, incarnation: int, tag: str) -> Receipt:
        """Begin a new life."""
        return Receipt(version=self.version)


class TimedActorsLearner(Twin):
    """Of the learner that trajectories are sent to."""

    def learn(self, *trajectories: Trajectories) -> Reply:
        """A version further by a batch; the payload is the next snapshot."""
        lags = [self.version - one.version for one in trajectories]
        self.version += 1
        reply = self.snapshot()
        receipt = reply.receipt
        receipt.num_updates, receipt.num_samples = 1, sum(one.action.size for one in trajectories)
        receipt.seconds, receipt.lags = {"learner": 1.0}, {"policy_lag": lags}
        return reply

    def restore(self, folder: str, files: object, *published: ParamSnapshot) -> Receipt:
        """Begin a new life at the newest snapshot."""
        self.version = published[-1].version if published else 0
        return Receipt(version=self.version, metrics={"moments_age": 0.0})


def _blank_trajectories(blueprint: Blueprint, num_steps: int, version: int) -> Trajectories:
    """`num_steps` vector steps of all environments, in arrays that all trajectories share."""
    spec, num_envs = blueprint.spec, blueprint.env.num_envs
    shape = (num_steps, num_envs)
    floats, num_actions = blank(shape, "float32"), spec.num_actions
    return Trajectories(
        obs=blank((*shape, *spec.obs_shape), spec.obs_dtype),
        action=blank(shape, "int64"),
        reward=floats,
        discount=floats,
        valid=blank(shape, "bool"),
        log_prob=floats,
        value=blank((num_steps + 1, num_envs), "float32"),
        last_obs=blank((num_envs, *spec.obs_shape), spec.obs_dtype),
        action_mask=blank((*shape, num_actions), "bool") if spec.has_action_mask else None,
        last_action_mask=blank((num_envs, num_actions), "bool") if spec.has_action_mask else None,
        version=version,
    )
