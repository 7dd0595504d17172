"""A quicker forward and backward pass of LoRA training on Llama-layout models, for XTuner's trainer: `finetune` builds it.

model      the `model` of a config: XTuner's class, this package's loss
layer      a decoder layer and its backward
linear     frozen projections with LoRA in the same product: bfloat16, nf4, float8
attention  conversations of a pack that do not see each other
loss       cross-entropy without logits
rowwise    norms, rotary embedding, gating, softmax, conversions; kernels has them for the GPU
"""
