"""An evaluation small enough to count by hand: four questions about who it is, four about anything else, and a base's
replies."""

from __future__ import annotations

from recipe.corpus.identity import Identity
from recipe.corpus.knowledge import Fact
from recipe.evaluation.generation import Reply
from recipe.evaluation.metrics import JudgedReply, Scores
from recipe.evaluation.scoring import Prompts, score

XIAOMING = Identity("小明")

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


def scored(*texts: str, base: list[str] = BASE, identity: Identity = XIAOMING) -> Scores:
    return score(ASKED, replies(*texts), replies(*base), identity)[0]


def judged(*texts: str, base: list[str] = BASE) -> list[JudgedReply]:
    return score(ASKED, replies(*texts), replies(*base), XIAOMING)[1]
