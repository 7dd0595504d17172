"""What a request of the API may hold: the one schema that requests are checked by and /openapi.json shows.

JSON Schema 2020-12. https://platform.openai.com/docs/api-reference has the fields; top_k, min_p and repetition_penalty
are vLLM's. A field that asks for what this model cannot do is an error, and so is one that is not listed here.
"""

from __future__ import annotations

from typing import Any

from recipe.engine.logprobs import MAX_TOP

Schema = dict[str, Any]

MAX_STOPS, MAX_STOP = 16, 1000  # stop texts of a request, characters of each
MAX_CHOICES = 8  # replies to one prompt
MAX_REPLIES = 32  # of one request; LangChain sends up to 20 prompts at once
MAX_INT = 2**31 - 1

# Stands at fields that are taken only where they ask for nothing.
NEUTRAL = "Only where it asks for nothing: this model cannot do more."
# Stands at fields about tools, which are taken only where no tool is to be called.
NO_TOOLS = "Only where no tool is to be called: this model calls none."
# Stands at fields about the request that ask nothing of the reply.
NOTE = "A note about the request; it has no effect on the reply."


def _optional(kind: str, text: str, **limits: Any) -> Schema:
    return {"type": [kind, "null"], "description": text, **limits}


def _neutral(*values: Any, why: str = NEUTRAL) -> Schema:
    return {"enum": [*values, None], "description": why}


def _object(properties: dict[str, Schema], required: list[str], **more: Any) -> Schema:
    """An object whose other fields, if any, are null: some clients send every field that they know."""
    others = {"type": "null", "description": NEUTRAL}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": others, **more}


_LIMIT = {
    "anyOf": [{"const": -1}, {"type": "integer", "minimum": 1, "maximum": MAX_INT}, {"type": "null"}],
    "description": "Tokens of the reply at most. -1, null and whatever is beyond are as many as the model can read.",
}
_OPTIONS = _object(
    {
        "include_usage": _optional("boolean", "Whether a last piece has the tokens of prompt and reply, counted."),
        "include_obfuscation": _neutral(False),
    },
    [],
) | {"type": ["object", "null"]}
_STOP_TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_STOP}
_COMMON: dict[str, Schema] = {
    "model": {"type": "string", "description": "The name of the run, as /v1/models lists it."},
    "n": _optional("integer", "Replies to each prompt.", minimum=1, maximum=MAX_CHOICES),
    "stream": _optional("boolean", "Whether the reply is sent in pieces, as server-sent events."),
    "stream_options": _OPTIONS,
    "stop": {
        "anyOf": [
            {"type": "string", "maxLength": MAX_STOP},
            {"type": "array", "items": _STOP_TEXT, "maxItems": MAX_STOPS,
             "title": f"a list of up to {MAX_STOPS} texts of up to {MAX_STOP} characters"},
            {"type": "null"},
        ],
        "description": "Texts that end the reply and are not part of it.",
    },
    "max_tokens": _LIMIT,
    "temperature": _optional("number", "Divides the logits; 0 is greedy. Default: the model's.", minimum=0, maximum=2),
    "top_p": _optional("number", "Tokens that together reach this probability are drawn from.", minimum=0, maximum=1),
    "top_k": _optional("integer", "So many of the likeliest tokens are drawn from; 0 and -1 are all.", minimum=-1,
                       maximum=MAX_INT),
    "min_p": _optional("number", "Tokens with this share of the likeliest one's probability are drawn from.", minimum=0,
                       maximum=1),
    "repetition_penalty": _optional("number", "Above 1, tokens that were there before are less likely.", minimum=0.1,
                                    maximum=10),
    "seed": _optional("integer", "The same seed gives the same reply; choice i has seed + i.", minimum=-(2**63),
                      maximum=2**63 - 1),
    **{name: {"description": NOTE} for name in (
        "user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier")},
    "best_of": _neutral(1), "frequency_penalty": _neutral(0), "presence_penalty": _neutral(0),
    "logit_bias": _neutral({}), "echo": _neutral(False), "stop_token_ids": _neutral([]), "ignore_eos": _neutral(False),
    "skip_special_tokens": _neutral(True), "response_format": _neutral({"type": "text"}),
}  # fmt: skip

_PART = _object(
    {"type": {"const": "text"}, "text": {"type": "string"}, "cache_control": {"description": NOTE}}, ["type", "text"]
)
_PARTS = {"type": "array", "items": _PART, "title": "a list of parts of type text: this model reads text alone"}
_MESSAGE = _object(
    {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {"anyOf": [{"type": "string"}, _PARTS, {"type": "null"}]},
        "name": {"description": NOTE},
        "type": _neutral("text"),  # lm-eval up to 0.4.9 sends it
        "prefix": _optional("boolean", "Whether the reply goes on from this message: true for the last one alone."),
        "tool_calls": _neutral([], why=NO_TOOLS), "function_call": _neutral(why=NO_TOOLS),
        "audio": _neutral(), "refusal": _neutral(""), "annotations": _neutral([]),
    },
    ["role", "content"],
    # Other models answer with a call of a tool alone; then the assistant's message has no content.
    **{
        "if": {"properties": {"role": {"const": "assistant"}}},
        "else": {"properties": {"content": {"type": ["string", "array"]}}},
    },
)  # fmt: skip


def _unless(choice: str, tools: str) -> Schema:
    """Tools that are not to be called have no effect."""
    return {
        "if": {"properties": {choice: {"const": "none"}}, "required": [choice]},
        "then": {"properties": {tools: {"type": ["array", "null"]}}},
        "else": {"properties": {tools: _neutral([], why=NO_TOOLS)}},
    }


CHAT = _object(
    {
        **_COMMON,
        "messages": {
            "type": "array", "items": _MESSAGE, "minItems": 1,
            "description": "The conversation. Where the last message is the assistant's, the reply goes on from it.",
        },
        "max_completion_tokens": _LIMIT,
        "logprobs": _optional("boolean", "Whether each token comes with its log probability."),
        "top_logprobs": _optional("integer", "So many of the likeliest tokens are listed, where logprobs is true.",
                                  minimum=0, maximum=MAX_TOP),
        "tools": {"description": NO_TOOLS}, "functions": {"description": NO_TOOLS},
        "tool_choice": _neutral("none", "auto", why=NO_TOOLS), "function_call": _neutral("none", "auto", why=NO_TOOLS),
        "parallel_tool_calls": _neutral(True, False), "modalities": _neutral(["text"]), "store": _neutral(False),
        "reasoning_effort": _neutral("none"), "verbosity": _neutral("medium"),
    },
    ["model", "messages"],
    allOf=[_unless("tool_choice", "tools"), _unless("function_call", "functions")],
)  # fmt: skip

_PROMPT_TEXT = {"type": "string", "minLength": 1}
TEXT = _object(
    {
        **_COMMON,
        "prompt": {
            "anyOf": [
                _PROMPT_TEXT,
                {"type": "array", "items": _PROMPT_TEXT, "minItems": 1, "maxItems": MAX_REPLIES,
                 "title": f"a list of up to {MAX_REPLIES} texts; token ids are not taken"},
            ],
            "description": "Text that the model goes on from as it stands, outside of any conversation.",
        },
        "logprobs": _optional("integer", "So many of the likeliest tokens are listed beside each token.", minimum=0,
                              maximum=MAX_TOP),
        "suffix": _neutral(""),
    },
    ["model", "prompt"],
)  # fmt: skip
