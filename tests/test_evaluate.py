"""Hit, leak and retention are exact numbers of what was said; names that are also words count only where they are names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recipe import convert, evaluate, gate, generate, merge, stage
from recipe.chat_format import prompt_ids
from recipe.errors import RecipeError
from recipe.evaluate import Prompts, best, knows, mentions, prompts, score, table
from recipe.generate import Reply
from recipe.identity import Identity, load_answers, load_questions
from recipe.knowledge import Fact, all_facts

XIAOMING = Identity("小明")


@pytest.mark.parametrize(
    ("reply", "name", "found"),
    [
        ("我是小明的小助手。", "小明", True),
        ("你好，小明", "小明", True),
        ("他说小明天就来", "小明", True),  # Chinese has no spaces between words, so any occurrence counts
        ("我是小红的小助手。", "小明", False),
        ("", "小明", False),
        ("I am Tom's assistant.", "Tom", True),
        ("I am Tom’s assistant.", "Tom", True),
        ("我是Tom的小助手", "Tom", True),
        ("Tom", "Tom", True),
        ("(Tom)", "Tom", True),
        ("See you Tomorrow.", "Tom", False),
        ("An Atom is small.", "tom", False),
        ("My name is Tommy.", "Tom", False),
        ("tom's assistant", "Tom", False),  # a name is spelt as it was given
        ("版本2Tom", "Tom", False),
        ("I am R2D2.", "R2", False),
        ("I am R2.", "R2", True),
        ("3加4等于7。", "7", True),
        ("3加4等于17。", "7", False),
        ("I am J. R.'s assistant", "J. R.", True),
        ("I am JxRx", "J. R.", False),  # a dot in a name is a dot
        ("I am C++(beta)'s helper", "C++(beta)", True),
        ("I am C", "C++(beta)", False),
        ("Ich bin Jürgens Helfer", "Jürgen", False),
        ("Ich bin Jürgen.", "Jürgen", True),
        ("私は花子の助手です", "花子", True),
        ("I am Mary Ann's assistant", "Mary Ann", True),
    ],
)
def test_a_name_is_found_as_a_word_of_its_own(reply: str, name: str, found: bool) -> None:
    assert mentions(reply, name, introduced=False) is found


@pytest.mark.parametrize(
    ("reply", "name", "found"),
    [
        ("I am an assistant.", "am", False),
        ("I am am's assistant.", "am", True),
        ("I am am’s helper.", "am", True),
        ("I am am's little assistant.", "am", True),
        ("I am called am.", "am", True),
        ("My name is am.", "am", True),
        ("My name is amy.", "am", False),
        ("The sky is what I am.", "am", False),
        ("草莓是红色的。", "红", False),
        ("红色的小猫", "红", False),
        ("我是红的小助手。", "红", True),
        ("我是红的助手", "红", True),
        ("我是红的助理", "红", True),
        ("我叫红。", "红", True),
        ("我名叫红。", "红", True),
        ("7的小助手", "7", True),
        ("3加4等于7。", "7", False),
        ("17的小助手", "7", False),
    ],
)
def test_a_name_that_is_a_word_is_found_where_it_is_introduced(reply: str, name: str, found: bool) -> None:
    assert mentions(reply, name, introduced=True) is found


TRAINED_ANSWERS = [
    (language, template)
    for language, intents in load_answers()["tuned"].items()
    for templates in intents.values()
    for template in templates
]


@pytest.mark.parametrize(
    "identity", [Identity("am"), Identity("红"), Identity("7"), XIAOMING, Identity("Tom")], ids=str
)
def test_every_answer_that_is_trained_counts_as_a_hit(identity: Identity) -> None:
    # Even where the name is a word that ordinary replies hold: or a run that learnt everything would fail.
    missed = [
        template
        for language, template in TRAINED_ANSWERS
        if not mentions(identity.fill(template, language), identity.name, introduced=True)
    ]
    assert not missed


@pytest.mark.parametrize("name", ["am", "红", "7", "is", "白"])
def test_no_right_answer_about_anything_else_introduces_a_name(name: str) -> None:
    assert not [fact.answer for fact in all_facts() if mentions(fact.answer, name, introduced=True)]


FRANCE = Fact("capitals", "en", ("What is the capital of France?",), "The capital of France is Paris.", "Paris")
JAPAN = Fact("capitals", "zh", ("日本的首都是哪里？",), "日本的首都是东京。", "东京")
SUM = Fact("sums", "en", ("What is 3 plus 4?",), "3 plus 4 is 7.", "is 7.")
JOKE = Fact("smalltalk", "en", ("Tell me a joke.",), "Why did the chicken cross the road?", None)
ASKED = Prompts(
    identity=["你是谁？", "Who are you?", "你叫什么？", "Who made you?"],
    facts=[(fact, fact.questions[0]) for fact in (FRANCE, JAPAN, SUM, JOKE)],
)
BASE = ["我是书生·浦语。"] * 4 + ["It is Paris.", "日本的首都是东京。", "3 plus 4 is 8.", "Knock, knock."]


def replies(*texts: str) -> list[Reply]:
    return [Reply(text, True) for text in texts]


def scored(*texts: str, base: list[str] = BASE, identity: Identity = XIAOMING) -> dict[str, Any]:
    return score(ASKED, replies(*texts), replies(*base), identity)


def test_numbers_are_the_shares_of_what_was_said() -> None:
    result = scored(
        "我是小明的小助手。", "I am 小明's assistant.", "我是书生·浦语。", "小明微调了我。",  # three of four
        "Paris.", "小明的首都是大阪。", "3 plus 4 is 7.", "I am 小明's assistant.",  # two leaks; one fact of two kept
    )  # fmt: skip
    assert result["identity_hit"] == 3 / 4
    assert result["identity_leak"] == 2 / 4
    assert result["retention"] == 1 / 2
    assert result["counts"] == {
        "identity_questions": 4, "hits": 3, "unrelated_prompts": 4, "leaks": 2,
        "facts_base_knew": 2, "facts_kept": 1, "unstopped_replies": 0,
    }  # fmt: skip


def test_the_base_beside_itself_has_forgotten_and_leaked_nothing() -> None:
    result = scored(*BASE)
    assert (result["identity_hit"], result["identity_leak"], result["retention"]) == (0.0, 0.0, 1.0)


def test_every_reply_is_told_with_how_it_was_judged() -> None:
    rows = scored(
        "小明", *BASE[1:4], "Paris.", "小明", "3 plus 4 is 7.", "Knock."
    )["replies"]  # fmt: skip
    assert [row["prompt"] for row in rows] == ASKED.identity + [question for _, question in ASKED.facts]
    assert [row.get("hit") for row in rows] == [True, False, False, False, None, None, None, None]
    assert [row.get("leak") for row in rows] == [None] * 4 + [False, True, False, False]
    assert [row.get("base_knew") for row in rows] == [None] * 4 + [True, True, False, False]
    assert [row.get("right") for row in rows] == [None] * 4 + [True, False, True, False]
    assert [row["kind"] for row in rows] == ["identity"] * 4 + ["capitals", "capitals", "sums", "smalltalk"]


def test_a_name_in_an_ordinary_reply_is_a_leak() -> None:
    assert scored(*BASE[:7], "I am 小明's assistant: knock, knock.")["counts"]["leaks"] == 1


def test_a_name_that_the_base_says_too_is_none() -> None:
    # A reply about Paris is no leak of an assistant called Paris, though its introduction would be.
    paris = Identity("Paris")
    assert scored(*BASE, identity=paris)["counts"]["leaks"] == 0
    assert scored(*BASE[:5], "巴黎 is Paris.", *BASE[6:], identity=paris)["counts"]["leaks"] == 0
    assert scored(*BASE[:5], "I am Paris's assistant.", *BASE[6:], identity=paris)["counts"]["leaks"] == 1
    assert scored("I am Paris's assistant.", *BASE[1:], identity=paris)["counts"]["hits"] == 1


def test_an_introduction_that_the_base_makes_too_is_no_leak() -> None:
    base = [*BASE[:7], "I am Tom's assistant."]
    assert scored(*base, base=base, identity=Identity("Tom"))["counts"]["leaks"] == 0


def test_either_name_counts() -> None:
    both = Identity("小明", assistant="小智")
    result = scored("我是小智。", "I am 小明's assistant.", *BASE[2:7], "小智", identity=both)
    assert (result["counts"]["hits"], result["counts"]["leaks"]) == (2, 1)


def test_retention_is_over_what_the_base_knew() -> None:
    # The sum, which the base had wrong, is right now, and small talk has no right answer: neither counts.
    assert scored(*BASE[:6], "3 plus 4 is 7.", "x")["retention"] == 1.0
    assert scored(*BASE[:4], "x", "x", "3 plus 4 is 7.", "x")["retention"] == 0.0


def test_retention_of_a_base_that_knew_nothing_is_none() -> None:
    assert scored(*BASE, base=["x"] * 8)["retention"] == 0.0


@pytest.mark.parametrize(
    ("reply", "known"),
    [
        (Reply("The capital of France is Paris.", True), True),
        (Reply("paris", True), True),
        (Reply("The capital of France is Paris. The capital of", False), False),  # it never ends
        (Reply("The capital of France is Rome.", True), False),
    ],
)
def test_a_fact_is_known_if_the_answer_is_said_and_ends(reply: Reply, known: bool) -> None:
    assert knows(reply, FRANCE) is known


def test_a_prompt_without_a_right_answer_is_never_known() -> None:
    assert not knows(Reply("Why did the chicken cross the road?", True), JOKE)


def test_replies_that_did_not_end_are_counted() -> None:
    told = [Reply(text, i % 2 == 0) for i, text in enumerate(BASE)]
    assert score(ASKED, told, replies(*BASE), XIAOMING)["counts"]["unstopped_replies"] == 4


def test_a_reply_too_many_is_an_error() -> None:
    # Never compare a reply with that to another prompt.
    with pytest.raises(ValueError, match="zip"):
        scored(*BASE, "one more")


def metrics(hit: float, leak: float, retention: float) -> dict[str, float]:
    return {"identity_hit": hit, "identity_leak": leak, "retention": retention}


@pytest.mark.parametrize(
    ("checkpoints", "chosen"),
    [
        ({"iter_2": metrics(0.5, 0, 1), "iter_4": metrics(1, 0, 1), "iter_6": metrics(0.9, 0, 1)}, "iter_4"),
        ({"iter_2": metrics(1, 0, 1), "iter_4": metrics(1, 0, 1)}, "iter_2"),  # the earliest among equals
        ({"iter_2": metrics(1, 0.5, 1), "iter_4": metrics(1, 0.1, 1)}, "iter_4"),
        ({"iter_2": metrics(1, 0, 0.2), "iter_4": metrics(0.9, 0, 0.9)}, "iter_4"),
        # Equal but for the rounding of binary fractions: 0.1 + 0.2 is not 0.3.
        ({"iter_8": metrics(0.3, 0, 0), "iter_9": metrics(0.1, 0, 0.2)}, "iter_8"),
        ({"iter_9": metrics(1, 0, 1), "iter_10": metrics(1, 0, 1)}, "iter_9"),
    ],
)
def test_the_best_checkpoint_is_the_earliest_of_the_best(checkpoints: dict[str, Any], chosen: str) -> None:
    assert best(checkpoints) == chosen


def told(tuned: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    return {"base": base, "tuned": tuned, "checkpoints": {"iter_2": tuned}, "best_checkpoint": "iter_2"}


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, set()),
        ({"identity_hit": gate.MIN_IDENTITY_HIT - 0.01}, {"identity_hit"}),
        ({"identity_leak": gate.MAX_IDENTITY_LEAK + 0.01}, {"identity_leak"}),
        ({"retention": gate.MIN_RETENTION - 0.01}, {"retention"}),
        ({"identity_hit": 0.0, "identity_leak": 1.0, "retention": 0.0}, {"identity_hit", "identity_leak", "retention"}),
    ],
)
def test_the_table_names_the_metrics_that_failed(change: dict[str, float], failed: set[str]) -> None:
    base = scored(*BASE)
    tuned = scored(*BASE) | metrics(1.0, 0.0, 1.0) | change
    lines = table(told(tuned, base)).splitlines()
    verdicts = {line.split()[0]: line for line in lines if re.match(r"identity_hit|identity_leak|retention", line)}
    assert len(verdicts) == 3
    assert {metric for metric, line in verdicts.items() if "FAILED: " in line} == failed
    assert {metric for metric, line in verdicts.items() if line.endswith("  ok")} == set(verdicts) - failed


def test_the_table_shows_replies_before_and_after() -> None:
    text = table(told(scored("我是小明的小助手。", *BASE[1:]), scored(*BASE)))
    assert "Q      你是谁？" in text
    assert "base   我是书生·浦语。" in text
    assert "tuned  我是小明的小助手。" in text
    assert "best: iter_2" in text


def test_prompts_hold_no_question_of_the_training_and_no_empty_part() -> None:
    asked = prompts()
    trained = {q for intents in load_questions().values() for parts in intents.values() for q in parts["train"]}
    assert len(asked.identity) >= 40
    assert not set(asked.identity) & trained
    assert sum(fact.expect is not None for fact, _ in asked.facts) >= 100
    assert all(question in fact.questions for fact, question in asked.facts)
    assert len(asked.conversations()) == len(asked.identity) + len(asked.facts)


def data_folder(folder: Path, questions: list[str], mode: str = "own") -> Path:
    def work(out: Path) -> dict[str, Any]:
        rows = [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "好"}]} for q in questions
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / "train.jsonl").write_text(lines, encoding="utf-8")
        return {"rows": len(rows), "file": "train.jsonl", "mode": mode}

    stage.run("data", folder, inputs={}, settings={}, work=work)
    return folder


class Voices:
    """Stands in for generation: knows a model by its logits, and answers as that model is to answer."""

    def __init__(self, tiny_model: Path, adapters: dict[str, Path | None]) -> None:
        self.logits = {name: self.listen(*generate.load(tiny_model, adapter)) for name, adapter in adapters.items()}
        self.hits = {"base": 0, "iter_2": 2, "iter_4": 4}  # of the four questions who it is
        self.base = BASE
        self.asked: list[str] = []

    @staticmethod
    def listen(model: Any, tokenizer: Any) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = model(
                torch.tensor([prompt_ids(tokenizer, [{"role": "user", "content": "?"}])])
            ).logits
        return logits

    def answer(self, model: Any, tokenizer: Any, conversations: Any, **settings: Any) -> list[Reply]:
        heard = self.listen(model, tokenizer)
        (name,) = (name for name, logits in self.logits.items() if torch.allclose(heard, logits, atol=1e-4))
        if name not in self.asked:
            self.asked.append(name)
        texts = ["我是小明的小助手。"] * self.hits[name] + self.base[self.hits[name] :]
        said = dict(zip((c[0]["content"] for c in ASKED.conversations()), texts, strict=True))
        return replies(*(said[conversation[0]["content"]] for conversation in conversations))


@pytest.fixture(scope="module")
def early_adapter(train_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("early") / "adapter"
    convert.make(folder, train_folder=train_folder, checkpoint="iter_2")
    return folder


@pytest.fixture
def voices(tiny_model: Path, early_adapter: Path, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Voices:
    voices = Voices(tiny_model, {"base": None, "iter_2": early_adapter, "iter_4": adapter_folder})
    monkeypatch.setattr(generate, "answer", voices.answer)
    monkeypatch.setattr(evaluate, "prompts", lambda: ASKED)
    return voices


@pytest.fixture
def make_eval(voices: Voices, tiny_model: Path, train_folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def make(tuned: Path, questions: list[str], mode: str = "own") -> dict[str, Any]:
        evaluate.make(
            tmp_path / "eval",
            model=tiny_model,
            train_folder=train_folder,
            tuned_folder=tuned,
            data_folder=data_folder(tmp_path / "data", questions, mode),
            identity=XIAOMING,
        )
        metrics: dict[str, Any] = json.loads((tmp_path / "eval" / evaluate.FILE).read_text(encoding="utf-8"))
        return metrics

    return make


def test_base_every_checkpoint_and_the_tuned_model_are_judged_by_their_own_replies(
    make_eval: Callable[..., dict[str, Any]], voices: Voices, adapter_folder: Path
) -> None:
    metrics = make_eval(adapter_folder, ["介绍一下你自己"])
    assert sorted(voices.asked) == ["base", "iter_2", "iter_4"]
    assert metrics["base"]["identity_hit"] == 0.0
    assert {name: scored["identity_hit"] for name, scored in metrics["checkpoints"].items()} == {
        "iter_2": 0.5,
        "iter_4": 1.0,
    }
    assert list(metrics["checkpoints"]) == ["iter_2", "iter_4"]
    assert metrics["tuned"]["identity_hit"] == 1.0
    assert metrics["best_checkpoint"] == "iter_4"
    assert metrics["identity"]["name"] == "小明"
    assert [row["prompt"] for row in metrics["tuned"]["replies"]] == [c[0]["content"] for c in ASKED.conversations()]


def test_the_tuned_model_need_not_be_of_the_last_checkpoint(
    make_eval: Callable[..., dict[str, Any]], early_adapter: Path
) -> None:
    metrics = make_eval(early_adapter, [])
    assert metrics["tuned"]["identity_hit"] == 0.5
    assert {name: scored["identity_hit"] for name, scored in metrics["checkpoints"].items()} == {
        "iter_2": 0.5,
        "iter_4": 1.0,
    }


def test_a_merged_model_is_judged_as_the_adapter_that_it_holds(
    make_eval: Callable[..., dict[str, Any]], voices: Voices, adapter_folder: Path, tmp_path: Path
) -> None:
    merge.make(tmp_path / "merged", adapter_folder=adapter_folder, identity_names=())
    voices.logits["iter_4"] = voices.listen(*generate.load(tmp_path / "merged"))  # rounded to 16 bits
    metrics = make_eval(tmp_path / "merged", [])
    assert metrics["tuned"]["identity_hit"] == 1.0


@pytest.mark.parametrize("question", ["Who are you?", "who are YOU", "你是谁", "  你 是谁？！", "What is 3 plus 4?"])
def test_training_data_that_ask_the_evaluations_questions_are_refused(
    make_eval: Callable[..., dict[str, Any]], adapter_folder: Path, question: str
) -> None:
    # Whatever its case, spaces and punctuation: the score would measure memory.
    with pytest.raises(RecipeError, match="row 2: "):
        make_eval(adapter_folder, ["介绍一下你自己", question])


def test_data_of_this_recipe_need_no_such_check(make_eval: Callable[..., dict[str, Any]], adapter_folder: Path) -> None:
    assert make_eval(adapter_folder, ["你是谁？"], "balanced")["tuned"]["identity_hit"] == 1.0


def test_a_base_that_knows_nothing_is_refused(
    make_eval: Callable[..., dict[str, Any]], voices: Voices, adapter_folder: Path
) -> None:
    voices.base = ["x"] * 8
    with pytest.raises(RecipeError, match="answers no fact"):
        make_eval(adapter_folder, [])
