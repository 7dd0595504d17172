"""A faster forward and backward pass of LoRA training on Llama- and Qwen2-layout models, for XTuner's trainer.

model      `finetune`, the `model` of a config: XTuner's class with this package's loss
layer      a decoder layer and its backward
linear     frozen projections fused with their LoRA: bfloat16, nf4, float8
merged     the same in float32 on a CPU: LoRA added to the weight
attention  causal attention inside each conversation of a pack
loss       cross-entropy without logits
rowwise    norms, rotary embedding, gating, softmax, conversions; kernels has them for the GPU
"""
