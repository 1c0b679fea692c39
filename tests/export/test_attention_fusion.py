"""Attention as one operator: the same results, in float16 where queries, keys and values fit."""

from __future__ import annotations

from pathlib import Path

import onnx_ir
import pytest
import torch

from export.graphs.attention_fusion import fuse_attention
from export.graphs.exporter import export_graph
from export.graphs.specs import backbone_spec, reencoder_spec
from export.graphs.verification import compare
from export.models.dinov2 import Dinov2Backbone, Dinov2Config


@pytest.mark.slow
def test_attention_without_a_mask_becomes_one_node_of_the_same_results(tmp_path: Path) -> None:
    config = Dinov2Config(128, 2, num_heads=2, num_registers=4, image_size=56, attention_heads=2)
    backbone = Dinov2Backbone(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    export_graph(backbone_spec(backbone), tmp_path)
    model = onnx_ir.load(tmp_path / "backbone.onnx")
    names = [str(value.name) for node in model.graph for value in node.outputs]
    assert fuse_attention(model, dict.fromkeys(names, 1e5)) == 0, "float16 could not hold it"
    assert fuse_attention(model, dict.fromkeys(names, 10.0)) == 2
    assert [node.op_type for node in model.graph].count("Cast") == 5, "of the pixels, and around each attention"
    assert not [node for node in model.graph if node.op_type == "Softmax"]
    onnx_ir.save(model, tmp_path / "fused.onnx")
    pixels = torch.randint(0, 256, (3, 56, 56, 3), dtype=torch.uint8, generator=generator)
    assert compare(tmp_path / "fused.onnx", backbone, (pixels,), precision="fp16") < 2e-3
    export_graph(reencoder_spec(backbone), tmp_path)
    assert fuse_attention(onnx_ir.load(tmp_path / "reencoder.onnx"), {}) == 0, "its attention has a mask"
