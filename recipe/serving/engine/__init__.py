"""One generation engine behind chat, page and API: many requests on one model, in one batch, in one thread.

See these files first: scheduler (continuous batching), decoder (the forward pass over the KV cache), sampling (tokens
out of logits). slots gives a sequence its place in the KV cache, graphs replays a decode step on a GPU, text makes
characters of tokens, reply is what a caller holds.
"""

from recipe.serving.engine.reply import Reply, Sampling
from recipe.serving.engine.scheduler import Engine

__all__ = ["Engine", "Reply", "Sampling"]
