"""TensorRT plans: how they are built from ONNX graphs."""
