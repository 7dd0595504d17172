"""Names and sizes that stages put in their plans, here so that these need not import torch, which takes seconds."""

# The base's distributions beside the replay rows, and how many of the likeliest tokens they hold. docs/experiments.md
# compares 8, 32 and all.
TEACHER_FILE = "teacher.safetensors"
LIKELIEST = 32
# Rows whose logits exist at a time: 180 MiB in bfloat16 over 92,544 words, and enough to fill a GPU.
LOSS_ROWS = 1024
