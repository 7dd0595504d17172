"""One generation engine: many sequences of one model in one batch, for servers and for the pipeline.

See these files first: scheduler (continuous batching), decoder (the forward pass over the KV cache), sampling (tokens
out of logits). Above them are engine (a thread behind chat, page and API, whose replies grow) and batch (whole replies
to many prompts, for replay, checkpoint scores and evaluation). Below them are weights (what the decoder multiplies by,
also of a model in training), slots (a sequence's place in the KV cache), memory (how many there are), graphs (a decode
step replayed on a GPU), text (characters out of tokens) and reply (what a caller holds).
"""

from recipe.engine.engine import Engine
from recipe.engine.reply import Reply, Sampling

__all__ = ["Engine", "Reply", "Sampling"]
