"""What the API's description allows is answered as it describes, what it forbids is refused, and nothing is a 500."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from jsonschema import Draft202012Validator
from schemathesis.specs.openapi.checks import positive_data_acceptance
from small_endpoint import DIRECT, Endpoint, listen

from recipe.serving import openapi, request_fields
from recipe.serving.model_host import ModelHost


@pytest.fixture(scope="module")
def endpoint(model_host: ModelHost) -> Iterator[Endpoint]:
    assert model_host.engine
    longest, model_host.engine.length = model_host.engine.length, 100  # no reply is long
    yield from listen(model_host)
    model_host.engine.length = longest


@pytest.fixture(scope="module")
def description(endpoint: Endpoint) -> Any:
    """The API's description, for the one model that is here."""
    with DIRECT.open(f"{endpoint.url}/openapi.json", timeout=20) as answer:
        served = json.loads(answer.read())
    assert served == json.loads(json.dumps(openapi.description()))
    narrowed = copy.deepcopy(served)
    for name in ("ChatRequest", "TextRequest"):
        narrowed["components"]["schemas"][name]["properties"]["model"] = {"const": "quickstart"}
    schema = schemathesis.openapi.from_dict(narrowed)
    schema.config.update(base_url=endpoint.url)
    return schema


calls = schemathesis.pytest.from_fixture("description")
SESSION = requests.Session()
SESSION.trust_env = False


@calls.parametrize()
@settings(
    max_examples=40, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_every_call_is_answered_as_described(case: Any) -> None:
    # That text holds no control character, and who speaks last, no schema says.
    case.call_and_validate(session=SESSION, timeout=60, excluded_checks=[positive_data_acceptance])


@pytest.mark.parametrize("schema", [request_fields.CHAT, request_fields.TEXT, *openapi.SCHEMAS.values()])
def test_the_schemas_are_schemas(schema: Any) -> None:
    Draft202012Validator.check_schema(schema)
