"""Every form that the exporter gives graphs: small models in all precisions, for CPUs and GPUs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from export.bundle_builder import BuildOptions
from export.graphs.exporter import export_graph
from export.graphs.specs import backbone_spec, decoder_specs, reencoder_spec
from export.graphs.tracing import OPSET
from export.models.base import BackboneModel, BundleNumbers, DecoderModel
from export.models.clip import ClipBackbone, ClipConfig
from export.models.decap_decoder import DecapConfig, DecapStep
from export.models.dinotxt import DinotxtBackbone, VisionHead, VisionHeadConfig
from export.models.dinov2 import Dinov2Backbone, Dinov2Config
from export.models.dinov3 import Dinov3Backbone, Dinov3Config
from export.models.gpt2 import Conv1D, Gpt2
from export.models.mapping import MappingConfig, MappingNetwork, MlpMapping, TransformerMapping
from export.models.prompted_decoder import CaptionRules, Gpt2Config, PromptedModel
from export.models.proxyclip import ProxyclipBackbone, ProxyclipConfig
from export.models.regionclip import RegionClipBackbone, RegionClipConfig
from export.models.siglip2 import Siglip2Backbone, Siglip2Config
from export.prompts import EntityPromptSource
from runtime.backends.base import Device
from runtime.bundle import (
    MANIFEST,
    Bundle,
    EngineName,
    EnginePrecision,
    EngineRecord,
    GraphPrecision,
    Manifest,
    PromptOrder,
    record_files,
    write_manifest,
)
from runtime.bundle.prompt_pieces import PromptPieces

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_REGISTERS = Dinov2Config(64, 2, num_heads=2, num_registers=4, image_size=56, attention_heads=2)
_SWIGLU = replace(_REGISTERS, num_registers=0, attention_heads=1, swiglu_width=176)
_CLIP = ClipConfig(width=96, depth=2, num_heads=2, output_dim=64, patch_size=14, image_size=56)

_DINOV3 = Dinov3Config(128, 1, num_heads=2, num_registers=4, image_size=64)
_SIGLIP2 = Siglip2Config(64, 1, num_heads=2, hidden_width=96, patch_size=14, image_size=56)
_REGIONCLIP = RegionClipConfig(16, (1, 1, 1, 1), output_dim=64, num_heads=4, image_size=64, trained_grid=2)

BACKBONES: Mapping[str, Callable[[], BackboneModel]] = {
    "registers": lambda: Dinov2Backbone(_REGISTERS),
    "swiglu": lambda: Dinov2Backbone(_SWIGLU),
    "clip": lambda: ClipBackbone(_CLIP),
    "alphaclip": lambda: ClipBackbone(replace(_CLIP, has_alpha=True)),
    "invite": lambda: ClipBackbone(replace(_CLIP, self_attending=1)),
    "open_clip": lambda: ClipBackbone(replace(_CLIP, activation="gelu", norms_output=False)),
    "dinov3": lambda: Dinov3Backbone(_DINOV3),
    "dinov3_gated": lambda: Dinov3Backbone(replace(_DINOV3, gated_width=96)),
    "dinotxt": lambda: DinotxtBackbone(Dinov2Backbone(_REGISTERS), VisionHead(VisionHeadConfig(64, 1, 2, 96))),
    "siglip2": lambda: Siglip2Backbone(_SIGLIP2),
    "siglip2_mlp": lambda: Siglip2Backbone(replace(_SIGLIP2, patches="mlp")),
    "proxyclip": lambda: ProxyclipBackbone(ClipBackbone(_CLIP), Dinov2Backbone(_REGISTERS), ProxyclipConfig()),
    "regionclip": lambda: RegionClipBackbone(_REGIONCLIP),
}
"""A small backbone of every kind."""
DECODER = DecapConfig(64, embed_dim=64, num_layers=2, vocab_size=101, text_vocab_size=90, max_new_tokens=40)
DEMO_WIDTH = 192
SMALL_MAPPING = MappingConfig(DEMO_WIDTH, 64, soft_tokens=8, carrier_tokens=3, num_layers=2, num_heads=2)
ENTITIES = EntityPromptSource(
    F.normalize(torch.randn(6, DEMO_WIDTH, generator=torch.Generator().manual_seed(0)), dim=-1),
    PromptPieces((5,), (6,), (7, 8), tuple(((index,), (index, 9)) for index in range(10, 16))),
    temperature=0.1,
    top_k=3,
    threshold=0.2,
)
"""Entities for the prompts of a small decoder; a prompt names up to three of them."""
FORMS: tuple[tuple[EnginePrecision, Device], ...] = (
    *(("fp32", "cpu"), ("fp16", "cpu"), ("bf16", "cpu"), ("int8", "cpu")),
    *(("fp32", "cuda"), ("fp16", "cuda"), ("bf16", "cuda"), ("int8", "cuda"), ("fp8", "cuda")),
)


FORMS_OF_OTHERS: tuple[tuple[EnginePrecision, Device], ...] = (("fp32", "cpu"), ("int8", "cpu"), ("fp16", "cuda"))
"""Of families whose blocks are those of the others."""


@dataclass(frozen=True)
class ExportedGraph:
    """A graph, what it is for, and the manifest of a bundle with it, as far as admission reads one."""

    path: Path
    engine: EngineName
    manifest: Manifest


def export_all_forms(folder: Path) -> Iterator[ExportedGraph]:
    """Export the graphs of small models in every form, each form into a folder of its own."""
    for name in BACKBONES:
        for precision, device in FORMS if name in ("registers", "swiglu") else FORMS_OF_OTHERS:
            form = folder / f"{name}-{precision}-{device}"
            form.mkdir()
            # there is one decoder for both backbones
            decoder = DECODER if name == "registers" else None
            yield from _export_form(form, BACKBONES[name](), decoder, precision, device)


def export_small_bundle(demo: Path, folder: Path, precision: EnginePrecision = "fp32") -> Path:
    """Return a bundle of a model of one layer, with the demo's other files, which do not fit it."""
    shutil.copytree(demo, folder)
    one_layer = Dinov2Backbone(replace(_REGISTERS, depth=1)), replace(DECODER, num_layers=1)
    graphs = list(_export_models(folder, *one_layer, precision, "cpu"))
    small, manifest = graphs[0].manifest, Bundle(demo).manifest
    space = {"text_space": manifest.backbone.text_space}
    (folder / MANIFEST).unlink()
    changed = manifest.model_copy(
        update={
            "backbone": small.backbone.model_copy(update=space),
            "decoder": small.decoder.model_copy(update=space),
            "files": record_files(folder),
        }
    )
    write_manifest(folder, changed)
    return folder


def _export_form(
    folder: Path,
    backbone: BackboneModel,
    decoder_config: DecapConfig | None,
    precision: EnginePrecision,
    device: Device,
) -> Iterator[ExportedGraph]:
    """Export a backbone and, with its decoder if one is given, decoders with prompts."""
    yield from _export_models(folder, backbone, decoder_config, precision, device)
    if decoder_config is not None:
        yield from _export_decoders_with_prompts(folder, _other_precision(precision, device), device)


def _other_precision(precision: EnginePrecision, device: Device) -> GraphPrecision:
    """Return the precision of a bundle's graphs beside its backbone."""
    return BuildOptions(backend="cpu" if device == "cpu" else "ort-cuda", precision=precision).other_precision


def _export_models(
    folder: Path,
    backbone: BackboneModel,
    decoder_config: DecapConfig | None,
    precision: EnginePrecision,
    device: Device,
) -> Iterator[ExportedGraph]:
    """Export a backbone and its re-encoder, if it has one, and a decoder if one is given."""
    backbone = randomized(backbone)
    decoder = randomized(DecapStep(decoder_config or DECODER))
    other = _other_precision(precision, device)
    numbers = BundleNumbers("test", (89,), max_images=8, batch_sizes=(1, 16), precision=other)
    manifest = Manifest.model_construct(
        backbone=backbone.manifest_entry("small", numbers), decoder=decoder.manifest_entry(numbers)
    )
    shape = (1, backbone.image_size, backbone.image_size, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    export_graph(backbone_spec(backbone, images), folder, precision, device)
    yield ExportedGraph(folder / "backbone.onnx", "backbone", manifest)
    if backbone.last_block is not None:
        export_graph(reencoder_spec(backbone), folder, other, device)
        yield ExportedGraph(folder / "reencoder.onnx", "reencoder", manifest)
    if decoder_config is not None:
        yield from _export_decoder(folder, decoder, manifest, other, device)


def _export_decoders_with_prompts(folder: Path, precision: GraphPrecision, device: Device) -> Iterator[ExportedGraph]:
    """Export a decoder with prompts and, for a CPU, another mapping, each into a folder beside another."""
    of_prompted = folder.with_name(f"{folder.name}-prompted")
    of_prompted.mkdir()
    with_prompts = export_prompted(of_prompted, prompted_model(), precision, device)
    yield from with_prompts
    if device == "cpu":
        perceptron = prompted_model(MlpMapping(SMALL_MAPPING))
        spec, of_perceptron = decoder_specs(perceptron)["mapping"], folder.with_name(f"{folder.name}-perceptron")
        of_perceptron.mkdir()
        export_graph(spec, of_perceptron, precision, device)
        yield ExportedGraph(of_perceptron / spec.io.file, "mapping", with_prompts[0].manifest)


def export_prompted(
    folder: Path,
    decoder: PromptedModel,
    precision: GraphPrecision,
    device: Device,
    batch_sizes: tuple[int, ...] = (1, 16),
) -> list[ExportedGraph]:
    """Export a decoder with prompts, for a backbone whose other numbers do not matter."""
    hard = None if decoder.rules.order == "soft_only" else ENTITIES.write(folder)
    numbers = BundleNumbers("test", (89, 23), 8, batch_sizes, precision, hard_prompt=hard)
    of_backbone = BACKBONES["registers"]().manifest_entry("small", numbers)
    manifest = Manifest.model_construct(
        backbone=of_backbone.model_copy(update={"output_dim": decoder.prefix_width}),
        decoder=decoder.manifest_entry(numbers),
    )
    return [*_export_decoder(folder, decoder, manifest, precision, device)]


def export_prompted_bundle(demo: Path, folder: Path, device: Device = "cpu") -> Path:
    """Return a bundle in float32 of the demo's backbone and a small decoder whose prompts name entities."""
    shutil.copytree(demo, folder)
    for name in (MANIFEST, "decoder.onnx", "decoder.onnx.data", "beam_decoder.onnx"):
        (folder / name).unlink()
    graphs = {one.engine: one for one in export_prompted(folder, prompted_model(), "fp32", device, (1, 4, 16))}
    manifest = Bundle(demo).manifest
    decoder = graphs["decoder"].manifest.decoder.model_copy(update={"text_space": manifest.backbone.text_space})
    engines: dict[EngineName, EngineRecord] = {
        name: one for name, one in manifest.engines.items() if name in ("backbone", "reencoder")
    }
    engines |= {
        name: EngineRecord(file=one.path.name, precision="fp32", opset=OPSET, max_error=0)
        for name, one in graphs.items()
    }
    changed = {"decoder": decoder, "engines": engines, "memory": None, "files": record_files(folder)}
    write_manifest(folder, manifest.model_copy(update=changed))
    return folder


def _export_decoder(
    folder: Path, decoder: DecoderModel, manifest: Manifest, precision: GraphPrecision, device: Device
) -> Iterator[ExportedGraph]:
    decoder.prepare_for(device, rounds_weights=precision == "int8_weights")
    vectors = F.normalize(torch.randn(2, manifest.backbone.output_dim, generator=torch.Generator().manual_seed(0)))
    for name, spec in decoder_specs(decoder, vectors if precision == "int8_weights" else None).items():
        export_graph(spec, folder, precision, device)
        yield ExportedGraph(folder / spec.io.file, name, manifest)


def prompted_model(mapping: MappingNetwork | None = None, order: PromptOrder = "soft_first") -> PromptedModel:
    """Return a small decoder with prompts, its weights random."""
    rules = CaptionRules(order, max_hard_tokens=ENTITIES.max_tokens, max_new_tokens=20, unit_vectors=True)
    mapping = mapping or TransformerMapping(SMALL_MAPPING)
    positions = rules.max_prompt_tokens(mapping.config.soft_tokens) + rules.max_new_tokens - 1
    gpt = Gpt2(64, num_layers=2, num_heads=2, vocab_size=101, positions=positions)
    model = randomized(PromptedModel("viecap", mapping, gpt, Gpt2Config(64, 2, 2, 101, positions), rules))
    with torch.no_grad():  # so that captions depend on their prompts
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.add_(1)
            elif isinstance(module, (Conv1D, nn.Linear, nn.Embedding)):
                module.weight.mul_(4)
    return model


def randomized(module: ModuleT) -> ModuleT:
    """Give a model random weights, the same each time."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module.eval()
