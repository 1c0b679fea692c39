"""The card of a published bundle: what the hub shows of it, and finds it by."""

from __future__ import annotations

import re

from runtime.bundle import BundleBackend, Manifest
from runtime.hub.names import HubName, repository_of_checkpoint

CARD = "README.md"
MARK = "<!-- written by patchcaption push, which writes it again as long as this line is in it -->"

_LIBRARY = "patchcaption"
_TASK = "image-to-text"
_TAGS = ("region-captioning", "dense-captioning", "image-captioning", "onnx")
_NOT_IN_TAGS = re.compile("[^a-z0-9.-]+")
_RUNS_ON: dict[BundleBackend, str] = {
    "cpu": "CPUs, by ONNX Runtime or OpenVINO",
    "ort-cuda": "NVIDIA GPUs, by ONNX Runtime",
    "ort-tensorrt": "NVIDIA GPUs, by ONNX Runtime with TensorRT",
    "tensorrt": "NVIDIA GPUs, by TensorRT",
    "tensorrt-rtx": "GeForce and RTX GPUs, by TensorRT for RTX",
}


def model_card(manifest: Manifest, name: HubName, license: str) -> str:
    """Return the card of a bundle, in Markdown, with the metadata that the hub reads before it.

    Args:
        name: of the repository that it is for.
        license: its id on the hub, "apache-2.0" for example, or "other".
    """
    from huggingface_hub import ModelCardData

    base = repository_of_checkpoint(manifest.build.checkpoint)
    metadata = ModelCardData(
        library_name=_LIBRARY,
        pipeline_tag=_TASK,
        license=license,
        tags=[_LIBRARY, *_TAGS, *map(_tag, (manifest.backbone.family, manifest.decoder.kind))],
        base_model=base,
    )
    facts = "\n".join(f"| {what} | {value} |" for what, value in _facts(manifest).items())
    files = "\n".join(f"| `{file}` | {record.bytes / 2**20:,.2f} |" for file, record in manifest.files.items())
    return _TEXT.format(
        metadata=metadata.to_yaml().strip(),
        mark=MARK,
        title=name.repository.split("/")[1],
        name=name,
        facts=facts,
        files=files,
        plans=_PLANS.format(name=name) if manifest.plans else "",
        license="" if license != "other" else _LICENSE,
    )


def _facts(manifest: Manifest) -> dict[str, str]:
    backbone, decoder, memory, engines = manifest.backbone, manifest.decoder, manifest.memory, manifest.engines
    size = backbone.preprocessing.image_size
    bank = "none" if memory is None else f"{memory.num_rows:,} captions, {memory.precision}"
    return {
        "backbone": f"{backbone.name}, {size} x {size} pixels, patches of {backbone.patch_size}",
        "decoder": f"{manifest.decoder_name}, at most {decoder.max_new_tokens} tokens",
        "memory bank": bank,
        "text space": backbone.text_space,
        "precision": ", ".join(f"{engine} {record.precision}" for engine, record in engines.items()),
        "built for": _RUNS_ON[manifest.backend],
        "size": f"{sum(record.bytes for record in manifest.files.values()) / 2**20:,.1f} MiB",
        "bundle's schema": str(manifest.schema_version),
        "built by": ", ".join(f"{package} {version}" for package, version in manifest.build.versions.items()),
    }


def _tag(text: str) -> str:
    return _NOT_IN_TAGS.sub("-", text.lower()).strip("-")


_PLANS = """
The files `*.plan` are TensorRT plans, which are programs: they are loaded only after `patchcaption trust {name}`.
"""
_LICENSE = """
## License

That of the checkpoint that it was built of, and of the captions in its memory bank.
"""
_TEXT = """---
{metadata}
---
{mark}

# {title}

A bundle of patchcaption, which describes any region of an image in words.

```sh
pip install 'patchcaption[cpu,hub]'
patchcaption caption image.jpg --bundle {name} --box 40,40,300,260
```

```python
from patchcaption import Box, Captioner

captioner = Captioner.load("{name}")
for caption in captioner.caption("image.jpg", [Box(40, 40, 300, 260)]):
    print(caption.text)
```

| | |
|---|---|
{facts}
{plans}
## Files

| file | MiB |
|---|---|
{files}

`manifest.json` has the size and sha256 of each, which are compared before any is used.
{license}"""
