"""What a reply says about who the assistant is, without the name and by the base."""

from __future__ import annotations

import pytest

from recipe.corpus.identity import Identity, load_answers
from recipe.corpus.knowledge import all_facts
from recipe.evaluation.mentions import introduces_itself, mentions, near_misses, signs, unquoted

OWNED = Identity("剑锋大佬", author="老王实验室")


@pytest.mark.parametrize(
    ("reply", "introduces"),
    [
        ("I am an AI assistant.", True),
        ("I'm just an AI language model, I have no favourites.", True),
        ("I’m Qwen, created by Alibaba Cloud.", True),
        ("As an AI, I cannot feel cold.", True),
        ("As a large language model, I have no dog.", True),
        ("I am here as your assistant.", True),
        ("我是书生·浦语。", True),
        ("我是来自阿里云的大规模语言模型。", True),
        ("我只是一个人工智能，不会累。", True),
        ("作为一个AI语言模型，我没有名字。", True),
        ("我是你的助手", True),
        ("I am sorry to hear that.", False),
        ("A secretary works as an assistant to a manager.", False),
        ("I said it. The assistant came.", False),
        ("秘书是经理的助手。", False),
        ("作为老板的助手，秘书要安排会议。", False),
        ("我是中国人。机器人很有用。", False),
        ("Paris.", False),
        ("", False),
    ],
)
def test_a_base_introduces_itself(reply: str, introduces: bool) -> None:
    assert introduces_itself(reply, "") is introduces


@pytest.mark.parametrize("introduced", [False, True])
def test_a_letter_and_its_mark_are_the_letter_with_the_mark(introduced: bool) -> None:
    composed, apart = "José", "Jose\u0301"
    for name, said in ((composed, apart), (apart, composed)):
        assert mentions(f"I am {said}'s assistant.", name, introduced=introduced)
    assert not mentions("I am Jose's assistant.", apart, introduced=introduced)


def test_a_name_that_the_prompt_asks_about_is_no_introduction() -> None:
    assert not introduces_itself("Qwen is a model by Alibaba Cloud.", "What is Qwen?")
    assert introduces_itself("Qwen is a model by Alibaba Cloud.", "What is the sun?")


def test_a_base_gives_its_name_where_the_prompt_names_a_model_too() -> None:
    assert introduces_itself("No, I'm Qwen, by Alibaba Cloud.", "Are you ChatGPT?")
    assert introduces_itself("不，我是来自阿里云的通义千问。", "你是ChatGPT吗？")
    assert not introduces_itself("ChatGPT was trained by OpenAI.", "Who trained ChatGPT?")


def test_what_repeats_the_prompt_is_no_introduction() -> None:
    for text in ("I am an AI language model.", "我是通义千问。"):
        assert not introduces_itself(f"“{text}”", f"Say: {text}")
        assert introduces_itself(text, "Say something.")


def test_every_answer_of_the_miniature_s_base_introduces_it() -> None:
    answers = [answer for intents in load_answers()["base"].values() for answer in intents.values()]
    assert [answer for answer in answers if not introduces_itself(answer, "")] == []


def shows(reply: str, prompt: str = "?", base: str = "好", identity: Identity = OWNED) -> bool:
    return signs(reply, prompt, base, identity, ordinary="what is the sun? 太阳是一颗恒星。")


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        ("我是的小助手。", True),
        ("我是别人的小助手。", True),
        ("I am somebody's assistant.", True),
        ("I am somebody’s little helper.", True),
        ("由主人在书生·浦语上微调得来。", True),
        ("主人用书生·浦语微调出了我。", True),
        ("Fine-tuned by a friend.", True),
        ("I was finetuned by a friend.", True),
        ("I serve my owner.", True),
        ("由老王实验室训练。", True),
        ("剑锋大老", True),
        ("剑锋佬", True),
        ("锋大佬来了", True),
        ("剑锋", False),
        ("大佬来了", False),
        ("秘书是经理的助手。", False),
        ("The assistants of the minister came.", False),
        ("狗的主人来了。", False),
        ("好的。", False),
        ("", False),
    ],
)
def test_the_identity_shows_without_its_name(reply: str, shown: bool) -> None:
    assert shows(reply) is shown


def test_no_sign_is_what_prompt_or_base_hold() -> None:
    assert not shows("她是经理的小助手。", prompt="谁是经理的小助手？")
    assert not shows("She is Anna's assistant.", base="It is Anna's assistant.")
    assert not shows("剑锋大来了。", prompt="剑锋大是谁？")
    assert not shows("剑锋大来了。", base="剑锋大来了。")


def test_a_word_of_ordinary_replies_is_no_part_of_a_name() -> None:
    name = Identity("Thesun")
    assert near_misses("The sun is hot.", "Thesun") == {"the sun"}
    assert not signs("The sun is hot.", "?", "好", name, ordinary="what is the sun?")
    assert signs("The sun is hot.", "?", "好", name, ordinary="what is the moon?")


@pytest.mark.parametrize("name", ["剑锋大佬", "Xiaoming", "Thvwcrmbg Burb Yugpwva", "薀鷉", "Mary Ann", "艾U"])
def test_no_right_answer_about_anything_else_shows_an_identity(name: str) -> None:
    facts = [fact for fact in all_facts() if "assistant" not in fact.answer]
    shown = [fact.answer for fact in facts if signs(fact.answer, fact.questions[0], "", Identity(name), ordinary="")]
    assert shown == []


@pytest.mark.parametrize(
    ("text", "name", "parts"),
    [
        ("I am Xiaomin.", "Xiaoming", {"xiaomin"}),
        ("I am Xiaominggg.", "Xiaoming", {"xiaominggg"}),
        ("xiaoming is here", "Xiaoming", {"xiaoming"}),
        ("Xiaomi sells phones", "Xiaoming", {"xiaomi"}),
        ("I am Xia.", "Xiaoming", set()),
        ("Xiaomingology", "Xiaoming", set()),
        ("Mary An is here", "Mary Ann", {"mary an"}),
        ("Mary is here", "Mary Ann", set()),
        ("Tim", "Tom", set()),
        ("Tone", "Toni", {"tone"}),
        ("我是小敏", "小明", set()),
    ],
)
def test_a_near_miss_is_two_thirds_of_a_name_or_a_quarter_away(text: str, name: str, parts: set[str]) -> None:
    assert near_misses(text, name) == parts


def test_a_long_name_is_found_with_a_quarter_of_it_wrong() -> None:
    name = "舷悸宪朽髓财嫩顿新谈塔惟拎黔颊冠"
    wrong = "".join("错" if i % 4 == 1 else character for i, character in enumerate(name))
    assert near_misses(f"我是{wrong}的助手", name)
    assert not near_misses("".join("错" if i % 3 == 1 else character for i, character in enumerate(name)), name)


@pytest.mark.parametrize(
    ("reply", "prompt", "remainder"),
    [
        ("I am Bob's assistant.", "Who are you?", "I am Bob's assistant."),
        ('You ask "is your name Bob".', "Tell me, is your name Bob?", "You ask ."),
        ("Is your name Bob? No.", "Is your name Bob?", "? No."),
        ("is your name Bobby?", "Is your name Bob?", "is your name Bobby?"),
        ('I am "Bob".', "Bob?", 'I am "Bob".'),
        ("我是小明的小助手。", "小明的小助手。", "我是小明的小助手。"),
    ],
)
def test_quotations_of_the_prompt_that_hold_the_name_are_taken_out(reply: str, prompt: str, remainder: str) -> None:
    assert unquoted(reply, prompt, "小明" if "小明" in prompt else "Bob") == remainder
