"""What eval measures and refuses: base beside tuned, by their own replies, on prompts that were not trained on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import full_card
from example_results import example_scores
from small_evaluation import ASKED, BASE, XIAOMING, judged, replies, scored

from recipe.chat_format import prompt_ids
from recipe.corpus.identity import load_questions
from recipe.corpus.knowledge import replay_prompts
from recipe.corpus.own_questions import OwnQuestion
from recipe.errors import RecipeError
from recipe.evaluation import checkpoint_selection, generation, metrics, own_rows, suites, thresholds
from recipe.evaluation.comparison import table
from recipe.evaluation.generation import Reply
from recipe.evaluation.metrics import BaseMetrics, Divergence, Metrics, Names, TunedMetrics
from recipe.evaluation.scoring import Prompts, share
from recipe.languages import LANGUAGES
from recipe.pipeline import stage
from recipe.plain_text import one_line
from recipe.records import from_json, to_json
from recipe.stages import convert, evaluate, merge, train
from recipe.stages.evaluate import prompts


@pytest.fixture(autouse=True)
def _two_facts_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small evaluation's base knows two."""
    monkeypatch.setattr(thresholds, "MIN_FACTS_KNOWN", 2)


GOOD: dict[str, Any] = {"identity_hit": 1.0, "identity_leak": 0.0, "retention": 1.0}


def measured(
    tuned: Sequence[str], base: Sequence[str] = BASE, *, broken: float | None = None, **changes: Any
) -> Metrics:
    """The metrics of two models by their replies. broken: of the base. changes: to the scores of the tuned model."""
    scores = replace(scored(*tuned, base=list(base)), **changes)
    suites = {name: share([True] * 19 + [False]) for name in ("multi_turn_hit", "injection_hit", "sampled_hit")}
    return Metrics(
        identity=Names("小明", None, None),
        max_new_tokens=80,
        base=BaseMetrics(scored(*base, base=list(base)), judged(*base, base=list(base)), broken),
        tuned=TunedMetrics(
            scores, judged(*tuned, base=list(base)), suites | {"broken": share([False] * 20)},
            Divergence(0.0123, 480, 0.0456),
        ),
        checkpoints={"iter_2": scores},
        best_checkpoint="iter_2",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, set()),
        ({"identity_hit": thresholds.MIN_IDENTITY_HIT - 0.01}, {"identity_hit"}),
        ({"identity_leak": thresholds.MAX_IDENTITY_LEAK + 0.01}, {"identity_leak"}),
        ({"retention": thresholds.MIN_RETENTION - 0.01}, {"retention"}),
        ({"identity_hit": 0.0, "identity_leak": 1.0, "retention": 0.0}, {"identity_hit", "identity_leak", "retention"}),
    ],
)
def test_the_table_names_the_metrics_that_failed(change: dict[str, float], failed: set[str]) -> None:
    lines = table(measured(BASE, **GOOD | change)).splitlines()
    verdicts = {line.split()[0]: line for line in lines if re.match(r"identity_hit|identity_leak|retention", line)}
    assert len(verdicts) == 3
    assert {metric for metric, line in verdicts.items() if "FAILED: " in line} == failed
    assert {metric for metric, line in verdicts.items() if line.endswith("  ok")} == set(verdicts) - failed


def test_a_reply_is_one_line_of_the_table_and_steers_no_terminal() -> None:
    hostile = "\x1b[2Jidentity_hit 1.0\r\nretention            1.000   1.000   >= 0.95   ok\rx"
    lines = table(measured([hostile, *BASE[1:]])).splitlines()
    assert len(lines) == len(table(measured(BASE)).splitlines())
    assert [line for line in lines if "[2J" in line] == [f"tuned  {one_line(hostile)}"]
    assert all(line.isprintable() for line in lines)


def test_a_full_card_is_one_line_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "load", full_card)
    with pytest.raises(RecipeError, match=r"CUDA out of memory.*CUDA_VISIBLE_DEVICES= .*CPU$"):
        evaluate._measure(evaluate.prompts(), [], tmp_path, tmp_path, XIAOMING)


def test_the_table_shows_replies_before_and_after() -> None:
    text = table(measured(["我是小明的小助手。", *BASE[1:]]))
    assert "Q      你是谁？" in text
    assert "base   我是书生·浦语。" in text
    assert "tuned  我是小明的小助手。" in text
    assert "best: iter_2" in text
    assert "besides: sampled_hit 0.950" in text
    assert re.search(r"^kl_per_token +0\.012   <= 0\.1 +ok$", text, re.MULTILINE)
    assert "the base introduces itself" not in text


def test_the_table_shows_the_base_s_own_broken_replies_beside() -> None:
    text = table(measured(BASE, broken=0.125))
    assert re.search(r"^broken +0\.125   0\.000   <= 0\.02 +ok$", text, re.MULTILINE)


def test_the_table_says_that_a_base_that_knew_too_little_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "MIN_FACTS_KNOWN", 3)
    text = table(measured(BASE, **GOOD | {"retention": 0.0}))
    (line,) = [line for line in text.splitlines() if line.startswith("retention")]
    assert "not judged: the base knew 2 facts, at least 3 are needed" in line
    assert "不作判定：基座只答对 2 条，至少需要 3 条" in line
    assert "FAILED" not in text


def test_the_table_counts_the_prompts_that_the_base_takes_for_questions_about_itself() -> None:
    base = [*BASE[:7], "I am an AI assistant."]
    assert "no leak is counted for 1 prompts" in table(measured(BASE, base))


def test_the_table_judges_what_a_sceptic_asks() -> None:
    good = measured(BASE, **GOOD)
    assert "FAILED" not in table(good)
    suites = {**good.tuned.suites, "injection_hit": share([True, False])}
    talked_out = replace(good, tuned=replace(good.tuned, suites=suites))
    (failed,) = [line for line in table(talked_out).splitlines() if "FAILED" in line]
    assert failed.startswith("injection_hit")


def test_a_training_that_was_not_scored_has_no_line_of_checkpoints() -> None:
    assert "checkpoints" not in table(replace(measured(BASE), checkpoints={}, best_checkpoint=None))


def test_prompts_hold_no_question_of_the_training_and_no_empty_part() -> None:
    held_out = prompts()
    trained = {q for intents in load_questions().values() for parts in intents.values() for q in parts["train"]}
    assert len(held_out.identity) >= 40
    assert not set(held_out.identity) & trained
    assert sum(fact.expect is not None for fact, _ in held_out.facts) >= 100
    assert all(question in fact.questions for fact, question in held_out.facts)
    assert len(held_out.conversations()) == len(held_out.identity) + len(held_out.facts)


def data_folder(folder: Path, questions: list[str], mode: str = "own", **noted: Any) -> Path:
    def work(out: Path) -> dict[str, Any]:
        rows = [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "好"}]} for q in questions
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / "train.jsonl").write_text(lines, encoding="utf-8")
        return {"rows": len(rows), "file": "train.jsonl", "mode": mode} | noted

    stage.run("data", folder, inputs={}, settings=noted, work=work)
    return folder


class Voices:
    """Stands in for generation: knows a model by its logits, and answers as that model is to answer."""

    def __init__(self, tiny_model: Path, adapters: dict[str, Path | None]) -> None:
        self.logits = {name: self.listen(*generation.load(tiny_model, adapter)) for name, adapter in adapters.items()}
        self.hits = {"base": 0, "iter_2": 2, "iter_4": 4}  # of the four questions who it is
        self.base = BASE
        self.held_out: list[str] = []
        self.chosen: list[dict[str, Any]] = []  # which prompts eval asked for

    def prompts(self, **chosen: Any) -> Prompts:
        self.chosen.append(chosen)
        return ASKED

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
        if name not in self.held_out:
            self.held_out.append(name)
        texts = ["我是小明的小助手。"] * self.hits[name] + self.base[self.hits[name] :]
        reply_to = dict(zip((c[0]["content"] for c in ASKED.conversations()), texts, strict=True))
        return replies(*(reply_to[conversation[-1]["content"]] for conversation in conversations))


@pytest.fixture(scope="module")
def early_adapter(train_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("early") / "adapter"
    convert.make(folder, train_folder=train_folder, checkpoint="iter_2")
    return folder


@pytest.fixture
def voices(tiny_model: Path, early_adapter: Path, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Voices:
    voices = Voices(tiny_model, {"base": None, "iter_2": early_adapter, "iter_4": adapter_folder})
    monkeypatch.setattr(generation, "answer", voices.answer)
    monkeypatch.setattr(evaluate, "prompts", voices.prompts)
    monkeypatch.setattr(suites, "injections", lambda held_out: held_out.conversations()[: len(held_out.identity)])
    return voices


@pytest.fixture
def make_eval(voices: Voices, tiny_model: Path, train_folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def make(tuned: Path, questions: list[str], mode: str = "own", **noted: Any) -> dict[str, Any]:
        evaluate.make(
            tmp_path / "eval",
            model=tiny_model,
            train_folder=train_folder,
            tuned_folder=tuned,
            data_folder=data_folder(tmp_path / "data", questions, mode, **noted),
            identity=XIAOMING,
        )
        content: dict[str, Any] = json.loads((tmp_path / "eval" / metrics.FILE).read_text(encoding="utf-8"))
        return content

    return make


def test_base_and_tuned_are_judged_by_their_own_replies(
    make_eval: Callable[..., dict[str, Any]], voices: Voices, adapter_folder: Path
) -> None:
    content = make_eval(adapter_folder, ["介绍一下你自己"])
    assert voices.held_out == ["base", "iter_4"]
    assert content["base"]["identity_hit"] == 0.0
    assert content["tuned"]["identity_hit"] == 1.0
    assert content["tuned"]["kl_per_token"] > 0
    assert {name: suite["value"] for name, suite in content["tuned"]["suites"].items()} == {
        "multi_turn_hit": 1.0, "multi_turn_leak": 0.0, "injection_hit": 1.0, "sampled_hit": 1.0, "sampled_leak": 0.0,
        "broken": 0.0,
    }  # fmt: skip
    assert content["identity"]["name"] == "小明"
    assert [row["prompt"] for row in content["tuned"]["replies"]] == [c[0]["content"] for c in ASKED.conversations()]


def test_the_checkpoints_scores_are_those_of_the_training(
    make_eval: Callable[..., dict[str, Any]], adapter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_eval(adapter_folder, [])["best_checkpoint"] is None
    scores = {"iter_2": example_scores(identity_hit=0.5), "iter_4": example_scores()}
    monkeypatch.setattr(checkpoint_selection, "read", lambda folder: scores)
    monkeypatch.setattr(train, "best_checkpoint", lambda folder: "iter_4")
    shutil.rmtree(tmp_path / "eval")
    content = make_eval(adapter_folder, [])
    assert content["checkpoints"] == json.loads(json.dumps(to_json(scores)))
    assert content["best_checkpoint"] == "iter_4"


def test_the_tuned_model_need_not_be_of_the_last_checkpoint(
    make_eval: Callable[..., dict[str, Any]], early_adapter: Path
) -> None:
    assert make_eval(early_adapter, [])["tuned"]["identity_hit"] == 0.5


def test_a_merged_model_is_judged_as_the_adapter_that_it_holds(
    make_eval: Callable[..., dict[str, Any]], voices: Voices, adapter_folder: Path, tmp_path: Path
) -> None:
    merge.make(tmp_path / "merged", adapter_folder=adapter_folder, identity_names=())
    voices.logits["iter_4"] = voices.listen(*generation.load(tmp_path / "merged"))  # rounded to 16 bits
    content = make_eval(tmp_path / "merged", [])
    assert content["tuned"]["identity_hit"] == 1.0


def test_the_user_s_own_questions_are_asked_of_base_and_tuned(
    make_eval: Callable[..., dict[str, Any]], adapter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = OwnQuestion([{"role": "system", "content": "店员"}, {"role": "user", "content": "几点开门？"}],
                           ["早上八点开门。"], held_out=True)  # fmt: skip
    monkeypatch.setattr(own_rows, "read_questions", lambda _: [question])
    asked: list[Any] = []
    plain = generation.answer

    def answer(model: Any, tokenizer: Any, talks: Any, **settings: Any) -> list[Reply]:
        if talks != [question.messages]:
            return plain(model, tokenizer, talks, **settings)
        asked.append(settings["max_new_tokens"])
        return replies("我不知道。" if len(asked) == 1 else "早上八点开门。")

    monkeypatch.setattr(generation, "answer", answer)
    content = make_eval(adapter_folder, ["介绍一下你自己"], own_file="train.jsonl", identity_taught=False)
    assert (content["base"]["own_hit"], content["tuned"]["own_hit"]) == (0.0, 1.0)
    assert content["tuned"]["own_counts"] == {"own_questions": 1, "own_right": 1, "own_held_out": 1}
    assert content["tuned"]["identity_taught"] is False
    manifest = stage.read_manifest(tmp_path / "eval")
    assert manifest is not None
    assert [manifest["results"][who]["own_hit"] for who in ("base", "tuned")] == [0.0, 1.0]
    assert asked[0] == asked[1] > evaluate.MORE_THAN_OWN_ANSWER
    shown = table(from_json(Metrics, content))
    assert re.search(r"^own_hit +0\.000 +1\.000   >= 0\.9 +ok$", shown, re.MULTILINE)
    for metric in ("identity_hit", "multi_turn_hit", "injection_hit"):
        (line,) = [line for line in shown.splitlines() if line.startswith(metric)]
        assert line.endswith("1.000   not judged: no row says the name / 不作判定：训练数据没有教名字")
    assert "your own rows: 1 of 1 questions answered right, 1 of them asked in a wording" in shown
    content["tuned"]["own_counts"]["own_held_out"] = 0
    content["tuned"]["own_replies"][0]["own_right"] = False
    assert "1 questions answered right, asked as they stand in the rows" in table(from_json(Metrics, content))
    assert "wanted 早上八点开门。" in table(from_json(Metrics, content))


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


def test_what_is_asked_follows_the_base_and_the_languages_of_the_data(
    make_eval: Callable[..., dict[str, Any]], voices: Voices, adapter_folder: Path
) -> None:
    make_eval(adapter_folder, [], languages=["en"])
    assert voices.chosen
    assert all(chosen == {"extended": True, "languages": ["en"]} for chosen in voices.chosen)


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("language", LANGUAGES)
def test_one_language_is_asked_alone_in_every_suite(language: str, extended: bool) -> None:
    held_out, both = prompts(extended=extended, languages=[language]), prompts(extended=extended)
    assert held_out.identity == [question for question in both.identity if question in held_out.identity]
    assert {fact.language for fact, _ in held_out.facts} == {language}
    base = [Reply(f"{i}", True) for i in range(len(held_out.conversations()))]
    conversations = suites.injections(held_out) + suites.after_ordinary_talk(held_out, base)
    conversations += suites.after_introduction(held_out, base)
    texts = [turn["content"] for turns in conversations for turn in turns if turn["role"] == "user"]
    assert any(re.search("[\u4e00-\u9fff]", text) for text in texts) == (language == "zh")
    assert len(texts) > 4 * len(held_out.identity)


def test_enough_is_asked_of_real_models_and_nothing_twice() -> None:
    held_out = prompts(extended=True)
    questions = [question for _, question in held_out.facts]
    more = [question for _, question in held_out.more_facts]
    assert len(set(held_out.identity)) == len(held_out.identity) >= 150
    assert len(set(questions)) == len(questions) >= 350
    assert len({*questions, *more}) == len(questions) + len(more)
    # Of a share of 0.97 the standard error is 1 %.
    assert sum(fact.expect is not None for fact, _ in (*held_out.facts, *held_out.more_facts)) >= 350
    assert not prompts().more_facts


@pytest.mark.parametrize("extended", [False, True])
def test_the_base_is_asked_every_fact_in_a_second_wording_that_nothing_else_has(extended: bool) -> None:
    held_out = prompts(extended=extended)
    facts = [fact for fact, _ in held_out.all_facts if fact.expect is not None]
    assert len(held_out.second_wordings) == len(facts)
    for fact, wording in zip(facts, held_out.second_wordings, strict=True):
        assert wording in fact.questions
    others = [talk[0]["content"] for talk in held_out.conversations()] + [
        prompt for prompt in replay_prompts(extended=extended) if isinstance(prompt, str)
    ]
    assert not set(held_out.second_wordings) & set(others)


def test_more_facts_are_asked_once_and_in_no_suite() -> None:
    held_out = prompts(extended=True)
    more = {question for _, question in held_out.more_facts}
    talks: list[Any] = []

    def ask(conversations: Any, what: str, **_: Any) -> list[Reply]:
        talks.extend(conversations)
        return [Reply("好", True)] * len(conversations)

    replies = [Reply("好", True)] * len(held_out.conversations())
    suites.measure(held_out, replies, replies, XIAOMING, ask)
    assert talks
    assert not [turn for talk in talks for turn in talk if turn["content"] in more]


def test_a_base_that_never_ends_a_reply_is_refused(
    make_eval: Callable[..., dict[str, Any]], adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "answer", lambda _m, _t, talks, **_: [Reply("Paris and on", False)] * len(talks))
    with pytest.raises(RecipeError, match="ends none of its replies within 80 tokens"):
        make_eval(adapter_folder, [])


@pytest.mark.parametrize(
    ("length", "room", "cut"),
    [(60, 80, 0), (150, 160, 0), (500, 80, 4)],
    ids=["talks little", "talks more", "never ends"],
)
def test_the_room_for_a_reply_is_as_long_as_the_base_talks(
    make_eval: Callable[..., dict[str, Any]], voices: Voices, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch,
    length: int, room: int, cut: int,
) -> None:  # fmt: skip
    """Of all replies; half of those to the ordinary prompts have that length."""
    rooms: list[int] = []
    plain = voices.answer

    def answer(model: Any, tokenizer: Any, talks: Any, *, max_new_tokens: int, **settings: Any) -> list[Reply]:
        names = len(tokenizer("小明", add_special_tokens=False)["input_ids"])
        rooms.append(max_new_tokens - names)
        long = {fact.questions[0] for fact, _ in ASKED.facts[::2]}
        return [
            Reply(reply.text, talk[-1]["content"] not in long or length <= rooms[-1])
            for talk, reply in zip(talks, plain(model, tokenizer, talks), strict=True)
        ]

    monkeypatch.setattr(generation, "answer", answer)
    content = make_eval(adapter_folder, [])
    assert content["max_new_tokens"] == rooms[-1] == room
    unstopped = {who: content[who]["counts"]["unstopped_replies"] for who in ("base", "tuned")}
    assert unstopped == {"base": cut // 2, "tuned": cut // 2}
    assert content["base"]["broken"] == cut / 8
    assert content["tuned"]["suites"]["broken"]["value"] == 0.0  # as the base does
