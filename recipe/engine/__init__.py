"""One generation engine behind chat, page and API: many requests on one model, in one batch, in one thread.

See these files first: scheduler (continuous batching), decoder (the forward pass over the KV cache), sampling (tokens
out of logits). Then slots (a sequence's place in the KV cache), graphs (a decode step replayed on a GPU), text
(characters out of tokens) and reply (what a caller holds).
"""

from recipe.engine.reply import Reply, Sampling
from recipe.engine.scheduler import Engine

__all__ = ["Engine", "Reply", "Sampling"]
