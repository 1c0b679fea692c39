"""ViECap's settings: how its decoder is prompted (published-system.md, section 18)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from export.concepts.similarity import PUBLISHED_ENCODER
from export.models.prompted_decoder import CaptionRules
from export.readers.settings import check_settings
from runtime.bundle import PromptOrder

MAX_NEW_TOKENS = 64
END_TOKENS = (".", "Ġ.")
"""The full stop, by itself and after a space."""
MAPPING_PREFIX = "mapping_network."


class MeacapSettings(BaseModel):
    """The mapping ``meacap`` of a configuration's ``viecap``, which makes the prompts those of MeaCap."""

    model_config = ConfigDict(extra="allow")

    memory_id: str = "coco"
    memory_caption_num: Annotated[int, Field(gt=0, le=32)] = 5
    wte_model_path: str = PUBLISHED_ENCODER
    hf_repo_id: str | None = None


class ViecapSettings(BaseModel):
    """The mapping ``viecap`` of a configuration, with the published defaults."""

    model_config = ConfigDict(extra="allow")

    weight_path: str = "coco_prefix-0014.pt"
    hf_repo_id: str | None = None
    continuous_prompt_length: Annotated[int, Field(gt=0)] = 10
    clip_project_length: Annotated[int, Field(gt=0)] = 10
    clip_hidden_size: Annotated[int, Field(gt=0)] | None = None
    language_model: Literal["gpt2"] = "gpt2"
    temperature: Annotated[float, Field(gt=0)] = 0.01
    top_k: Annotated[int, Field(gt=0)] = 3
    threshold: float = 0.2
    name_of_entities_text: str = "vinvl_vgoi_entities"
    disable_all_entities: bool = False
    prompt_ensemble: bool = False
    suffix: str | None = None
    files_path: str | None = None
    using_hard_prompt: bool = False
    soft_prompt_first: bool = False
    only_hard_prompt: bool = False
    meacap: MeacapSettings | None = None

    @property
    def order(self) -> PromptOrder:
        """The order of the parts of a prompt."""
        if not self.using_hard_prompt:
            return "soft_only"
        if self.only_hard_prompt:
            return "hard_only"
        return "soft_first" if self.soft_prompt_first else "hard_first"

    def rules(self, max_hard_tokens: int) -> CaptionRules:
        """Return how captions begin and end, with prompts of at most so many tokens in words."""
        return CaptionRules(self.order, max_hard_tokens, MAX_NEW_TOKENS, unit_vectors=True)


def read_settings(settings: Mapping[str, Any], source: str) -> ViecapSettings:
    """Check the mapping ``viecap`` of a configuration.

    Raises:
        CheckpointError: a value is not of its kind.
    """
    return check_settings(ViecapSettings, settings, f"{source}: viecap")
