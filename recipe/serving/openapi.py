"""The description of the API at /openapi.json, in OpenAPI 3.1: requests by the schema that they are checked by."""

from __future__ import annotations

from functools import cache
from typing import Any

from recipe.serving.request_fields import CHAT, TEXT, Schema

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_STATUSES = {
    "400": "A field is wrong, missing or not supported; or the prompt leaves no room for a reply.",
    "401": "The API key is missing or wrong.",
    "403": "There is no key, and the request came by a name that is not this machine's.",
    "404": "The model is not here.",
    "413": "The body is too large.",
    "415": "The Content-Type is not application/json.",
    "429": "Too many replies are on their way.",
    "500": "The reply failed.",
    "503": "There is no model yet, or the server stops.",
}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_FINISH = {"enum": ["stop", "length"]}
_USAGE = _object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT)
_TOKEN: dict[str, Schema] = {
    "token": _TEXT,
    "logprob": {"type": "number", "maximum": 0},
    "bytes": _list({"type": "integer"}),
}
_CHAT_LOGPROBS = _object(
    content=_list(_object(**_TOKEN, top_logprobs=_list(_object(**_TOKEN)))), refusal={"type": "null"}
)
_TEXT_LOGPROBS = _object(
    tokens=_list(_TEXT),
    token_logprobs=_list({"type": "number"}),
    top_logprobs=_list({"type": "object", "additionalProperties": {"type": "number"}}),
    text_offset=_list(_COUNT),
)
_MESSAGE = _object(role={"const": "assistant"}, content=_TEXT, refusal={"type": "null"})
_CHOICE: dict[str, Schema] = {"index": _COUNT, "finish_reason": _FINISH}
_REPLY: dict[str, Schema] = {"id": _TEXT, "created": _COUNT, "model": _TEXT, "usage": _USAGE}
_DELTA: Schema = {
    "type": "object",
    "properties": {"role": {"const": "assistant"}, "content": _TEXT},
    "additionalProperties": False,
}


def _piece(kind: str, **choice: Schema) -> Schema:
    """A piece of a stream: the last one of each reply says how it ended; the last of all may have the usage alone."""
    choices = _list(_object(index=_COUNT, finish_reason=_or_null(_FINISH), **choice))
    piece = _object(id=_TEXT, created=_COUNT, model=_TEXT, object={"const": kind}, choices=choices)
    return piece | {"properties": piece["properties"] | {"usage": _USAGE}}


_MODEL = _object(
    id=_TEXT, object={"const": "model"}, owned_by=_TEXT, created=_COUNT, context_length=_COUNT, max_model_len=_COUNT
)

SCHEMAS: dict[str, Schema] = {
    "ChatRequest": CHAT,
    "TextRequest": TEXT,
    "Chat": _object(
        **_REPLY,
        object={"const": "chat.completion"},
        choices=_list(_object(**_CHOICE, message=_MESSAGE, logprobs=_or_null(_CHAT_LOGPROBS))),
    ),
    "Text": _object(
        **_REPLY,
        object={"const": "text_completion"},
        choices=_list(_object(**_CHOICE, text=_TEXT, logprobs=_or_null(_TEXT_LOGPROBS))),
    ),
    "ChatPiece": _piece("chat.completion.chunk", delta=_DELTA, logprobs=_or_null(_CHAT_LOGPROBS)),
    "TextPiece": _piece("text_completion", text=_TEXT, logprobs=_or_null(_TEXT_LOGPROBS)),
    "Model": _MODEL,
    "Models": _object(object={"const": "list"}, data=_list(_MODEL)),
    "Health": _object(state={"enum": ["loading", "ready", "missing", "failed"]}, message=_TEXT),
    "Error": _object(
        error=_object(message=_TEXT, type=_TEXT, param=_or_null(_TEXT), code=_or_null(_TEXT)),
    ),
}


def _content(name: str) -> Schema:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _events(name: str) -> Schema:
    """Each of a stream's server-sent events: a piece or an error, and [DONE] at the end."""
    pieces = {"anyOf": [{"$ref": f"#/components/schemas/{each}"} for each in (name, "Error")]}
    piece = {"type": "string", "contentMediaType": "application/json", "contentSchema": pieces}
    schema = {"type": "object", "properties": {"data": {"anyOf": [{"const": "[DONE]"}, piece]}}, "required": ["data"]}
    return {"text/event-stream": {"schema": schema}}


def _responses(name: str, *statuses: str, piece: str | None = None) -> Schema:
    """The response of an endpoint, with the errors that it can answer with. piece: of its stream, if it has one."""
    content = _content(name) | (_events(piece) if piece else {})
    errors = {status: {"description": _STATUSES[status], "content": _content("Error")} for status in statuses}
    return {"200": {"description": "As expected.", "content": content}} | errors


def _post(summary: str, request: str, reply: str) -> Schema:
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": _content(request)},
            "responses": _responses(reply, *_STATUSES, piece=f"{reply}Piece"),
        }
    }


@cache
def description() -> dict[str, Any]:
    """The whole description."""
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    refused = ("401", "403", "503")
    health = _responses("Health") | {"503": {"description": "It is not.", "content": _content("Health")}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "InternLM2 identity recipe",
            "version": "1",
            "description": "The model of a run by OpenAI's API; docs/serving.md has what is refused.",
        },
        "security": [{"key": []}, {}],
        "paths": {
            "/v1/chat/completions": _post("The reply to a conversation.", "ChatRequest", "Chat"),
            "/v1/completions": _post("What follows a text.", "TextRequest", "Text"),
            "/v1/models": {"get": {"summary": "The model.", "responses": _responses("Models", *refused)}},
            "/v1/models/{model}": {
                "parameters": [name],
                "get": {"summary": "The model, by name.", "responses": _responses("Model", *refused, "404")},
            },
            "/health": {"get": {"summary": "Whether the model is loaded.", "responses": health}},
        },
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "API_KEY, if there is one"}},
        },
    }
