"""What training takes of memory beside a model's shape. The plan counts with it, so no model library is imported."""

MARGIN = 1.15  # for temporary tensors of the backward pass, and for memory that the allocator cannot use
CHUNK = 512  # tokens whose logits exist at once, per model: 50 MB in bfloat16 at 49,152 words
