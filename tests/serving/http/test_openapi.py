"""The description of the service: whatever it allows is answered as it says, and its examples give captions.

PATCHCAPTION_EXAMPLES says how many requests of each call are made up; 150 take minutes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import Captioner
from tests.serving.http.served import served
from tests.serving.http.test_calls import as_form

EXAMPLES = int(os.environ.get("PATCHCAPTION_EXAMPLES", "5"))
CALLS = (
    ("POST", "/v1/captions"),
    ("POST", "/v1/features"),
    ("POST", "/v1/features/{id}/captions"),
    ("GET", "/v1/features/{id}"),
    ("GET", "/v1/features/{id}/attention"),
    ("DELETE", "/v1/features/{id}"),
    ("GET", "/v1/info"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
)


@pytest.fixture(scope="module")
def url(demo: Captioner) -> Iterator[str]:
    """A service of its own, whose feature maps are deleted here."""
    with served(demo) as url:
        yield url


@pytest.fixture(scope="module")
def description(client: httpx.Client) -> dict[str, Any]:
    return dict(client.get("/openapi.json").json())


def keep(client: httpx.Client, image: bytes) -> str:
    return str(client.post("/v1/features", **as_form(image)).json()["id"])


def test_the_calls_are_those_that_are_described(description: dict[str, Any]) -> None:
    found = {(method.upper(), path) for path, methods in description["paths"].items() for method in methods}
    assert found == set(CALLS)


def examples_of(description: dict[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    """Yield method, path, content type and body of each example."""
    for path, methods in description["paths"].items():
        for method, call in methods.items():
            for content_type, content in call.get("requestBody", {}).get("content", {}).items():
                if "example" in content:
                    yield method.upper(), path, content_type, content["example"]
                for example in content.get("examples", {}).values():
                    yield method.upper(), path, content_type, example["value"]


def test_every_example_is_answered_as_it_stands(
    description: dict[str, Any], client: httpx.Client, scene_file: bytes
) -> None:
    examples = list(examples_of(description))
    assert {path for _, path, _, _ in examples} == {path for method, path in CALLS if method == "POST"}
    for method, path, content_type, body in examples:
        target = path.replace("{id}", keep(client, scene_file))
        answer = client.request(method, target, content=json.dumps(body), headers={"content-type": content_type})
        assert answer.is_success, answer.text
        if "captions" in path:
            captions = answer.json()["captions"]
            assert len(captions) == len(body["regions"])
            assert all(caption["text"] for caption in captions)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        *((*call, "positive") for call in CALLS),
        *((*call, "negative") for call in CALLS if call[0] == "POST"),  # of the others nothing can be wrong
    ],
)
def test_what_is_made_up_is_answered_as_described(
    method: str, path: str, mode: str, url: str, description: dict[str, Any], client: httpx.Client, scene_file: bytes
) -> None:
    """With the checks of schemathesis but two: regions have more forms than are listed, and bytes need be no image."""
    schemathesis = pytest.importorskip("schemathesis", reason="it has no release for Python 3.10")
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    schema = schemathesis.openapi.from_dict(description)
    operation = schema[path][method]
    kept = keep(client, scene_file)

    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)), is_kept=st.booleans())
    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=[*HealthCheck]
    )
    def check(case: Any, is_kept: bool) -> None:
        if is_kept and "{id}" in path and method != "DELETE":
            case.path_parameters["id"] = kept
        answer = case.call(base_url=url)
        case.validate_response(
            answer,
            checks=[
                not_a_server_error,
                checks.status_code_conformance,
                checks.content_type_conformance,
                checks.response_schema_conformance,
            ],
        )

    check()
