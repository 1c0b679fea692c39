"""ClipCap's settings: a prefix of soft tokens alone (published-system.md, section 20)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from export.models.prompted_decoder import CaptionRules
from export.readers.settings import check_settings

END_TOKENS = (".",)
MAPPING_PREFIX = "clip_project."
_TEXT_END = "."


class ClipcapSettings(BaseModel):
    """The mapping ``clipcap`` of a configuration, with the published defaults."""

    model_config = ConfigDict(extra="allow")

    weight_path: str = "clipcap.pt"
    hf_repo_id: str | None = None
    prefix_length: Annotated[int, Field(gt=0)] = 10
    clip_length: Annotated[int, Field(gt=0)] = 10
    num_layers: Annotated[int, Field(gt=0)] = 8
    mapping_type: Literal["mlp", "transformer"] = "mlp"
    entry_length: Annotated[int, Field(gt=0)] = 67
    stop_token: Literal["."] = "."
    normalize_prefix: bool = False

    @property
    def rules(self) -> CaptionRules:
        """How captions begin and end."""
        return CaptionRules(
            "soft_only",
            max_hard_tokens=0,
            max_new_tokens=self.entry_length,
            unit_vectors=self.normalize_prefix,
            text_end=_TEXT_END,
            reference_score="inverse_perplexity",
        )


def read_settings(settings: Mapping[str, Any], source: str) -> ClipcapSettings:
    """Check the mapping ``clipcap`` of a configuration.

    Raises:
        CheckpointError: a value is not of its kind.
    """
    return check_settings(ClipcapSettings, settings, f"{source}: clipcap")
