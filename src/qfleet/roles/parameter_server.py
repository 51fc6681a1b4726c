"""Parameter server: a contiguous slice of the parameter vector with its optimizer state and its slice of the target.

push -> stage (merge; the part of the norm that this slice knows) -> commit (clip, step, target) -> publish -> pull
(Li et al. 2014). Two calls an update where there are several servers, so that no reader sees a mixture of versions.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from qfleet.errors import CheckpointError, DivergenceError
from qfleet.networks.flat import as_tensor
from qfleet.networks.optimizer import VectorOptimizer
from qfleet.ops.optimizers import clip_scale
from qfleet.ops.slices import slice_bounds
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.push import Push
from qfleet.roles.state_file import read_state, write_state
from qfleet.types import ParamSlice, ParamSnapshot, Receipt, Reply, SavedFile, Ticket


class ParameterServer:
    """Owner of one slice.

    Args:
        blueprint: the run's plan.
        name: the role's name; its files are called after it.
        index, num_servers: which of how many slices.
        is_difference: pushes are parameter differences to be added, not gradients to be stepped on.

    Attributes:
        version: updates applied so far.
        acknowledged: the newest push applied from each worker: (incarnation, sequence).
    """

    timing_twin = "qfleet.roles.timing_twins:TimedServer"

    def __init__(
        self, blueprint: Blueprint, name: str, index: int = 0, num_servers: int = 1, is_difference: bool = False
    ) -> None:
        self.name = name
        self.config = blueprint.algo
        self.is_difference = is_difference
        network = blueprint.build_network(trainable=False)
        self.first, self.end = slice_bounds(network.num_parameters, num_servers)[index]
        self.layout_hash = network.layout_hash
        self.online = network.vector[self.first : self.end].clone()
        # Without a target network the online one stands for it, and is published once.
        self.target = self.online.clone() if self.config.has_target else self.online
        self.buffers = network.buffers.cpu().numpy().copy() if index == 0 else np.zeros(0, np.float32)
        self.optimizer = VectorOptimizer(self.config.optimizer, self.config.learning_rate, self.online)
        self.version = self.target_version = 0
        self.acknowledged: dict[str, tuple[int, int]] = {}
        self._staged: torch.Tensor | None = None
        self._staged_tickets: list[Ticket] = []
        self._staged_metrics: dict[str, float] = {}
        self._acknowledged_before: dict[str, tuple[int, int]] = {}  # what is staged

    def update(self, tickets: list[Ticket], rate_scale: float, num_updates: int, *pushes: Push) -> Reply:
        """Stage and commit in one, for a server that holds the whole vector."""
        staged = self.stage(tickets, *pushes)
        reply = self.commit(staged.metrics["norm"], rate_scale, num_updates)
        reply.receipt.metrics["num_refused"] = staged.metrics["num_refused"]
        return reply

    def stage(self, tickets: list[Ticket], *pushes: Push) -> Receipt:
        """Take the mean of a set of pushes and wait for `commit`.

        A push that was applied already, or that is of a former incarnation, is refused and counted. The very set that
        is staged, delivered once more, changes nothing; another set takes its place, as if it had never been staged.

        Args:
            tickets: one per push.
            pushes: this server's pieces.

        Returns:
            A receipt whose metrics are "norm", the mean's Euclidean norm over this slice, and "num_refused".
        """
        if self._staged is not None and tickets == self._staged_tickets:
            return Receipt(version=self.version, metrics=dict(self._staged_metrics))
        if self._staged is not None:
            self.acknowledged = self._acknowledged_before
        self._acknowledged_before = dict(self.acknowledged)
        fresh = []
        for ticket, push in zip(tickets, pushes, strict=True):
            if (ticket.incarnation, ticket.sequence) > self.acknowledged.get(ticket.worker, (-1, -1)):
                fresh.append(push)
                self.acknowledged[ticket.worker] = (ticket.incarnation, ticket.sequence)
        self._staged = None
        metrics = {"norm": 0.0, "num_refused": float(len(pushes) - len(fresh))}
        if fresh:
            vectors = [as_tensor(push.decode()) for push in fresh]
            merged = vectors[0] if len(vectors) == 1 else torch.stack(vectors).mean(dim=0)
            self._staged = merged.to(self.online.device)
            metrics["norm"] = float(torch.linalg.vector_norm(self._staged))
            for push in fresh:
                if push.buffers is not None:
                    self.buffers = np.array(push.buffers)
        self._staged_tickets, self._staged_metrics = list(tickets), dict(metrics)
        return Receipt(version=self.version, metrics=metrics)

    def commit(self, norm: float, rate_scale: float, num_updates: int) -> Reply:
        """Apply what is staged; nothing is where all of it was refused, and the present version is published again.

        Args:
            norm: the merged push's norm over all slices, for clipping a gradient.
            rate_scale: factor on the learning rate (on a difference: on all of it).
            num_updates: by how much the version grows: the local updates behind a push.

        Raises:
            DivergenceError: a parameter is NaN or infinite.
        """
        staged, self._staged = self._staged, None
        if staged is None:
            return self.publish()
        if self.is_difference:
            self.online.add_(staged, alpha=rate_scale)
        else:
            limit = self.config.optimizer.max_grad_norm
            scale = clip_scale(norm, limit) if limit is not None else 1.0
            gradient = staged if scale >= 1.0 else staged * scale
            self.optimizer.step(gradient, self.version, rate_scale)
        before, self.version = self.version, self.version + num_updates
        if not math.isfinite(float(self.online.sum())):
            raise DivergenceError(
                f"a parameter is NaN or infinite after update {self.version}: merged gradient norm {norm}; "
                "lower algo.learning_rate"
            )
        self._follow(before)
        return self.publish(with_target=self.target_version == self.version)

    def publish(self, with_target: bool = True) -> Reply:
        """This slice at its present version."""
        part = ParamSlice(
            version=self.version,
            offset=self.first,
            vector=_frozen(self.online),
            target=_frozen(self.target) if with_target and self.config.has_target else None,
            target_version=self.target_version,
            buffers=self.buffers,
            layout_hash=self.layout_hash,
        )
        return Reply(Receipt(version=self.version, metrics={"target_version": float(self.target_version)}), part)

    def assemble(self, *slices: ParamSlice) -> Reply:
        """The whole vector as one snapshot, from all servers' slices of one version."""
        ordered = sorted(slices, key=lambda part: part.offset)
        assert len({part.version for part in ordered}) == 1, "slices of several versions"
        vector = np.concatenate([part.vector for part in ordered])
        vector.setflags(write=False)
        first = ordered[0]
        return Reply(
            Receipt(version=first.version),
            ParamSnapshot(first.version, vector, np.asarray(first.buffers, np.float32), first.layout_hash),
        )

    def restore(
        self,
        acknowledged: dict[str, tuple[int, int]],
        folder: str,
        files: list[SavedFile],
        newest: ParamSlice,
        target: ParamSlice,
    ) -> Reply:
        """Begin a new life at the newest published version; only the optimizer's moments may be older.

        Args:
            acknowledged: the pushes behind that version.
            folder: the run's checkpoints folder.
            files: this server's newest checkpoint, for the moments; may be empty.
            newest, target: published slices; of the second only the target is taken.

        Returns:
            A receipt whose "moments_age" says by how many updates the moments are behind.
        """
        moments_version = 0
        if files:
            values, arrays = self._read(Path(folder), files[0])
            self._take_moments([(arrays, values)])
            moments_version = int(str(values["version"]))
        self.online.copy_(as_tensor(newest.vector))
        source = newest.target if newest.target is not None else target.target
        if self.config.has_target:
            assert source is not None
            self.target.copy_(as_tensor(source))
        self.buffers = np.array(newest.buffers)
        self.version, self.target_version = newest.version, newest.target_version
        self.acknowledged = dict(acknowledged)
        reply = self.publish()
        reply.receipt.metrics["moments_age"] = float(self.version - moments_version)
        return reply

    def save(self, folder: str, tag: str, previous: list[SavedFile]) -> Receipt:
        """Write this slice's part of the checkpoint `tag`; see Worker.save."""
        arrays = {
            "online": self.online.cpu().numpy(),
            "target": self.target.cpu().numpy(),
            "buffers": self.buffers,
            "moments": self.optimizer.moments.cpu().numpy(),
        }
        values = {
            "version": self.version,
            "target_version": self.target_version,
            "first": self.first,
            "optimizer_steps": float(self.optimizer.num_steps),
            "layout_hash": self.layout_hash,
        }
        return Receipt(
            version=self.version, files=[write_state(Path(folder), self.name, tag, arrays, {"server": values})]
        )

    def load(self, folder: str, tag: str, files: list[SavedFile]) -> Receipt:
        """Continue from the state files of all servers of a checkpoint, however many they were.

        Raises:
            CheckpointError: a file does not fit this run.
        """
        saved = sorted((self._read(Path(folder), file) for file in files), key=lambda pair: int(str(pair[0]["first"])))
        online = np.concatenate([arrays["online"] for _, arrays in saved])
        if saved[0][0]["layout_hash"] != self.layout_hash or len(online) < self.end:
            raise CheckpointError(f"{files[0].path}: parameters of another network; use the same network and algorithm")
        target = np.concatenate([arrays["target"] for _, arrays in saved])
        self.online.copy_(torch.from_numpy(online[self.first : self.end]))
        self.target.copy_(torch.from_numpy(target[self.first : self.end]))
        if self.first == 0:
            self.buffers = saved[0][1]["buffers"]
        self._take_moments([(arrays, values) for values, arrays in saved])
        values = saved[0][0]
        self.version, self.target_version = int(str(values["version"])), int(str(values["target_version"]))
        # Nothing was under way at the cut, so no push from before it can come once more; and lives are counted anew.
        self.acknowledged = {}
        return Receipt(version=self.version)

    def _take_moments(self, saved: list[tuple[dict[str, np.ndarray], dict[str, object]]]) -> None:
        """The optimizer's state over [first, end), from files that may be cut elsewhere."""
        moments = np.concatenate([arrays["moments"] for arrays, _ in saved], axis=1)
        start = int(str(saved[0][1]["first"]))
        self.optimizer.moments.copy_(torch.from_numpy(moments[:, self.first - start : self.end - start].copy()))
        self.optimizer.num_steps.fill_(float(str(saved[0][1]["optimizer_steps"])))

    def _read(self, root: Path, file: SavedFile) -> tuple[dict[str, object], dict[str, np.ndarray]]:
        arrays, values = read_state(root, file)
        server = values.get("server")
        if not isinstance(server, dict):
            raise CheckpointError(f"{root / file.path}: not a server's state file")
        return server, arrays

    def _follow(self, before: int) -> None:
        """Let the target follow, as it would have after each of the updates since version `before`."""
        share = self.config.target_share(before, self.version)
        if share > 0.0:
            self.target.lerp_(self.online, share)
        if share > 0.0 or not self.config.has_target:
            self.target_version = self.version


def _frozen(vector: torch.Tensor) -> np.ndarray:
    copy = vector.detach().cpu().numpy().copy()
    copy.setflags(write=False)
    return copy
