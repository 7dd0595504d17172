"""The linear layers of a Llama decoder layer, all of which LoRA adapts.

Nothing else stands here: presets read this file as a part of their config.
"""

LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
