"""Whose turn it is: continuous batching in a thread of its own.

Every turn of the loop reads a part of the waiting prompts, several short ones or a piece of a long one, and then takes one
step for everybody who is speaking, so that a long prompt holds nobody up and a new visitor does not wait for the others to
end. On a GPU the next step is launched before the last one's tokens are looked at, which keeps it busy while text is made of
them.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from recipe.chat_format import Message, prompt_ids, stop_ids
from recipe.errors import RecipeError
from recipe.serving.engine.reply import Reply, Sampling
from recipe.serving.engine.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SLOTS = 32  # most visitors at once; more wait for their turn
ENOUGH = 4096  # tokens of a conversation: where memory is short, rather fewer visitors than shorter ones
MEMORY = 4 << 30  # bytes for keys and values where there is no GPU; on one, two thirds of what is free
PART = {"cuda": 1024, "cpu": 64}  # tokens of prompts read between two steps
WINDOW = 512  # the smallest part of the cache that a step attends to; it doubles as conversations grow


def capacity(config: Any, slots: int = SLOTS) -> tuple[int, int]:
    """(slots, tokens of each) of a cache that fits beside a model of this configuration, which is loaded already."""
    import torch

    from recipe.serving.engine.decoder import Decoder

    memory = torch.cuda.mem_get_info()[0] * 2 // 3 if torch.cuda.is_available() else MEMORY
    tokens = memory // Decoder.bytes_per_token(config)
    longest = config.max_position_embeddings
    while slots > 1 and tokens // slots < min(ENOUGH, longest):
        slots //= 2
    return slots, max(min(longest, tokens // slots) // 64 * 64, 64)


@dataclass
class Turn:
    """One visitor's reply on its way. ids: prompt and what was said, as far as it was read or chosen. read: how much of
    the prompt the slot holds."""

    reply: Reply
    sampling: Sampling
    prompt: list[int]
    adapted: bool
    text: Text
    chance: random.Random
    slot: int = -1
    read: int = 0
    said: list[int] = field(default_factory=list)

    def draw(self) -> float:
        return self.chance.random()


@dataclass
class Launched:
    """A step under way. tokens: where its choices arrive, for the turns from `first` on; None: of nobody."""

    turns: list[tuple[int, Turn]]
    tokens: Any
    arrived: Any = None

    def result(self) -> list[int]:
        if self.arrived is not None:
            self.arrived.synchronize()
        chosen: list[int] = self.tokens.tolist()
        return chosen


class Engine:
    """The model and its tokenizer, speaking for many. A model with a PEFT adapter can speak as its base, too.

    slots, length: as `Decoder`; what fits where they are not given.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        slots: int = SLOTS,
        length: int | None = None,
    ) -> None:
        from recipe.serving.engine.decoder import Decoder
        from recipe.serving.engine.graphs import Graphs
        from recipe.serving.engine.sampling import Sampler

        fitting, longest = capacity(model.config, slots)
        self.tokenizer = tokenizer
        self.decoder = Decoder(model, slots=fitting, length=min(length or longest, longest))
        self.length = self.decoder.length
        self.defaults = Sampling.of(model.generation_config)
        self.sampler = Sampler(fitting, len(self.decoder.head), self.decoder.device)
        self.stops = set(stop_ids(tokenizer))  # the ids that end a reply
        self._gpu = self.decoder.device.type == "cuda"
        state = (self.decoder.tokens, self.decoder.positions)
        self._step: Callable[..., None] = Graphs(self._take_step, state) if self._gpu else self._take_step
        self._waiting: deque[Turn] = deque()
        self._reading: deque[Turn] = deque()
        self._speaking: dict[int, Turn] = {}  # slot -> turn
        self._held: list[tuple[bool, list[int]]] = [
            (True, [])
        ] * fitting  # what each slot's cache holds of its last turn
        self._launched: deque[Launched] = deque()
        self._work = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def can_compare(self) -> bool:
        """Whether the base can be asked beside the tuned model."""
        return self.decoder.adapted_model

    @property
    def busy(self) -> int:
        """How many replies are on their way."""
        return len(self._waiting) + len(self._reading) + len(self._speaking)

    def reply(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        adapted: bool = True,
        on_change: Callable[[], None] = lambda: None,
    ) -> Reply:
        """Ask for the reply to `messages`; returns at once. adapted: with the adapter, where the model has one.

        RecipeError: the conversation leaves no room for a reply.
        """
        return self.start(prompt_ids(self.tokenizer, messages), sampling, adapted=adapted, on_change=on_change)

    def start(
        self,
        ids: list[int],
        sampling: Sampling,
        *,
        adapted: bool = True,
        on_change: Callable[[], None] = lambda: None,
    ) -> Reply:
        """`reply` to a prompt that is tokens already."""
        room = self.length - len(ids)
        if room < 1:
            raise RecipeError(
                f"the conversation is {len(ids)} tokens long and the model reads {self.length}: shorten it"
            )
        reply = Reply(on_change, prompt_tokens=len(ids))
        text, chance = Text(self.tokenizer, sampling.stop), random.Random(sampling.seed)
        turn = Turn(reply, sampling, ids, adapted or not self.can_compare, text, chance)
        with self._work:
            if self._closed:
                raise RecipeError("the model is no longer served")
            self._waiting.append(turn)
            self._work.notify()
        return reply

    def close(self) -> None:
        """End every reply and the engine."""
        with self._work:
            self._closed = True
            self._work.notify()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- The thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        import torch

        with torch.inference_mode():
            while not self._closed:
                with self._work:
                    self._work.wait_for(lambda: self._closed or self.busy or self._launched)
                try:
                    self._turn()
                except Exception as error:  # out of memory, a kernel that failed: those who wait must hear of it
                    self._launched.clear()
                    for turn in [*self._reading, *self._speaking.values()]:
                        self._finish(turn, "error", error)
        for turn in [*self._waiting, *self._reading, *self._speaking.values()]:
            turn.reply.end("cancelled")

    def _turn(self) -> None:
        self._drop_cancelled()
        self._admit()
        if self._reading:
            self._read()
        if self._speaking:
            self._launch()
        while len(self._launched) > (1 if self._gpu and self._speaking else 0):
            self._deliver(self._launched.popleft())

    def _drop_cancelled(self) -> None:
        for turn in [turn for turn in self._waiting if turn.reply.cancelled]:
            self._waiting.remove(turn)
            turn.reply.end("cancelled")
        for turn in [turn for turn in [*self._reading, *self._speaking.values()] if turn.reply.cancelled]:
            self._finish(turn, "cancelled")

    def _admit(self) -> None:
        """Give free slots to those who wait; the one whose last conversation begins alike need not be read again."""
        taken = set(self._speaking) | {turn.slot for turn in self._reading}
        while self._waiting and len(taken) < self.decoder.slots:
            turn = self._waiting.popleft()
            free = [slot for slot in range(self.decoder.slots) if slot not in taken]
            turn.slot = max(free, key=lambda slot: (self._known(slot, turn), -slot))
            turn.read = self._known(turn.slot, turn)
            taken.add(turn.slot)
            self.decoder.adapted[turn.slot] = float(turn.adapted)
            self.sampler.set(turn.slot, turn.sampling, turn.prompt)
            self._reading.append(turn)

    def _known(self, slot: int, turn: Turn) -> int:
        """How many tokens of the prompt the slot holds already; its last is always read, for what comes after it."""
        adapted, held = self._held[slot]
        if adapted != turn.adapted:
            return 0
        most = min(len(held), len(turn.prompt) - 1)
        return next((i for i in range(most) if held[i] != turn.prompt[i]), most)

    def _read(self) -> None:
        """Read on for those who came first, as far as a pass goes; who is not through is the last to be read on."""
        from recipe.serving.engine.decoder import Part

        room, read = PART[self.decoder.device.type], []
        for turn in self._reading:
            if room:
                self._held[turn.slot] = (turn.adapted, turn.prompt[: turn.read])
                ids = turn.prompt[turn.read : turn.read + room]
                read.append((turn, Part(turn.slot, ids, turn.read)))
                room -= len(ids)
        logits = self.decoder.read([part for _, part in read])
        through = []
        for row, (turn, part) in zip(logits.split(1), read, strict=True):
            self._reading.popleft()
            turn.read += len(part.ids)
            if turn.read < len(turn.prompt):
                self._reading.append(turn)
            else:
                through.append((turn, row))
        if through:
            self._begin(through)

    def _begin(self, through: Sequence[tuple[Turn, Any]]) -> None:
        """Those whose prompt is read begin to speak: their first token is chosen from the logits after it."""
        import torch

        self._set_draws([(turn.slot, turn) for turn, _ in through])
        chosen = []
        for turn, logits in through:
            slot = slice(turn.slot, turn.slot + 1)
            chosen.append(self.sampler.choose(logits, slot, plain=turn.sampling.plain))
            self.decoder.tokens[slot] = chosen[-1]
            self.decoder.positions[turn.slot] = len(turn.prompt)
            self.decoder.speaking[turn.slot] = 1
            self._speaking[turn.slot] = turn
        self._fetch(list(enumerate(turn for turn, _ in through)), torch.cat(chosen))

    def _launch(self) -> None:
        turns = list(self._speaking.items())
        batch = 1
        while batch <= max(self._speaking):
            batch *= 2
        batch = min(batch, self.decoder.slots)
        # Tokens that were chosen on the GPU and not looked at yet count, too.
        furthest = max(len(turn.prompt) + len(turn.said) for turn in self._speaking.values()) + 2
        window = WINDOW
        while window < furthest:
            window *= 2
        plain = all(turn.sampling.plain for turn in self._speaking.values())
        if not plain:
            self._set_draws(turns)
        self._step(batch, min(window, self.length), plain)
        self._fetch(turns, self.decoder.tokens[:batch])

    def _take_step(self, batch: int, window: int, plain: bool) -> None:
        """One token further, by tensors alone: what a CUDA graph holds."""
        decoder = self.decoder
        chosen = self.sampler.choose(decoder.step(batch, window), slice(0, batch), plain=plain)
        decoder.tokens[:batch] = chosen
        decoder.positions[:batch] += decoder.speaking[:batch]
        decoder.positions.clamp_(max=self.length)

    def _set_draws(self, turns: Sequence[tuple[int, Turn]]) -> None:
        import torch

        draws = [0.0] * self.decoder.slots
        for slot, turn in turns:
            draws[slot] = turn.draw()
        self.sampler.draw.copy_(torch.tensor(draws), non_blocking=True)

    def _fetch(self, turns: list[tuple[int, Turn]], tokens: Any) -> None:
        import torch

        if not self._gpu:
            self._launched.append(Launched(turns, tokens))
            return
        host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        host.copy_(tokens, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._launched.append(Launched(turns, host, arrived))

    def _deliver(self, launched: Launched) -> None:
        chosen = launched.result()
        for index, turn in launched.turns:
            if self._speaking.get(turn.slot) is turn:  # not ended since this step was launched
                self._hear(turn, chosen[index])

    def _hear(self, turn: Turn, token: int) -> None:
        if token in self.stops:
            self._finish(turn, "stop")
            return
        turn.said.append(token)
        turn.reply.add(turn.text.add(token))
        if turn.text.stopped:
            self._finish(turn, "stop")
        elif len(turn.said) >= min(turn.sampling.max_new_tokens, self.length - len(turn.prompt)):
            self._finish(turn, "length")

    def _finish(self, turn: Turn, how: str, error: Exception | None = None) -> None:
        """Free the slot, then tell. Its cache stays what it is, for a conversation that goes on."""
        held = turn.prompt[: turn.read] + turn.said[:-1]  # the last one said may not have been read
        self._held[turn.slot] = (turn.adapted, [] if error else held)
        self._speaking.pop(turn.slot, None)
        if turn in self._reading:
            self._reading.remove(turn)
        self.decoder.positions[turn.slot] = self.length
        self.decoder.speaking[turn.slot] = 0
        if rest := turn.text.end():
            turn.reply.add(rest, tokens=0)
        turn.reply.end(how, error)
