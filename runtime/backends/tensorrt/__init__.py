"""TensorRT: plans, and what runs them."""
