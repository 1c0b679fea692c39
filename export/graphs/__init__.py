"""Torch modules -> ONNX graphs, each checked against its module."""
