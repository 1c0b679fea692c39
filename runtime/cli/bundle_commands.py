"""`patchcaption info|verify|trust`: what a bundle is, whether it is whole, and whether its plans may be loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from runtime.backends import BACKEND_NAMES, select_backend
from runtime.bundle import Bundle, EntitiesConfig, MemoryConfig, PromptConfig
from runtime.bundle.trust import trust
from runtime.captioner import Captioner
from runtime.cli import exits
from runtime.cli.bundle_arguments import add_bundle_argument
from runtime.doctor.advice import faster_here, in_use
from runtime.hub import open_bundle
from runtime.system.standard_streams import show


def add_info(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `info`."""
    parser.set_defaults(run=run_info)
    add_bundle_argument(parser)
    parser.add_argument("--json", action="store_true", help="the manifest as it is")
    parser.add_argument("--backend", choices=BACKEND_NAMES, help="also open the engines, and say what executes them")


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `verify`."""
    parser.set_defaults(run=run_verify)
    add_bundle_argument(parser)
    parser.add_argument("--backend", choices=BACKEND_NAMES, default="auto")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `trust`."""
    parser.set_defaults(run=run_trust)
    add_bundle_argument(parser)


def run_info(options: argparse.Namespace) -> int:
    """Print what the bundle's manifest says, and what executes its engines if a backend is given."""
    bundle = open_bundle(options.bundle, verify=False)
    if options.json:
        show(bundle.manifest.model_dump_json(indent=2))
        return exits.DONE
    for name, value in (_summary(bundle) | in_use(bundle)).items():
        _print_line(name, value)
    for advice in faster_here(bundle):
        _print_line("faster", advice)
    if options.backend:
        _print_execution(bundle.folder, options.backend)
    return exits.DONE


def run_verify(options: argparse.Namespace) -> int:
    """Compare the bundle's files with its manifest and open its engines."""
    with Captioner.load(options.bundle, options.backend, verify=True) as captioner:
        count = len(captioner.manifest.files)
        show(f"{options.bundle}: {count} files are as built; the engines open on {captioner.backend.name}")
    return exits.DONE


def run_trust(options: argparse.Namespace) -> int:
    """Let the bundle's TensorRT plans be loaded from now on."""
    bundle = open_bundle(options.bundle)
    manifest = bundle.manifest
    if not manifest.plans:
        show(f"{options.bundle}: it has no TensorRT plans, and nothing else in a bundle is a program")
    for plan in manifest.plans:
        trust(manifest.files[plan.file].sha256)
        show(f"{bundle.path(plan.file)}: trusted from now on")
    return exits.DONE


def _summary(bundle: Bundle) -> dict[str, object]:
    manifest, selection = bundle.manifest, select_backend(bundle)
    backbone, decoder, memory, engines = manifest.backbone, manifest.decoder, manifest.memory, manifest.engines
    size, grid = backbone.preprocessing.image_size, backbone.tokens.grid
    reencoder = f", re-encoder {engines['reencoder'].precision}" if "reencoder" in engines else ""
    return {
        "bundle": bundle.folder,
        "checkpoint": f"{manifest.build.checkpoint}, built {manifest.build.built_at} on {manifest.build.machine}",
        "backbone": f"{backbone.name}, width {backbone.embed_dim}, depth {backbone.depth}, "
        f"{engines['backbone'].precision}{reencoder}",
        "image": f"{size} x {size} pixels, {grid} x {grid} patches of {backbone.patch_size}, "
        f"{len(backbone.tokens.register_indices)} registers",
        "text space": backbone.text_space,
        "memory": _memory_text(memory),
        "decoder": f"{manifest.decoder_name}, {decoder.num_layers} layers of width {decoder.embed_dim}, at most "
        f"{decoder.max_new_tokens} tokens, {engines['decoder'].precision}{_prompt_text(decoder.prompt)}",
        "backend": f"auto is {selection.backend} ({selection.reason})",
        "size": f"{sum(record.bytes for record in manifest.files.values()) / 2**20:.1f} MiB",
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.build.versions.items()),
    }


def _memory_text(memory: MemoryConfig | None) -> str:
    if memory is None:
        return "none (vectors go to the decoder as they are)"
    return f"{memory.num_rows} captions{'' if memory.projects else ', looked up only'}"


def _prompt_text(prompt: PromptConfig | None) -> str:
    if prompt is None:
        return ""
    soft = f"; prompts of {prompt.soft_tokens} soft tokens" if prompt.order != "hard_only" else "; prompts"
    words = {
        "entities": f"{prompt.hard.num_entities} entities" if isinstance(prompt.hard, EntitiesConfig) else "",
        "concepts": "concepts of the memory's captions",
    }
    return soft if prompt.hard is None else f"{soft}, and words of {words[prompt.hard.source]}"


def _print_execution(bundle: Path, backend: str) -> None:
    """Print what executes the engines, as their runtimes report it."""
    with Captioner.load(bundle, backend, verify=False) as captioner:
        captured = captioner.captured()
        for name, runs_on in captioner.runs_on().items():
            replayed = [f"not captured ({reason})" if reason else "one CUDA graph" for reason in captured[name][:1]]
            _print_line("runs", ", ".join([f"{name} on {runs_on}", *replayed]))


def _print_line(name: str, value: object) -> None:
    show(f"{name:<11} {value}")
