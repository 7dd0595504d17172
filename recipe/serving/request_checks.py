"""Checks a request by its schema, and says in OpenAI's shape what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from recipe.files import parse_json
from recipe.plain_text import flaw
from recipe.serving.request_fields import NEUTRAL, NO_TOOLS, Schema

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator, ValidationError

_KINDS = {
    "string": "a text", "integer": "a whole number", "number": "a number", "boolean": "true or false",
    "array": "a list", "object": "an object",
}  # fmt: skip


class RequestError(Exception):
    """A request that is not answered with a reply.

    Args:
        status: of HTTP.
        message: what is wrong.
        param: the field that it is about.
        code: OpenAI's word for it.

    Attributes:
        body: the answer in OpenAI's shape.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def parse(content: bytes) -> dict[str, Any]:
    """The JSON object in the body of a request.

    Raises:
        RequestError: it holds none.
    """
    try:
        body = parse_json(content)
    except UnicodeDecodeError as error:  # such as GBK, from a Chinese console
        raise RequestError(400, f"the body is not JSON in UTF-8: see byte {error.start + 1}, and send UTF-8") from None
    except ValueError as error:
        raise RequestError(400, f"the body {error}") from None
    if not isinstance(body, dict):
        raise RequestError(400, "the body must be a JSON object")
    return body


@lru_cache(maxsize=8)
def _validator(schema: str) -> Draft202012Validator:
    from jsonschema import Draft202012Validator, validators

    ordered = validators.extend(Draft202012Validator, {"additionalProperties": _other_fields})
    validator: Draft202012Validator = ordered(json.loads(schema))
    return validator


def _other_fields(validator: Any, others: Schema, instance: Any, schema: Schema) -> Iterator[ValidationError]:
    """Check by `others` what `schema` does not list, in the order of the request; jsonschema's own order is random."""
    for name in instance if isinstance(instance, dict) else ():
        if name not in schema["properties"]:
            yield from validator.descend(instance[name], others, path=name)


def check(body: dict[str, Any], schema: Schema) -> None:
    """Check a request.

    Args:
        body: of the request.
        schema: of its fields.

    Raises:
        RequestError: the first field that is wrong, missing, or not supported.
    """
    error = next(_validator(json.dumps(schema)).iter_errors(body), None)
    if error:
        raise _request_error(error)


def _request_error(error: ValidationError) -> RequestError:
    where = _field(error.absolute_path)
    prefix = f"{where}." if where else ""
    if error.validator == "required":
        param = prefix + next(name for name in error.validator_value if name not in error.instance)
        return RequestError(400, f"{param} is missing", param=param)
    if error.schema.get("description") in (NEUTRAL, NO_TOOLS):
        return RequestError(400, _unsupported(where, error.schema), param=where, code="unsupported_parameter")
    return RequestError(400, f"{where or 'the body'} must be {_expected(error.schema)}", param=where or None)


def _unsupported(where: str, schema: Schema) -> str:
    """What to do about a field that is not supported, or only with some values."""
    values = [json.dumps(value) for value in schema.get("enum", []) if value not in (None, "", [], {})]
    if schema["description"] == NO_TOOLS:
        why = "this model calls no tools"
    else:
        why = "nothing else is supported" if values else "it is not supported"
    allowed = f"be {' or '.join(values)} or " if values else ""
    return f"{where} must {allowed}be left out: {why}"


def _field(path: Iterable[str | int]) -> str:
    """A field as clients write it, such as messages[0].role."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _expected(schema: Schema) -> str:
    """What a schema takes, in words; null is not named."""
    if title := schema.get("title"):
        return str(title)
    if alternatives := schema.get("anyOf"):
        return " or ".join(_expected(each) for each in alternatives if each != {"type": "null"})
    if "enum" in schema:
        return f"one of {', '.join(json.dumps(value) for value in schema['enum'])}"
    if "const" in schema:
        return json.dumps(schema["const"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    words = " or ".join(_KINDS[kind] for kind in kinds if kind != "null")
    if "minimum" in schema:
        return f"{words} from {schema['minimum']} to {schema['maximum']}"
    if "maxLength" in schema:
        return f"{words} of up to {schema['maxLength']} characters"
    return f"{words} that is not empty" if {"minItems", "minLength"} & schema.keys() else words


def refuse_flaw(where: str, text: str, *, control: bool = True) -> None:
    """Refuse a text that is none.

    Args:
        where: the field that holds it.
        text: of the client.
        control: see `plain_text.flaw`.

    Raises:
        RequestError: it holds half of a surrogate pair, or a control character.
    """
    if fault := flaw(text, control=control):
        raise RequestError(400, f"{where} is no text: it holds {fault}", param=where)
