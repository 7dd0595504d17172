"""Continuous batching in a thread of its own: prefill and decode steps of many sequences on one KV cache.

Each iteration of the loop prefills a bounded number of prompt tokens: several short prompts, or a chunk of a long one.
Then it decodes one token of every running sequence. So a long prompt delays no other reply, and a new request does not
wait for the others to end. On a GPU the next decode step is launched before the last one's tokens are read, which keeps
the GPU busy while they become text.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipe.chat_format import Message, prompt_ids, stop_ids
from recipe.engine.reply import Reply, Sampling
from recipe.engine.sequence import Sequence
from recipe.engine.slots import SLOTS, SlotManager, capacity
from recipe.engine.text import Text
from recipe.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PREFILL_TOKENS = {"cuda": 1024, "cpu": 64}  # prompt tokens of one prefill, between two decode steps
MIN_WINDOW = 512  # cached positions that a decode step attends to at the least; the window doubles as sequences grow


@dataclass
class InFlightStep:
    """A step whose tokens may still be on their way from the GPU.

    Attributes:
        sequences: (row of `tokens`, sequence) of those that get a token.
        tokens: (rows,), the sampled ids, in host memory once `arrived` has happened.
        arrived: the CUDA event after the copy; None where there is no GPU.
    """

    sequences: list[tuple[int, Sequence]]
    tokens: Any
    arrived: Any = None

    def result(self) -> list[int]:
        """The sampled id of each row; waits until they have arrived."""
        if self.arrived is not None:
            self.arrived.synchronize()
        ids: list[int] = self.tokens.tolist()
        return ids


class Engine:
    """Generates the replies to many requests at once. A model with a PEFT adapter answers with the adapter on or off.

    Args:
        model: a Llama of transformers, which the engine takes over; with a PEFT adapter or without.
        tokenizer: of the model.
        slots: sequences that run at once, fewer where memory is short.
        length: tokens of a slot, prompt and reply together; the longest that fits where it is not given.

    Attributes:
        length: tokens of a slot, prompt and reply together.
        defaults: the sampling of the model's own generation_config.json.
        stops: the token ids that end a reply.

    Raises:
        RecipeError: the model is not of the Llama layout.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        slots: int = SLOTS,
        length: int | None = None,
    ) -> None:
        from recipe.engine.decoder import Decoder
        from recipe.engine.graphs import Graphs
        from recipe.engine.sampling import Sampler

        fitting, longest = capacity(model.config, slots)
        self.tokenizer = tokenizer
        self.decoder = Decoder(model, slots=fitting, length=min(length or longest, longest))
        self.length = self.decoder.length
        self.defaults = Sampling.of(model.generation_config)
        self.sampler = Sampler(fitting, len(self.decoder.head), self.decoder.device)
        self.stops = set(stop_ids(tokenizer))  # the ids that end a reply
        self._gpu = self.decoder.device.type == "cuda"
        state = (self.decoder.tokens, self.decoder.positions)
        self._step: Callable[..., None] = Graphs(self._step_on_device, state) if self._gpu else self._step_on_device
        self._waiting: deque[Sequence] = deque()
        self._prefilling: deque[Sequence] = deque()
        self._decoding: dict[int, Sequence] = {}  # slot -> sequence
        self._slots = SlotManager(fitting)
        self._in_flight: deque[InFlightStep] = deque()
        self._work = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def can_compare(self) -> bool:
        """Whether the base can answer beside the tuned model."""
        return self.decoder.adapted_model

    @property
    def busy(self) -> int:
        """How many replies are on their way."""
        return len(self._waiting) + len(self._prefilling) + len(self._decoding)

    def reply(
        self,
        messages: SequenceOf[Message],
        sampling: Sampling,
        *,
        adapted: bool = True,
        on_change: Callable[[], None] = lambda: None,
    ) -> Reply:
        """Start the reply to a conversation, and return at once.

        Args:
            messages: the conversation, as `recipe.chat_format` takes it.
            sampling: how tokens are chosen, and where the reply ends.
            adapted: whether the adapter is on, where the model has one.
            on_change: called in the engine's thread when text was added and at the end.

        Returns:
            The reply, which grows.

        Raises:
            RecipeError: the conversation leaves no room for a reply, or the engine is closed.
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
        """Start the reply to a prompt of token ids, and return at once.

        Args:
            ids: of the prompt.
            sampling, adapted, on_change: see `reply`.

        Returns:
            The reply, which grows.

        Raises:
            RecipeError: the prompt leaves no room for a reply, or the engine is closed.
        """
        if len(ids) >= self.length:
            raise RecipeError(
                f"the conversation is {len(ids)} tokens long and the model reads {self.length}: shorten it"
            )
        reply = Reply(on_change, prompt_tokens=len(ids))
        text, rng = Text(self.tokenizer, sampling.stop), random.Random(sampling.seed)
        sequence = Sequence(reply, sampling, ids, adapted or not self.can_compare, text, rng)
        with self._work:
            if self._closed:
                raise RecipeError("the model is no longer served")
            self._waiting.append(sequence)
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
                    self._work.wait_for(lambda: self._closed or self.busy or self._in_flight)
                try:
                    self._iterate()
                except Exception as error:  # out of memory, a kernel that failed: the requests must end with it
                    self._in_flight.clear()
                    for sequence in [*self._prefilling, *self._decoding.values()]:
                        self._finish(sequence, "error", error)
        for sequence in [*self._waiting, *self._prefilling, *self._decoding.values()]:
            sequence.reply.end("cancelled")

    def _iterate(self) -> None:
        self._drop_cancelled()
        self._admit()
        if self._prefilling:
            self._prefill()
        if self._decoding:
            self._decode_step()
        while len(self._in_flight) > (1 if self._gpu and self._decoding else 0):
            self._process_step(self._in_flight.popleft())

    def _drop_cancelled(self) -> None:
        for sequence in [sequence for sequence in self._waiting if sequence.reply.cancelled]:
            self._waiting.remove(sequence)
            sequence.reply.end("cancelled")
        for sequence in [
            sequence for sequence in [*self._prefilling, *self._decoding.values()] if sequence.reply.cancelled
        ]:
            self._finish(sequence, "cancelled")

    def _admit(self) -> None:
        """Give free slots to waiting sequences, in the order in which they came."""
        used = set(self._decoding) | {sequence.slot for sequence in self._prefilling}
        while self._waiting and len(used) < self._slots.count:
            sequence = self._waiting.popleft()
            self._slots.allocate(sequence, used)
            used.add(sequence.slot)
            self.decoder.adapted[sequence.slot] = float(sequence.adapted)
            self.sampler.set(sequence.slot, sequence.sampling, sequence.prompt)
            self._prefilling.append(sequence)

    def _prefill(self) -> None:
        """One pass over the prompts that came first, of at most PREFILL_TOKENS; an unfinished prompt goes to the
        queue's end."""
        from recipe.engine.decoder import PromptChunk

        budget, chunks = PREFILL_TOKENS[self.decoder.device.type], []
        for sequence in self._prefilling:
            if budget:
                self._slots.store(sequence, sequence.prompt[: sequence.prefilled])
                ids = sequence.prompt[sequence.prefilled : sequence.prefilled + budget]
                chunks.append((sequence, PromptChunk(sequence.slot, ids, sequence.prefilled)))
                budget -= len(ids)
        logits = self.decoder.prefill([chunk for _, chunk in chunks])
        finished = []
        for row, (sequence, chunk) in zip(logits.split(1), chunks, strict=True):
            self._prefilling.popleft()
            sequence.prefilled += len(chunk.ids)
            if sequence.prefilled < len(sequence.prompt):
                self._prefilling.append(sequence)
            else:
                finished.append((sequence, row))
        if finished:
            self._start_decoding(finished)

    def _start_decoding(self, finished: SequenceOf[tuple[Sequence, Any]]) -> None:
        """Sample the first token of each sequence whose prompt is prefilled, from the logits after the prompt."""
        import torch

        self._set_random_numbers([(sequence.slot, sequence) for sequence, _ in finished])
        chosen = []
        for sequence, logits in finished:
            slot = slice(sequence.slot, sequence.slot + 1)
            chosen.append(self.sampler.choose(logits, slot, plain=sequence.sampling.plain))
            self.decoder.tokens[slot] = chosen[-1]
            self.decoder.positions[sequence.slot] = len(sequence.prompt)
            self.decoder.active[sequence.slot] = 1
            self._decoding[sequence.slot] = sequence
        self._copy_to_host(list(enumerate(sequence for sequence, _ in finished)), torch.cat(chosen))

    def _decode_step(self) -> None:
        sequences = list(self._decoding.items())
        batch = self._slots.batch_size(max(self._decoding))
        # Tokens that were sampled on the GPU and not read yet count, too.
        furthest = max(len(sequence.prompt) + len(sequence.output_ids) for sequence in self._decoding.values()) + 2
        window = MIN_WINDOW
        while window < furthest:
            window *= 2
        plain = all(sequence.sampling.plain for sequence in self._decoding.values())
        if not plain:
            self._set_random_numbers(sequences)
        self._step(batch, min(window, self.length), plain)
        self._copy_to_host(sequences, self.decoder.tokens[:batch])

    def _step_on_device(self, batch: int, window: int, plain: bool) -> None:
        """Decode one token of each slot by operations on tensors alone, which a CUDA graph can hold."""
        decoder = self.decoder
        chosen = self.sampler.choose(decoder.decode(batch, window), slice(0, batch), plain=plain)
        decoder.tokens[:batch] = chosen
        decoder.positions[:batch] += decoder.active[:batch]
        decoder.positions.clamp_(max=self.length)

    def _set_random_numbers(self, sequences: SequenceOf[tuple[int, Sequence]]) -> None:
        import torch

        draws = [0.0] * self.decoder.slots
        for slot, sequence in sequences:
            draws[slot] = sequence.draw()
        self.sampler.draw.copy_(torch.tensor(draws), non_blocking=True)

    def _copy_to_host(self, sequences: list[tuple[int, Sequence]], tokens: Any) -> None:
        import torch

        if not self._gpu:
            self._in_flight.append(InFlightStep(sequences, tokens))
            return
        host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        host.copy_(tokens, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._in_flight.append(InFlightStep(sequences, host, arrived))

    def _process_step(self, step: InFlightStep) -> None:
        chosen = step.result()
        for index, sequence in step.sequences:
            if self._decoding.get(sequence.slot) is sequence:  # not finished since this step was launched
                self._accept_token(sequence, chosen[index])

    def _accept_token(self, sequence: Sequence, token: int) -> None:
        if token in self.stops:
            self._finish(sequence, "stop")
            return
        sequence.output_ids.append(token)
        sequence.reply.add(sequence.text.add(token))
        if sequence.text.stopped:
            self._finish(sequence, "stop")
        elif len(sequence.output_ids) >= min(sequence.sampling.max_new_tokens, self.length - len(sequence.prompt)):
            self._finish(sequence, "length")

    def _finish(self, sequence: Sequence, how: str, error: Exception | None = None) -> None:
        """Free the slot, then end the reply. The slot's cache stays, for a conversation that goes on."""
        # The keys and values of the last accepted token may not have been computed.
        cached = sequence.prompt[: sequence.prefilled] + sequence.output_ids[:-1]
        self._slots.store(sequence, [] if error else cached)
        self._decoding.pop(sequence.slot, None)
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        self.decoder.positions[sequence.slot] = self.length
        self.decoder.active[sequence.slot] = 0
        if pending := sequence.text.end():
            sequence.reply.add(pending, tokens=0)
        sequence.reply.end(how, error)
