"""To ONNX: traced by torch.export, translated by onnxscript, optionally quantised to int8 by onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qfleet.errors import ExportError, MissingExtraError
from qfleet.export.network import GreedyNetwork
from qfleet.types import Array

OPSET = 18
LAYERS = ("Conv", "Gemm", "MatMul")
NEEDS_ONNX = "qfleet export --format onnx needs onnx, onnxscript and onnxruntime: pip install 'qfleet[onnx]'"


def build_onnx(network: GreedyNetwork, example: Array) -> Any:
    """The network as an onnx ModelProto: input obs [batch, *O], outputs q_values [batch, A] and action [batch].

    Args:
        network: on the CPU, without gradients.
        example: [2, *O] observations to trace with; two, for a batch of one would be taken for a constant.

    Raises:
        MissingExtraError: a package is not installed.
        ExportError: an operation cannot be translated, or the batch size would be fixed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(NEEDS_ONNX) from error
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (torch.from_numpy(example),),
                dynamo=True,
                input_names=["obs"],
                output_names=["q_values", "action"],
                dynamic_shapes={"obs": {0: torch.export.Dim("batch")}},
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # whatever the tracer meets in a user's network
        raise ExportError(f"this network cannot be written as ONNX: {' '.join(str(error).split())[:300]}") from error
    assert program is not None
    model = program.model_proto
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ExportError(
            "this network cannot be written as ONNX: it computes with the batch size as a constant; "
            "where it says len(x), write x.shape[0]"
        )
    _strip(model)
    return model


def quantize(model: Any, calibration: Array) -> Any:
    """The model with int8 weights in its inner layers, and activations whose ranges come from observations.

    Ranges are fixed here, not taken from each batch: what one observation gets must not depend on which others were
    asked together with it.

    Args:
        model: of `build_onnx`.
        calibration: [N, *O] observations from the environment.
    """
    import onnx
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder, _quiet():
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, before)
        quantization.quantize_static(
            before,
            after,
            _Calibration(calibration),
            per_channel=True,
            op_types_to_quantize=list(LAYERS),
            nodes_to_quantize=inner_layers(model.graph),
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load(after)


def inner_layers(graph: Any) -> list[str]:
    """Names of the layers that int8 does little harm to: convolutions, and linear layers between others.

    The first linear layer sees observations whose parts have scales of their own, and the last one gives values that
    differ by little. Where there are none but these, all of them.
    """
    matrices = {weight.name for weight in graph.initializer if len(weight.dims) > 1}
    # A product with a vector is no layer: a distribution's mean over its atoms.
    layers = [node for node in graph.node if node.op_type in LAYERS and not matrices.isdisjoint(node.input)]
    names = [node.name for node in layers]
    fed = _after(names, graph.node, "input", "output")
    feeding = _after(names, reversed(graph.node), "output", "input")
    return [node.name for node in layers if node.op_type == "Conv" or node.name in fed & feeding] or names


def _after(layers: Sequence[str], nodes: Iterable[Any], entry: str, leave: str) -> set[str]:
    """Names of the nodes that one of the layers leads to, going through `nodes` in their order."""
    reached: set[str] = set()
    tensors: set[str] = set()
    for node in nodes:
        is_reached = not tensors.isdisjoint(getattr(node, entry))
        if is_reached:
            reached.add(node.name)
        if is_reached or node.name in layers:
            tensors.update(getattr(node, leave))
    return reached


def with_metadata(model: Any, key: str, text: str) -> bytes:
    """The file: the model with one metadata entry."""
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = key, text
    content: bytes = model.SerializeToString()
    return content


class _Calibration:
    """Feeds observations to onnxruntime's calibration, a batch at a time."""

    def __init__(self, obs: Array, batch_size: int = 32) -> None:
        self._batches = iter(np.array_split(obs, max(1, len(obs) // batch_size)))

    def get_next(self) -> dict[str, Array] | None:
        """The next batch, None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"obs": batch}

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return iter(self.get_next, None)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Asked for by strided calibration, which is not used."""
        raise NotImplementedError


def _strip(model: Any) -> None:
    """Drop the tracer's notes on every node: they hold the paths and source lines of the machine that exported."""
    graph = model.graph
    # Shapes inferred for one layout of a weight; quantisation changes the layout, and onnxruntime infers its own.
    del graph.value_info[:]
    parts = [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer]
    for part in parts:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.producer_name = "qfleet"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on packages that are not needed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "root", "")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
