"""What clients send, and the right answer: a reply that heeds every field, or an error that names the field.

The requests of openai 2.54 and 3.3, llm 0.36, langchain-openai 1.7, litellm 1.110, lm-eval 0.4.13, instructor 1.17,
huggingface_hub 2.4 and of agents were recorded at this endpoint; the others are those of the client's source, and what
people type into curl.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from small_endpoint import ASK, HELLO, Endpoint, listen

from recipe.engine import Sampling
from recipe.serving import openapi
from recipe.serving.model_host import ModelHost

CHAT, TEXT, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"
KEY = "secret"
STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
JSON_OBJECT: dict[str, Any] = {"response_format": {"type": "json_object"}}
JSON_SCHEMA: dict[str, Any] = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "A", "schema": SCHEMA}}
}
TOOL = {"type": "function", "function": {"name": "A", "description": "", "parameters": SCHEMA}}
TOOL_CALL = {"id": "1", "type": "function", "function": {"name": "A", "arguments": "{}"}}
TOOL_RESULT = {"role": "tool", "tool_call_id": "1", "content": "r"}
PNG = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
PROMPT: dict[str, Any] = {"model": "quickstart", "prompt": "你好"}
LANGCHAIN_TEXT: dict[str, Any] = {
    "frequency_penalty": 0, "logprobs": None, "max_tokens": 256, "n": 1, "presence_penalty": 0, "seed": None,
    "temperature": 0.7, "top_p": 1,
}  # fmt: skip
LM_EVAL: dict[str, Any] = {"temperature": 0, "max_tokens": 20, "stop": ["<|im_end|>"], "seed": 1234}


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content)

    @property
    def pieces(self) -> list[Any]:
        """The answer as pieces: of a stream, or the one that it is."""
        if not self.headers["Content-Type"].startswith("text/event-stream"):
            return [self.body]
        *events, last, end = self.content.decode().split("\n\n")
        assert (last, end) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    @property
    def choices(self) -> list[list[Any]]:
        """The pieces of each reply."""
        pieces: dict[int, list[Any]] = {}
        for choice in [choice for piece in self.pieces for choice in piece["choices"]]:
            pieces.setdefault(choice["index"], []).append(choice)
        return [pieces[index] for index in range(len(pieces))]

    @property
    def texts(self) -> list[str]:
        def text(choice: Any) -> str:
            message = choice.get("message") or choice.get("delta") or {}
            return str(choice.get("text") or message.get("content") or "")

        return ["".join(map(text, choice)) for choice in self.choices]

    @property
    def ends(self) -> list[str | None]:
        """How each reply ended; only its last piece says so."""
        assert not any(piece["finish_reason"] for choice in self.choices for piece in choice[:-1])
        return [choice[-1]["finish_reason"] for choice in self.choices]

    @property
    def usage(self) -> Any:
        return self.pieces[-1].get("usage")

    @property
    def logprobs(self) -> list[list[Any]]:
        """Of each token of each reply: the likeliest tokens in its place."""

        def tokens(logprobs: Any) -> list[Any]:
            return (
                [t["top_logprobs"] for t in logprobs["content"]] if "content" in logprobs else logprobs["top_logprobs"]
            )

        pieces = [[piece["logprobs"] for piece in choice if piece["logprobs"]] for choice in self.choices]
        return [[top for logprobs in reply for top in tokens(logprobs)] for reply in pieces]


Check = Callable[[Answer, str], bool]  # whether an answer is right; given it, and what the model says to HELLO


def whole_reply(answer: Answer, greedy: str) -> bool:
    """The model's own reply, complete."""
    return (answer.texts, answer.ends) == ([greedy], ["stop"])


def stream_reply(answer: Answer, greedy: str) -> bool:
    return whole_reply(answer, greedy) and len(answer.pieces) > 5


def stream_with_usage(answer: Answer, greedy: str) -> bool:
    """A stream with its usage."""
    return stream_reply(answer, greedy) and answer.usage["completion_tokens"] > 5


def replies(number: int) -> Check:
    return lambda answer, _: len(answer.texts) == number and all(answer.ends)


def tokens(number: int) -> Check:
    """Cut after so many tokens, counted in a stream too."""
    return lambda answer, _: answer.ends == ["length"] and answer.usage["completion_tokens"] == number


def likeliest(number: int, top: int) -> Check:
    """So many replies with the likeliest tokens beside each token."""
    return lambda answer, _: (
        len(answer.logprobs) == number
        and all(reply and all(len(entry) == top for entry in reply) for reply in answer.logprobs)
    )


@dataclass
class Case:
    """A request of a client, and the answer to it.

    Attributes:
        name: the client, and what it is about.
        body: JSON, or bytes as they are.
        check: of an answer with status 200.
        status, param: of the answer.
        path, method, headers: of the request.
        hint: what the message of an error says.
    """

    name: str
    body: Any = None
    check: Check = lambda _answer, _greedy: True
    status: int = 200
    param: str | None = None
    path: str = CHAT
    method: str = "POST"
    headers: dict[str, str | None] = field(default_factory=dict)
    hint: str = ""


def chat(name: str, check: Check = whole_reply, **fields: Any) -> Case:
    return Case(name, ASK | fields, check)


def text(name: str, check: Check, **fields: Any) -> Case:
    return Case(name, PROMPT | fields, check, path=TEXT)


def refusal(name: str, param: str | None, path: str = CHAT, hint: str = "", **fields: Any) -> Case:
    return Case(name, (ASK if path == CHAT else PROMPT) | fields, status=400, param=param, path=path, hint=hint)


def no_path(name: str, path: str, body: Any = None, *, method: str = "POST") -> Case:
    return Case(name, body, status=404, path=path, method=method, hint="/openapi.json")


def curl(name: str, body: Any, status: int, **rest: Any) -> Case:
    return Case(f"curl: {name}", body, status=status, **rest)


def user(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


def reply(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


WHO = HELLO[0]["content"]
HALF: dict[str, Any] = {"\ud83d": 1}  # of a surrogate pair
UNKNOWN: dict[str, Any] = {f"field_{i}": i for i in range(30)}
RETURNED = dict.fromkeys(("annotations", "audio", "function_call", "refusal", "tool_calls"))

CASES = [
    # --- openai ---
    chat("openai: create"),
    chat("openai: create, stream", stream_reply, stream=True),
    chat("openai: create, stream with usage", stream_with_usage, **STREAM),
    chat("openai: parts, developer", whole_reply, messages=[
        {"role": "developer", "content": ""}, user([{"type": "text", "text": part} for part in (WHO[:2], WHO[2:])])]),
    chat("openai: n, logprobs", likeliest(2, 2), n=2, logprobs=True, top_logprobs=2, max_tokens=5, stream=True),
    chat("openai: logprobs alone", likeliest(1, 0), logprobs=True),
    chat("openai: own message again", replies(1), messages=[*HELLO, reply("我", refusal=None), *HELLO]),
    chat("openai: dumped message again", replies(1), messages=[*HELLO, reply("我", **RETURNED), *HELLO]),
    chat("openai: stop", lambda a, greedy: a.texts == [greedy.split("，")[0]] and a.ends == ["stop"], stop="，"),
    chat("openai: 16 stops", lambda a, greedy: a.texts == [greedy.split("，")[0]], stop=["，", *"abcdefghijklmno"]),
    chat("openai: max_completion_tokens", tokens(3), max_completion_tokens=3),
    chat("openai: seed", replies(4), n=4, seed=7, temperature=2.0, max_tokens=8),
    chat("openai: top_p 0", temperature=2, top_p=0),
    chat("openai: neutral values", n=1, presence_penalty=0.0, logit_bias={}, store=False, modalities=["text"],
         response_format={"type": "text"}, parallel_tool_calls=True, reasoning_effort=None),
    chat("openai: notes", user="me", metadata={"a": "b"}, service_tier="auto", prompt_cache_key="k",
         safety_identifier="s"),
    chat("openai: tools not to be called", tools=[TOOL], tool_choice="none"),
    refusal("openai: tools", "tools", tools=[TOOL], hint="must be left out: this model calls no tools"),
    refusal("openai: tools, required", "tool_choice", tools=[TOOL], tool_choice="required",
            hint='must be "none" or "auto"'),
    refusal("openai: functions", "functions", functions=[{"name": "A"}]),
    refusal("openai: parse", "response_format", **JSON_SCHEMA, stream=False, hint='must be {"type": "text"}'),
    refusal("openai: json_object", "response_format", **JSON_OBJECT, hint='must be {"type": "text"}'),
    refusal("openai: store", "store", store=True, hint="must be false"),
    refusal("openai: audio", "modalities", modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"}),
    refusal("openai: prediction", "prediction", prediction={"type": "content", "content": "x"}, hint="not supported"),
    refusal("openai: web search", "web_search_options", web_search_options={}),
    refusal("openai: 129 replies", "n", n=129, hint="from 1 to 8"),
    refusal("openai: top_logprobs alone", "top_logprobs", top_logprobs=2),
    refusal("openai: usage of no stream options", "stream_options", stream=True, stream_options=True, hint="an object"),
    text("openai: completions", lambda a, _: a.usage["completion_tokens"] <= 16 and bool(a.texts[0])),
    text("openai: completions, n, stop", lambda a, _: not any("你" in each for each in a.texts), n=3, stop=["你"]),
    refusal("openai: completions, echo", "echo", TEXT, "must be false", echo=True),
    refusal("openai: completions, suffix", "suffix", TEXT, suffix="。"),
    refusal("openai: completions, best_of", "best_of", TEXT, "must be 1", best_of=3),
    refusal("openai: completions, 33 replies", "n", TEXT, "32 replies at most", prompt=["a"] * 11, n=3),
    refusal("openai: completions, token ids", "prompt", TEXT, "token ids are not taken", prompt=[1, 333, 352]),
    no_path("openai: responses", "/v1/responses", {"input": "hi", "model": "quickstart"}),
    no_path("openai: embeddings", "/v1/embeddings", {"input": "x", "model": "quickstart"}),
    no_path("openai: base_url without /v1", "/chat/completions", ASK),
    Case("openai: models.list", path=MODELS, method="GET"),
    Case("openai: models.retrieve", path=f"{MODELS}/quickstart", method="GET"),
    Case("openai: models.retrieve, another", path=f"{MODELS}/gpt-4o", method="GET", status=404, param="model"),
    Case("openai: another model", ASK | {"model": "gpt-4o-mini"}, status=404, param="model", hint="'quickstart' is"),
    Case("openai: completions.list", path=CHAT, method="GET", status=405, hint="takes POST, OPTIONS, not GET"),
    Case("openai: wrong key", ASK, status=401, headers={"Authorization": "Bearer sk-proj-1"}),
    # --- llm ---
    chat("llm: prompt", stream_with_usage, **STREAM),
    chat("llm: --no-stream", stream=False),
    chat("llm: -s, -o", tokens(9), messages=[{"role": "system", "content": "be short"}, *HELLO], max_tokens=9, seed=1,
         temperature=0.0, **STREAM),
    chat("llm: -c", replies(1), messages=[{"role": "system", "content": "s"}, *HELLO, reply("我"), user("again")],
         **STREAM),
    refusal("llm: -o json_object 1", "response_format", **JSON_OBJECT, **STREAM),
    refusal("llm: --schema", "response_format", **JSON_SCHEMA, **STREAM),
    refusal("llm: -o logit_bias", "logit_bias", logit_bias={"5": -100}, **STREAM),
    refusal("llm: -o frequency_penalty", "frequency_penalty", frequency_penalty=0.5, hint="must be 0", **STREAM),
    refusal("llm: -T", "tools", tools=[TOOL], **STREAM),
    refusal("llm: -a", "messages[0].content", messages=[user([{"type": "text", "text": "hi"}, PNG])], **STREAM),
    text("llm: completion", lambda a, _: a.usage["completion_tokens"] <= 16 and len(a.pieces) > 2, **STREAM),
    text("llm: completion, logprobs", likeliest(1, 2), logprobs=2, **STREAM),
    # --- LangChain ---
    chat("langchain: invoke", stream=False),
    chat("langchain: options", likeliest(2, 0), n=2, logprobs=True, stop=["x"], max_completion_tokens=9, seed=1,
         temperature=0.0, top_p=0.9, frequency_penalty=0.0, presence_penalty=0.0, stream=False),
    refusal("langchain: image", "messages[0].content", messages=[user([{"type": "text", "text": "hi"}, PNG])]),
    refusal("langchain: answer of a tool", "messages[1].tool_calls",
            messages=[*HELLO, reply(None, tool_calls=[TOOL_CALL]), TOOL_RESULT]),
    refusal("langchain: bind_tools", "tools", tools=[TOOL], stream=False),
    refusal("langchain: structured output", "response_format", **JSON_SCHEMA, stream=False),
    text("langchain: text", replies(1), prompt=["你好"], **LANGCHAIN_TEXT),
    text("langchain: text, stream", replies(1), **LANGCHAIN_TEXT, stream=True),
    text("langchain: text, batch", replies(20), prompt=[f"你好 {i}" for i in range(20)],
         **LANGCHAIN_TEXT | {"max_tokens": 4}),
    refusal("langchain: text, best_of", "best_of", TEXT, prompt=["你好"], **LANGCHAIN_TEXT | {"n": 2, "best_of": 2}),
    # --- litellm ---
    chat("litellm: options", lambda a, greedy: a.texts == [greedy] * 2, n=2, seed=1, top_k=1, stop="x", max_tokens=99),
    chat("litellm: hosted_vllm", top_k=1, min_p=0.1, temperature=2),
    chat("litellm: prefix", lambda a, greedy: a.texts == [greedy[2:]],
         messages=[*HELLO, reply("我是", prefix=True)]),
    refusal("litellm: prefix before a question", "messages[1].prefix", hint="must be false",
            messages=[*HELLO, reply("我是", prefix=True), *HELLO]),
    refusal("litellm: reasoning_effort", "reasoning_effort", reasoning_effort="low"),
    refusal("litellm: answer of a tool", "messages[1].tool_calls",
            messages=[*HELLO, {"role": "assistant", "tool_calls": [TOOL_CALL]}, TOOL_RESULT]),
    text("litellm: text_completion", replies(2), prompt=["你好", "hi"], logprobs=1, echo=False),
    # --- lm-eval ---
    chat("lm-eval 0.4.9: local-chat-completions", messages=[user(WHO, type="text")], **LM_EVAL | {"max_tokens": 256}),
    chat("lm-eval 0.4.13: local-chat-completions", **LM_EVAL | {"max_tokens": 256}),
    text("lm-eval: generate_until, texts", replies(2), prompt=["你好", "hi"], **LM_EVAL),
    refusal("lm-eval: generate_until, token ids", "prompt", TEXT, "token ids", prompt=[[1, 333]], **LM_EVAL),
    refusal("lm-eval: loglikelihood", "echo", TEXT, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True),
    # --- others ---
    chat("NextChat", stream_reply, stream=True, temperature=0, top_p=1, presence_penalty=0, frequency_penalty=0,
         max_tokens=4000),
    refusal("instructor: tools", "tool_choice", tools=[TOOL],
            tool_choice={"type": "function", "function": {"name": "A"}}),
    Case("huggingface_hub: no model", ASK | {"model": "dummy"}, status=404, param="model"),
    no_path("huggingface_hub: text_generation", "/v1", {"inputs": "hi", "parameters": {}}),
    refusal("vLLM's client: prefill", "add_generation_prompt", messages=[*HELLO, reply("我是")],
            add_generation_prompt=False, continue_final_message=True),
    refusal("vLLM's client: guided decoding", "guided_json", guided_json=SCHEMA),
    refusal("vLLM's benchmark", "ignore_eos", TEXT, ignore_eos=True, repetition_penalty=1.0, **STREAM),
    chat("OpenCompass", max_tokens=512, n=1, logprobs=False, top_logprobs=None, stop=None, temperature=0.0),
    # --- agents ---
    chat("smolagents: stop", lambda a, greedy: a.texts == [greedy.split("，")[0]],
         messages=[user([{"type": "text", "text": WHO}])], stop=["，"]),
    chat("haystack: run", replies(1), messages=[{"role": "system", "content": "s"}, *HELLO], n=1, stream=False),
    refusal("pydantic-ai: output_type", "tool_choice", tools=[TOOL], tool_choice="required", stream=False),
    refusal("dspy: Predict, second try", "response_format", **JSON_OBJECT),
    text("llama-index: stream_complete", replies(1), temperature=0.1, stream=True),
    # --- curl ---
    chat("curl: as many tokens as fit", max_tokens=-1),
    chat("curl: nulls", stop=None, n=None, stream=None, temperature=None, tools=None, logprobs=None, seed=None),
    Case("curl: bearer in lower case", ASK, whole_reply, headers={"Authorization": f"bearer {KEY}"}),
    curl("no key", ASK, 401, headers={"Authorization": None}),
    curl("a form", ASK, 415, headers={"Content-Type": "application/x-www-form-urlencoded"}, hint="Content-Type"),
    curl("quotes of cmd.exe", b"'{model: quickstart}'", 400, hint="JSON"),
    curl("GBK", json.dumps(ASK, ensure_ascii=False).encode("gbk"), 400, hint="UTF-8"),
    curl("nothing", b"", 400, hint="JSON"),
    curl("a list", [ASK], 400, hint="JSON object"),
    curl("NaN", json.dumps(ASK | {"temperature": float("nan")}).encode(), 400, hint="NaN"),
    curl("too long a body", b" " * (1 << 20) + b"{}", 413, hint="1048576 bytes"),
    curl("no model", {"messages": HELLO}, 400, param="model", hint="is missing"),
    curl("no messages", {"model": "quickstart"}, 400, param="messages", hint="is missing"),
    refusal("curl: half of a surrogate pair", "messages[0].content", messages=[user("\ud83d")], hint="U+D83D"),
    refusal("curl: half of a surrogate pair as a field", "\ud83d", **HALF),
    refusal("curl: number as a text", "temperature", temperature="0.7", hint="a number"),
    refusal("curl: true as a text", "stream", stream="true", hint="true or false"),
    refusal("curl: misspelt", "max_token", max_token=9, hint="must be left out: it is not supported"),
    refusal("curl: several unknown fields", "field_0", **UNKNOWN),
    refusal("curl: false as 0", "echo", TEXT, echo=0),
    refusal("curl: system last", "messages", messages=[*HELLO, {"role": "system", "content": "x"}], hint="user's"),
    refusal("curl: too long a conversation", "messages", messages=[user("x y " * 4000)], hint="2048: shorten it"),
    Case("curl -I", path=MODELS, method="HEAD"),
    Case("curl -X OPTIONS", path=CHAT, method="OPTIONS", status=204, headers={"Authorization": None}),
]  # fmt: skip


@pytest.fixture(scope="module")
def endpoint(model_host: ModelHost) -> Iterator[Endpoint]:
    yield from listen(model_host, KEY)


@pytest.fixture(scope="module")
def greedy(endpoint: Endpoint) -> str:
    """What the model says to HELLO."""
    expected = endpoint.engine.reply(HELLO, Sampling())
    expected.join()
    return expected.text


def send(endpoint: Endpoint, case: Case) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=60)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"} | case.headers
    body = case.body if case.body is None or isinstance(case.body, bytes) else json.dumps(case.body).encode()
    connection.request(case.method, case.path, body, {name: value for name, value in headers.items() if value})
    response = connection.getresponse()
    answer = Answer(response.status, dict(response.getheaders()), response.read())
    connection.close()
    return answer


def shape_of(case: Case) -> str:
    """The schema of the answer, or of each of its pieces."""
    if case.status >= 400:
        return "Error"
    shapes = {CHAT: "Chat", TEXT: "Text", MODELS: "Models", f"{MODELS}/quickstart": "Model"}
    return shapes[case.path] + ("Piece" if case.method == "POST" and case.body.get("stream") else "")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_request_gets_its_answer(endpoint: Endpoint, greedy: str, case: Case) -> None:
    answer = send(endpoint, case)
    assert answer.status == case.status, answer.content
    if case.method in ("HEAD", "OPTIONS"):
        assert answer.content == b""
        return
    for piece in answer.pieces:
        Draft202012Validator(openapi.SCHEMAS[shape_of(case)]).validate(piece)
    if case.status >= 400:
        error = answer.body["error"]
        assert error["param"] == case.param
        assert (case.param or "") in error["message"]
        assert case.hint in error["message"]
        assert "\n" not in error["message"]
    elif case.method == "POST":
        assert case.check(answer, greedy), answer.content.decode()
        assert bool(answer.usage) == (not case.body.get("stream") or "stream_options" in case.body)


def test_the_same_seed_gives_the_same_replies(endpoint: Endpoint) -> None:
    for case in CASES:
        if case.name == "openai: seed":
            assert send(endpoint, case).texts == send(endpoint, case).texts


def test_no_two_cases_have_one_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 51
