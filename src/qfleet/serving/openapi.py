"""The OpenAPI document of a served policy, with the schema of its observations."""

from __future__ import annotations

from typing import Any

from qfleet.onnx_policy import OnnxPolicy
from qfleet.serving.requests import Contract
from qfleet.version import __version__

MAX_FLOAT32 = 3.4028234663852886e38
Schema = dict[str, Any]


def document(policy: OnnxPolicy, contract: Contract, *, has_token: bool) -> Schema:
    """OpenAPI 3.1.

    Args:
        policy: what is served.
        contract: what requests must look like.
        has_token: whether a bearer token is asked for.
    """
    spec, body = contract.spec, policy.description.body
    act: Schema = {
        "summary": "The greedy action of one observation, or of many",
        "operationId": "act",
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/ActRequest"}},
                "application/octet-stream": {
                    "schema": {
                        "type": "string",
                        "format": "binary",
                        "description": f"observations one after the other, {contract.num_bytes} bytes each: "
                        f"{spec.obs_dtype}, little endian, C order, shape {list(spec.obs_shape)}",
                    }
                },
            },
        },
        "parameters": [
            {
                "name": "q_values",
                "in": "query",
                "description": "for application/octet-stream: whether to answer the values too",
                "schema": {"enum": ["true", "false"]},
            }
        ],
        "responses": {
            "200": _json("ActAnswer", "The action; for many observations a list of them"),
            **_errors("400", "401", "408", "413", "415", "429", "503"),
        },
    }
    secured: list[Schema] = [{"token": []}] if has_token else []
    act_paths = {"post": {**act, "security": secured}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{body['algo']} policy for {spec.env_id}",
            "version": __version__,
            "description": f"Served by qfleet. Policy {policy.version}; {body['outputs']['q_values']}.",
        },
        "paths": {
            "/v1/act": act_paths,
            "/v1/policy": {"get": _get("policy", "What is served", "Policy", secured)},
            "/v1/reload": {
                "post": {
                    "summary": "Load the model anew",
                    "operationId": "reload",
                    "security": [{"token": []}],
                    "responses": {"200": _json("Reloaded", "The model that acts now"), **_errors("401", "403", "409")},
                }
            },
            "/livez": {"get": _get("livez", "Whether the process lives", "Status", [])},
            "/readyz": {"get": _get("readyz", "Whether a policy is loaded and the server stays", "Status", [])},
            "/metrics": {
                "get": {
                    "summary": "Prometheus metrics",
                    "operationId": "metrics",
                    "security": secured,
                    "responses": {
                        "200": {"description": "metrics", "content": {"text/plain": {"schema": {"type": "string"}}}},
                        **_errors("401"),
                    },
                }
            },
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(contract),
        },
    }


def observation_schema(contract: Contract) -> Schema:
    """One observation: nested lists of the exact lengths."""
    number: Schema = {"type": "number", "minimum": -MAX_FLOAT32, "maximum": MAX_FLOAT32}
    if contract.dtype.kind == "u":
        number = {"type": "integer", "minimum": 0, "maximum": 255}
    return _nested(number, contract.shape)


def _schemas(contract: Contract) -> Schema:
    num_actions = contract.spec.num_actions
    values = _nested({"type": "number"}, (num_actions,))
    mask = _nested({"type": "boolean"}, (num_actions,))
    action: Schema = {"type": "integer", "minimum": 0, "maximum": num_actions - 1}

    def one_or_many(one: Schema) -> Schema:
        return {"oneOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": contract.max_rows}]}

    return {
        "Observation": observation_schema(contract),
        "ActRequest": {
            "type": "object",
            "required": ["obs"],
            "additionalProperties": False,
            "properties": {
                "obs": one_or_many({"$ref": "#/components/schemas/Observation"}),
                "q_values": {"type": "boolean", "default": False, "description": "whether to answer the values too"},
                "action_mask": {
                    **one_or_many(mask),
                    "description": "true for a legal action, at least one; as many rows as there are observations",
                },
            },
        },
        "ActAnswer": {
            "type": "object",
            "required": ["action", "version"],
            "properties": {
                "action": one_or_many(action),
                "q_values": one_or_many(values),
                "version": {"type": "string", "description": "which model acted"},
            },
        },
        "Policy": {"type": "object", "required": ["env_id", "algo", "spec", "version"]},
        "Reloaded": {
            "type": "object",
            "required": ["version", "changed"],
            "properties": {"version": {"type": "string"}, "changed": {"type": "boolean"}},
        },
        "Status": {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}},
        "Error": {
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {
                    "type": "object",
                    "required": ["field", "message"],
                    "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
                }
            },
        },
    }


def _nested(item: Schema, shape: tuple[int, ...]) -> Schema:
    for size in reversed(shape):
        item = {"type": "array", "items": item, "minItems": size, "maxItems": size}
    return item


def _json(schema: str, description: str) -> Schema:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}


_MEANINGS = {
    "400": "The request is wrong; `field` says where",
    "401": "No token, or a wrong one",
    "403": "The server has no token, so nobody may ask for this",
    "408": "The body took too long",
    "409": "The new model is refused, the old one goes on",
    "413": "The body is too large",
    "415": "Neither application/json nor application/octet-stream",
    "429": "Too many wait; see Retry-After",
    "503": "No policy yet, or about to stop; see Retry-After",
}


def _errors(*statuses: str) -> Schema:
    return {status: _json("Error", _MEANINGS[status]) for status in statuses}


def _get(name: str, summary: str, schema: str, secured: list[Schema]) -> Schema:
    responses = {"200": _json(schema, summary), **_errors(*(["401"] if secured else []), "503")}
    return {"summary": summary, "operationId": name, "security": secured, "responses": responses}
