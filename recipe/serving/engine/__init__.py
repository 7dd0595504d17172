"""One generation engine behind chat, page and API: many visitors on one model, in one batch, in one thread.

decoder.py computes, sampling.py chooses, graphs.py replays a step on a GPU, text.py makes characters of tokens, and
scheduler.py decides whose turn it is. What others use is imported from here.
"""

from recipe.serving.engine.reply import Reply, Sampling
from recipe.serving.engine.scheduler import Engine

__all__ = ["Engine", "Reply", "Sampling"]
