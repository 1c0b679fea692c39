"""What a model repository for Triton Inference Server is made of."""
