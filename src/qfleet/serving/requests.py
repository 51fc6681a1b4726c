"""From the body of a request to observations that have been checked: size, type, shape, range, NaN and infinity."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from qfleet.types import Array, BoolArray, EnvSpec

_FIELDS = frozenset({"obs", "q_values", "action_mask"})
# A number in JSON takes up to about 25 characters with its comma.
_JSON_BYTES_PER_NUMBER = 32
_MIN_BODY_BYTES = 16 << 10
# JSON is read in the event loop: a larger body would hold up everybody else. Raw bytes are not bound by it.
_MAX_JSON_BYTES = 4 << 20


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
        status: of the answer.
        field: what is wrong: obs, q_values, action_mask, body or a header's name.
        message: how, for people.
    """

    def __init__(self, status: int, field: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.field = field
        self.message = message


@dataclass(slots=True)
class ActRequest:
    """Observations [B, *O] of the declared dtype, and what is wanted of them."""

    obs: Array
    is_single: bool
    wants_values: bool = False
    action_mask: BoolArray | None = None


class Contract:
    """What requests must look like for a policy.

    Args:
        spec: its environment's facts.
        max_rows: observations in one request.
    """

    def __init__(self, spec: EnvSpec, max_rows: int) -> None:
        self.spec = spec
        self.max_rows = max_rows
        self.shape, self.dtype = spec.obs_shape, np.dtype(spec.obs_dtype).newbyteorder("<")
        self.num_values = int(np.prod(self.shape, dtype=np.int64))
        self.num_bytes = self.num_values * self.dtype.itemsize
        one = (self.num_values + spec.num_actions) * _JSON_BYTES_PER_NUMBER
        as_json = min(max_rows * one, max(one, _MAX_JSON_BYTES))
        self.max_body = _MIN_BODY_BYTES + max(as_json, max_rows * self.num_bytes)

    def read_json(self, body: bytes) -> ActRequest:
        """A request as JSON: obs (one observation, or a list of them), q_values, action_mask.

        Raises:
            RequestError: 400, naming the field.
        """
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            raise RequestError(400, "body", "not JSON") from None
        if type(content) is not dict or "obs" not in content:
            raise RequestError(400, "obs", 'missing; send {"obs": [...]}')
        if len(content) > 1 and not content.keys() <= _FIELDS:
            unknown = sorted(content.keys() - _FIELDS)[0]
            raise RequestError(
                400, _printable(unknown) or "(empty)", f"no such field; there are {', '.join(sorted(_FIELDS))}"
            )
        has_words = b"true" in body or b"false" in body
        obs, is_single = self._shaped(_numbers(content["obs"], has_words))
        request = ActRequest(self._typed(obs), is_single)
        if len(content) > 1:
            wants_values = content.get("q_values", False)
            if type(wants_values) is not bool:
                raise RequestError(400, "q_values", "true or false")
            request.wants_values = wants_values
            if "action_mask" in content:
                request.action_mask = self._mask(content["action_mask"], request)
        return request

    def read_bytes(self, body: bytes, wants_values: bool) -> ActRequest:
        """A request as raw bytes: observations of the declared dtype (little endian) and shape, one after the other.

        Raises:
            RequestError: 400, naming the field.
        """
        num_rows, rest = divmod(len(body), self.num_bytes)
        if rest or not num_rows:
            raise RequestError(
                400, "body", f"{len(body)} bytes; an observation ({self._declared()}) takes {self.num_bytes}"
            )
        self._require_few(num_rows)
        obs = np.frombuffer(body, self.dtype).reshape(num_rows, *self.shape)
        self._require_finite(obs)
        return ActRequest(obs, num_rows == 1, wants_values)

    def _shaped(self, array: Array) -> tuple[Array, bool]:
        if array.shape == self.shape:
            return array[None], True
        if array.shape[1:] != self.shape or not len(array):
            raise RequestError(
                400, "obs", f"shape {list(array.shape)}; this policy takes {self._declared()}, or a list of them"
            )
        self._require_few(len(array))
        return array, False

    def _typed(self, array: Array) -> Array:
        if self.dtype.kind == "f":
            with np.errstate(over="ignore"):
                typed = array.astype(self.dtype)
            self._require_finite(typed)
            return typed
        if array.min() < 0 or array.max() > 255 or (array.dtype.kind == "f" and not (array == np.floor(array)).all()):
            raise RequestError(400, "obs", "whole numbers from 0 to 255")
        return array.astype(self.dtype)

    def _mask(self, value: object, request: ActRequest) -> BoolArray:
        shape = (self.spec.num_actions,) if request.is_single else (len(request.obs), self.spec.num_actions)
        try:
            mask = np.array(value)
        except ValueError:
            mask = np.zeros(0)
        if mask.dtype != np.bool_ or mask.shape != shape:
            raise RequestError(400, "action_mask", f"booleans of shape {list(shape)}, true for a legal action")
        mask = mask.reshape(len(request.obs), -1)
        if not mask.any(axis=1).all():
            raise RequestError(400, "action_mask", "no action is legal")
        return mask

    def _require_finite(self, obs: Array) -> None:
        if self.dtype.kind == "f" and not np.isfinite(obs).all():
            raise RequestError(400, "obs", "NaN, infinite, or too large for float32")

    def _require_few(self, num_rows: int) -> None:
        if num_rows > self.max_rows:
            raise RequestError(400, "obs", f"{num_rows} observations; at most {self.max_rows} in one request")

    def _declared(self) -> str:
        return f"{self.spec.obs_dtype} {list(self.shape)}"


def _numbers(value: object, has_words: bool) -> Array:
    """An array of numbers; numpy alone would also take strings and booleans for them."""
    try:
        array = np.array(value)
    except (ValueError, OverflowError, RecursionError):
        raise RequestError(400, "obs", "lists of different lengths") from None
    kind: str = array.dtype.kind
    if (kind == "O" or (has_words and kind in "iuf")) and not _all_numbers(value):
        kind = "?"
    if kind == "O":  # integers beyond 64 bits
        try:
            return array.astype(np.float64)
        except OverflowError:
            raise RequestError(400, "obs", "NaN, infinite, or too large for float32") from None
        except (ValueError, TypeError):
            raise RequestError(400, "obs", "lists of different lengths") from None
    if kind not in "iuf" or not array.size:
        raise RequestError(400, "obs", "numbers, in nested lists")
    return array


def _all_numbers(value: Any) -> bool:
    stack = [value]
    while stack:
        item = stack.pop()
        if type(item) is list:
            stack.extend(item)
        elif type(item) is not int and type(item) is not float:
            return False
    return True


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:60])
