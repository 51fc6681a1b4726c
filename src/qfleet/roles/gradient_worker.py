"""Worker of a parameter server: collects for its own replay, and computes what the servers merge.

collect: pull -> actor -> n-step adder -> replay     gradient: pull -> replay -> gradient -> push     (Dean et al. 2012)
"""

from __future__ import annotations

import time

import numpy as np

from qfleet.config import Fraction, PositiveInt
from qfleet.ops.slices import slice_bounds
from qfleet.replay.redistribute import ReplaySource
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.push import Compression, Encoder
from qfleet.roles.worker import Worker
from qfleet.types import FloatArray, ParamSlice, Progress, Receipt, Reply


class GradientWorker(Worker):
    """Environments, local replay and a copy of the network that follows what the servers publish.

    Args:
        blueprint: the run's plan, with this worker's share of the replay.
        name: the role's name; its seeds and files are called after it.
        rank, num_workers: which of how many workers this is.
        num_servers: into how many slices a push is cut.
        compression, top_k_fraction: how a push travels.
    """

    timing_twin = "qfleet.roles.timing_twins:TimedGradientWorker"

    def __init__(
        self,
        blueprint: Blueprint,
        name: str,
        rank: int = 0,
        num_workers: int = 1,
        num_servers: PositiveInt = 1,
        compression: Compression = "none",
        top_k_fraction: Fraction = 0.01,
    ) -> None:
        super().__init__(blueprint, name, rank, num_workers)
        self.blueprint = blueprint
        bounds = slice_bounds(self.learner.online.num_parameters, num_servers)
        self.encoder = Encoder(compression, top_k_fraction, bounds)

    def collect_with(self, progress: Progress, num_vector_steps: int, *published: ParamSlice) -> Receipt:
        """Pull, then collect."""
        self.learner.pull(*published)
        return self.collect(progress, num_vector_steps)

    def gradient(self, *published: ParamSlice) -> Reply:
        """The gradient of one batch at the published parameters, as `num_servers` pieces."""
        learner = self.learner
        self._pull(*published)
        version = learner.version
        started = time.perf_counter()
        sample = self.experience.draw(self.batch_size)
        sampled = time.perf_counter()
        priority = learner.gradient(sample)
        learned = time.perf_counter()
        self.experience.learned(sample, priority)
        replayed = sampled - started + time.perf_counter() - learned
        assert learner.online.gradient is not None
        reply = self._push(learner.online.gradient.cpu().numpy(), version, num_updates=1)
        reply.receipt.seconds = {"replay": replayed, "learner": time.perf_counter() - started - replayed}
        return reply

    def local_update(self, num_updates: int, *published: ParamSlice) -> Reply:
        """How far `num_updates` updates of this worker's own optimizer move the published parameters.

        Local SGD (Stich 2019); the optimizer's moments stay with the worker.
        """
        learner = self.learner
        self._pull(*published)
        version = learner.version
        before = learner.online.vector.clone()
        trained = self.train(num_updates)
        reply = self._push((learner.online.vector - before).cpu().numpy(), version, num_updates)
        reply.receipt.seconds = trained.seconds
        return reply

    def restore(self, incarnation: int, tag: str, sources: list[ReplaySource], *published: ParamSlice) -> Receipt:
        """Begin a new life: fresh episodes, own random numbers, and what was saved of the replay.

        Args:
            incarnation: which life; part of the seeds.
            tag: the checkpoint's name, part of the seeds; "" without one.
            sources: where replay rows are to come from; may be empty.
            published: the parameters to start from; none before the first update.

        Returns:
            A receipt with the number of transitions that the replay holds now.
        """
        if published:
            self.learner.pull(*published)
        num_rows = self.experience.restore(sources, "life", incarnation, tag)
        return Receipt(version=self.learner.version, metrics={"num_restored": num_rows})

    def _pull(self, *published: ParamSlice) -> None:
        """The newest parameters; for a rollout's first update those that made it stay (Mnih et al. 2016)."""
        if not self.experience.is_fresh:
            self.learner.pull(*published)

    def _push(self, vector: np.ndarray, version: int, num_updates: int) -> Reply:
        learner = self.learner
        buffers: FloatArray = learner.online.buffers.cpu().numpy()
        pieces = self.encoder.encode(vector, buffers)
        receipt = Receipt(
            version=version,
            num_samples=num_updates * self.batch_size,
            num_bytes=sum(piece.num_bytes for piece in pieces),
            metrics=learner.metrics(learner.loss, learner.mean_value),
        )
        return Reply(receipt, pieces if len(pieces) > 1 else pieces[0])

    def extra_state(self) -> dict[str, np.ndarray]:
        """What the compression still owes the servers."""
        return {"residual": self.encoder.residual}

    def load_extra_state(self, arrays: dict[str, np.ndarray]) -> None:
        """Continue from `extra_state`; a checkpoint without the same compression has nothing to give."""
        residual = arrays.get("residual")
        if residual is not None and residual.shape == self.encoder.residual.shape:
            self.encoder.residual = residual.copy()
