"""Continuous batching: prefill and decode steps of many sequences on one KV cache, an iteration at a time.

Each iteration prefills a bounded number of prompt tokens: several short prompts, or a chunk of a long one. Then it
decodes one token of every running sequence. So a long prompt delays no other reply, and a new request does not wait for
the others to end. On a GPU the next decode step is launched before the last one's tokens are read, which keeps the GPU
busy while they become text.

Two callers: `engine.Engine` for replies that somebody waits for, `batch.BatchGenerator` for whole replies to many.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING, Any

from recipe.engine.in_flight import InFlightStep, in_flight
from recipe.engine.sequence import Sequence
from recipe.engine.slots import SlotManager

if TYPE_CHECKING:
    from torch import Tensor

    from recipe.engine.decoder import Decoder
    from recipe.engine.logprobs import Rows, StepLogprob

PREFILL_TOKENS = {"cuda": 1024, "cpu": 64}  # prompt tokens of one prefill, between two decode steps
BATCH_PREFILL_TOKENS = {"cuda": 8192, "cpu": 2048}  # the same where nobody waits for the first token
# One slot in so many is free before prompts are prefilled where nobody waits: a prefill of few prompts takes
# longer on a GPU than a captured step of all, since nothing captures it.
ADMITTED_TOGETHER = 8
MIN_WINDOW = 512  # cached positions that a captured step attends to at the least; doubles as sequences grow


class Scheduler:
    """Runs sequences on a decoder, in the caller's thread.

    Args:
        decoder: of the model; nothing else may run on it.
        stops: the token ids that end a reply.
        whole: whether nobody waits for first tokens and all sequences are there from the beginning. Prompts are then
            prefilled in larger passes, no prefix is kept, and the last sequences move together into a narrower batch.
        top: how many of the likeliest tokens a sequence may want; 0 for as many as the API gives.

    Attributes:
        sampler: chooses the tokens.
        logprobs: of the latest step, where a sequence wants them.
        slots: gives a slot to each sequence.
        graphs: of the decode steps; None where there is no GPU.
    """

    def __init__(self, decoder: Decoder, stops: set[int], *, whole: bool = False, top: int = 0) -> None:
        from recipe.engine.graphs import Graphs
        from recipe.engine.logprobs import MAX_TOP, LogprobBuffers
        from recipe.engine.sampling import Sampler

        self.decoder, self.stops, self.whole = decoder, stops, whole
        self.length = decoder.length
        self.sampler = Sampler(decoder.slots, len(decoder.head), decoder.device)
        self.logprobs = LogprobBuffers(decoder.slots, len(decoder.head), decoder.device, top=top or MAX_TOP)
        self.slots = SlotManager(decoder.slots, caching=not whole)
        self._gpu = decoder.device.type == "cuda"
        self.graphs = Graphs((decoder.tokens, decoder.positions)) if self._gpu else None
        self._waiting: deque[Sequence] = deque()
        self._entrance = threading.Lock()  # of `_waiting`, to which other threads add
        self._prefilling: deque[Sequence] = deque()
        self._decoding: dict[int, Sequence] = {}  # slot -> sequence
        self._in_flight: deque[InFlightStep] = deque()
        self._ended: list[int] = []  # slots whose sequences have ended, until the decoder knows

    @property
    def busy(self) -> int:
        """How many sequences are on their way."""
        return len(self._waiting) + len(self._prefilling) + len(self._decoding)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.busy or self._in_flight)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for a slot; any thread may call this."""
        with self._entrance:
            self._waiting.append(sequence)

    def fail(self, error: Exception) -> None:
        """End every sequence that has a slot, after `iterate` raised `error`.

        The replies end before anything touches the device: after a failure of CUDA every call on it fails.

        Raises:
            Exception: the device fails still, and the scheduler is of no use any more.
        """
        sequences = [*self._prefilling, *self._decoding.values()]
        self._in_flight.clear()
        self._prefilling.clear()
        self._decoding.clear()
        for sequence in sequences:
            self.slots.store(sequence, [])
            sequence.listener.end("error", error)
        self._ended += [sequence.slot for sequence in sequences]
        self._release_ended()
        self.decoder.synchronize()

    def end_all(self, how: str, error: Exception | None = None) -> None:
        """Tell every sequence that it ends here, without a call on the device.

        The scheduler is of no use afterwards. how, error: see `reply.Reply`.
        """
        sequences = [*self._waiting, *self._prefilling, *self._decoding.values()]
        self._waiting.clear()
        self._prefilling.clear()
        self._decoding.clear()
        self._in_flight.clear()
        for sequence in sequences:
            sequence.listener.end(how, error)

    def iterate(self) -> None:
        """One prefill and one decode step, where there is need for them."""
        self._drop_cancelled()
        self._release_ended()
        self._admit()
        if self._prefilling:
            self._prefill()
        self._release_ended()
        if self._decoding:
            self._decode_step()
        while len(self._in_flight) > (1 if self._gpu and self._decoding else 0):
            self._process_step(self._in_flight.popleft())
        self._release_ended()

    def _release_ended(self) -> None:
        """Let nothing more be decoded where sequences have ended, in one call: each waits its turn on the GPU."""
        ended, self._ended = self._ended, []
        self.decoder.release(ended)

    def _drop_cancelled(self) -> None:
        with self._entrance:
            dropped = [each for each in self._waiting if each.listener.cancelled]
            if dropped:  # of thousands, to look for each in the queue would take minutes
                gone = set(map(id, dropped))
                self._waiting = deque(each for each in self._waiting if id(each) not in gone)
        for sequence in dropped:
            sequence.listener.end("cancelled")
        running = [*self._prefilling, *self._decoding.values()]
        for sequence in [each for each in running if each.listener.cancelled]:
            self._finish(sequence, "cancelled")

    def _admit(self) -> None:
        """Give free slots to waiting sequences, in the order in which they came."""
        used = set(self._decoding) | {sequence.slot for sequence in self._prefilling}
        enough = min(len(self._waiting), self.slots.count // ADMITTED_TOGETHER)
        if self.whole and self.slots.count - len(used) < enough:
            return
        while self._waiting and len(used) < self.slots.count:
            sequence = self._waiting.popleft()
            self.slots.allocate(sequence, used)
            used.add(sequence.slot)
            self._prefilling.append(sequence)  # before what may fail: `fail` ends the sequences of the queues
            try:
                self.decoder.adapted[sequence.slot] = float(sequence.adapted)
                self.sampler.set(sequence.slot, sequence.sampling, sequence.prompt)
            except Exception as error:  # a setting that the sampler cannot take: the other sequences are sound
                self._finish(sequence, "error", error)

    def _prefill(self) -> None:
        """One pass over the prompts that came first, of a bounded number of tokens; an unfinished prompt goes to the
        queue's end."""
        from recipe.engine.decoder import PromptChunk

        budget = (BATCH_PREFILL_TOKENS if self.whole else PREFILL_TOKENS)[self.decoder.device.type]
        chunks: list[tuple[Sequence, PromptChunk]] = []
        for sequence in self._prefilling:
            if budget:
                self.slots.store(sequence, sequence.prompt[: sequence.prefilled])
                ids = sequence.prompt[sequence.prefilled : sequence.prefilled + budget]
                if self.whole and chunks and sequence.prefilled + len(ids) < len(sequence.prompt):
                    break  # prompts in parts attend one after another; the next pass takes it whole
                chunks.append((sequence, PromptChunk(sequence.slot, ids, sequence.prefilled)))
                budget -= len(ids)
        logits = self.decoder.prefill([chunk for _, chunk in chunks])
        finished: list[tuple[Sequence, Any]] = []
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
        started = [(sequence.slot, sequence) for sequence, _ in finished]
        self._decoding.update(started)  # before what may fail: `fail` ends the sequences of the queues
        self._set_random_numbers(started)
        try:
            self._sample_first(finished)
        except Exception:  # one of them is to blame, by its settings: the others are sound
            for sequence, logits in finished:
                try:
                    self._sample_first([(sequence, logits)])
                except Exception as error:
                    self._finish(sequence, "error", error)

    def _sample_first(self, finished: SequenceOf[tuple[Sequence, Any]]) -> None:
        """Sample the first tokens of some sequences, and let them be decoded from there."""
        import torch

        decoder, sequences = self.decoder, [sequence for sequence, _ in finished]
        slots = decoder.on_device([sequence.slot for sequence in sequences])
        logits = torch.cat([row for _, row in finished])
        tokens = self.sampler.choose(logits, slots, plain=all(sequence.sampling.plain for sequence in sequences))
        if _want_logprobs(sequences):
            self.logprobs.compute(logits, tokens, slots)
        decoder.tokens[slots] = tokens
        decoder.positions[slots] = decoder.on_device([len(sequence.prompt) for sequence in sequences])
        decoder.active.index_fill_(0, slots, 1)
        self._copy_to_host(list(enumerate(sequences)), tokens, *self._logprobs_of(sequences, slots))

    def _decode_step(self) -> None:
        if self.whole and not (self._waiting or self._prefilling):
            self._narrow()
        sequences = list(self._decoding.items())
        batch, window = max(self._decoding) + 1, self._furthest()
        if self._gpu:  # few shapes, so that there are few graphs
            batch, least, window = self.slots.batch_size(batch - 1), window, MIN_WINDOW
            while window < least:
                window *= 2
        plain = all(sequence.sampling.plain for sequence in self._decoding.values())
        if not plain:
            self._set_random_numbers(sequences)
        wanted = _want_logprobs(self._decoding.values())
        shape = (batch, min(window, self.length), plain, wanted)
        if self.graphs:
            self.graphs.run(self._step_on_device, shape)
        else:
            self._step_on_device(*shape)
        logprobs = self._logprobs_of(self._decoding.values(), slice(0, batch))
        self._copy_to_host(sequences, self.decoder.tokens[:batch], *logprobs)

    def _furthest(self) -> int:
        """Positions that the next step attends to; tokens that were sampled on the GPU and not read yet count, too."""
        return max(len(sequence.prompt) + len(sequence.output_ids) for sequence in self._decoding.values()) + 2

    def _narrow(self) -> None:
        """Move the sequences of the highest slots into free lower ones, where the batch of a step halves by that."""
        count = len(self._decoding)
        if self.slots.batch_size(count - 1) == self.slots.batch_size(max(self._decoding)):
            return
        sources = [slot for slot in self._decoding if slot >= count]
        targets = [slot for slot in range(count) if slot not in self._decoding]
        self.decoder.move(sources, targets)
        self.sampler.move(sources, targets)
        for source, target in zip(sources, targets, strict=True):
            sequence = self._decoding.pop(source)
            sequence.slot = target
            self._decoding[target] = sequence

    def _step_on_device(self, batch: int, window: int, plain: bool, wanted: bool) -> None:
        """Decode one token of each slot by operations on tensors alone, which a CUDA graph can hold."""
        decoder = self.decoder
        logits = decoder.decode(batch, window)
        chosen = self.sampler.choose(logits, slice(0, batch), plain=plain)
        if wanted:
            self.logprobs.compute(logits, chosen, slice(0, batch))
        decoder.tokens[:batch] = chosen
        decoder.positions[:batch] += decoder.active[:batch]
        decoder.positions.clamp_(max=self.length)

    def _set_random_numbers(self, sequences: SequenceOf[tuple[int, Sequence]]) -> None:
        import torch

        draws = [0.0] * self.decoder.slots
        for slot, sequence in sequences:
            draws[slot] = sequence.draw()
        self.sampler.draw.copy_(torch.tensor(draws), non_blocking=True)

    def _logprobs_of(self, sequences: Iterable[Sequence], slots: slice | Tensor) -> list[Rows]:
        """The log probabilities that the latest step left for these slots; empty where no sequence wants them."""
        return [self.logprobs.rows(slots)] if _want_logprobs(sequences) else []

    def _copy_to_host(self, sequences: list[tuple[int, Sequence]], tokens: Any, logprobs: Rows | None = None) -> None:
        self._in_flight.append(in_flight(sequences, tokens, logprobs))

    def _process_step(self, step: InFlightStep) -> None:
        chosen = step.result()
        for index, sequence in step.sequences:
            if self._decoding.get(sequence.slot) is sequence:  # not finished since this step was launched
                token = chosen[index]
                self._accept_token(sequence, token, step.logprob(index, token, sequence.sampling))

    def _accept_token(self, sequence: Sequence, token: int, logprob: StepLogprob | None) -> None:
        if token in self.stops:
            self._finish(sequence, "stop", last=logprob)
            return
        sequence.output_ids.append(token)
        try:
            ended = sequence.listener.add(token, logprob)
        except Exception as error:  # the token became no text: the other sequences are sound
            self._finish(sequence, "error", error)
            return
        if ended:
            self._finish(sequence, "stop")
        elif len(sequence.output_ids) >= min(sequence.sampling.max_new_tokens, self.length - len(sequence.prompt)):
            self._finish(sequence, "length")

    def _finish(self, sequence: Sequence, how: str, error: Exception | None = None, last: Any = None) -> None:
        """End the reply and free its slot. The slot's cache stays, for a conversation that goes on."""
        # The keys and values of the last accepted token may not have been computed.
        cached = sequence.prompt[: sequence.prefilled] + sequence.output_ids[:-1]
        self.slots.store(sequence, [] if error else cached)
        self._decoding.pop(sequence.slot, None)
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        sequence.listener.end(how, error, last)  # before the device, which may fail
        self._ended.append(sequence.slot)


def _want_logprobs(sequences: Iterable[Sequence]) -> bool:
    return any(sequence.sampling.logprobs is not None for sequence in sequences)
