"""The decoder that a configuration asks for: the files that it needs, and how they are read.

To add a kind: a class with `requests` and `read`, a line in `CONFIGURED_DECODERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from tokenizers import Tokenizer

from export.checkpoint import END_TOKEN, CheckpointError, MemorySource, PromptSource
from export.concepts.prompt_source import read_concepts
from export.concepts.similarity import load_name_encoder
from export.models import DecoderModel
from export.prompts import EntityPromptSource, make_pieces
from export.readers import clipcap, viecap
from export.readers.clip_bpe import MERGES_FILE, read_clip_bpe, read_tokenizer
from export.readers.decap import decoder_from_state
from export.readers.entity_vocabulary import configured_vocabulary
from export.readers.gpt2_bpe import gpt2_requests, read_gpt2_bpe
from export.readers.hub import FileRequest, find_local, resolve_files
from export.readers.inversion import fold_inversion
from export.readers.meacap_memory import memory_requests, read_meacap_memory
from export.readers.prompted import prompted_from_state
from export.readers.talk2dino import read_talk2dino
from export.readers.weight_files import read_pickle
from export.text_spaces import TextSpace


@dataclass(frozen=True)
class Configuration:
    """A configuration, and where its files are looked for.

    Attributes:
        file: the configuration's own, for messages.
        folders: folders to look for files in.
        repository: the hub's repository for what no folder has.
    """

    settings: Mapping[str, Any]
    file: Path
    folders: tuple[Path, ...]
    source: str
    repository: str | None

    def request(self, what: str, name: str, repository: str | None = None) -> FileRequest:
        """Return the request for a file, which is in the repository by its base name."""
        hub = repository or self.repository
        return FileRequest(what, (name,), ((hub, Path(name).name),) if hub else ())


@dataclass(frozen=True)
class DecodedVectors:
    """The vectors that a decoder gets.

    Attributes:
        width: D.
        text_space: the name of their space.
        rules: how embeddings of the space are used.
    """

    width: int
    text_space: str
    rules: TextSpace


@dataclass(frozen=True, eq=False)
class DecoderParts:
    """A decoder, and what belongs to it.

    Attributes:
        memory: a bank of its own; None where it takes the configuration's, or none.
    """

    decoder: DecoderModel
    tokenizer: Tokenizer
    end_tokens: tuple[str, ...] = (END_TOKEN,)
    prompts: PromptSource | None = None
    memory: MemorySource | None = None
    notes: tuple[str, ...] = ()


class ConfiguredDecoder(Protocol):
    """The decoder of a configuration.

    Attributes:
        keys: the settings that it reads.
        uses_bank: whether region vectors are projected onto the configuration's bank before it.
    """

    keys: frozenset[str]
    uses_bank: bool

    def requests(self) -> list[FileRequest]:
        """Return the requests for its files."""
        ...

    def read(self, files: Sequence[Path], vectors: DecodedVectors) -> DecoderParts:
        """Read its files, those of `requests`.

        Args:
            vectors: those that it decodes.

        Raises:
            CheckpointError: a file is of another layout, or does not fit the configuration.
        """
        ...


def configured_decoder(configuration: Configuration) -> ConfiguredDecoder:
    """Return the decoder of a configuration.

    Raises:
        CheckpointError: a setting has no such value.
    """
    settings = configuration.settings
    return next(make for is_asked_for, make in CONFIGURED_DECODERS if is_asked_for(settings))(configuration)


class _Decap:
    """DeCap, and CapDec, which is the same without a bank."""

    keys = frozenset({"decap_weights", "decoder_config"})
    uses_bank = True

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        name = configuration.settings.get("decap_weights")
        if name is None:
            raise CheckpointError(f"{configuration.file}: decap_weights is missing")
        self._name = str(name)

    def requests(self) -> list[FileRequest]:
        return [self._configuration.request("decap_weights, the decoder", self._name)]

    def read(self, files: Sequence[Path], vectors: DecodedVectors) -> DecoderParts:  # noqa: ARG002  # as all
        tokenizer = _clip_tokenizer(self._configuration)
        return DecoderParts(
            decoder_from_state(read_pickle(files[0]), tokenizer.get_vocab_size(), str(files[0])), tokenizer
        )


class _Inversion(_Decap):
    """DeCap for vectors of CLIP's width, which projected vectors are brought back to."""

    keys = frozenset({"decap_weights", "decoder_config", "talk2dino_weights", "talk2dino_config"})

    def requests(self) -> list[FileRequest]:
        projection = self._configuration.request(
            "talk2dino_weights", str(self._configuration.settings["talk2dino_weights"])
        )
        return [*super().requests(), projection]

    def read(self, files: Sequence[Path], vectors: DecodedVectors) -> DecoderParts:
        settings, file = self._configuration.settings, self._configuration.file
        if not settings.get("support_memory_size"):
            raise CheckpointError(
                f"{file}: support_memory_size: expected a memory bank: embedding inversion inverts projected vectors"
            )
        weights, projection = files
        talk2dino = read_talk2dino(projection)
        if talk2dino.first[0].shape[0] != vectors.width:
            raise CheckpointError(
                f"{projection}: linear_layer.weight: expected {vectors.width} rows, that of the vectors to invert, "
                f"got {talk2dino.first[0].shape[0]}"
            )
        tokenizer = _clip_tokenizer(self._configuration)
        state = fold_inversion(read_pickle(weights), talk2dino.first, str(weights))
        return DecoderParts(decoder_from_state(state, tokenizer.get_vocab_size(), str(weights)), tokenizer)


class _Prompted:
    """What ViECap, MeaCap and ClipCap share: the weights of one file, and GPT-2's tokenizer or a named one."""

    uses_bank = False

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        named = configuration.settings.get("tokenizer")
        self._has_own_tokenizer = named is not None
        self._tokenizer_requests = (
            gpt2_requests(configuration.folders) if named is None else [configuration.request("tokenizer", str(named))]
        )

    def _read_tokenizer(self, files: Sequence[Path]) -> Tokenizer:
        return read_tokenizer(files[0]) if self._has_own_tokenizer else read_gpt2_bpe(files)

    def _end_tokens(self, tokenizer: Tokenizer, tokens: Sequence[str]) -> tuple[str, ...]:
        known = tuple(token for token in tokens if tokenizer.token_to_id(token) is not None)
        if not known:
            raise CheckpointError(
                f"{self._configuration.file}: tokenizer: expected one of the tokens {', '.join(tokens)}, which end "
                "captions"
            )
        return known


class _Viecap(_Prompted):
    """ViECap, whose prompts name entities of a vocabulary."""

    keys = frozenset({"viecap"})

    def __init__(self, configuration: Configuration) -> None:
        super().__init__(configuration)
        self._settings = viecap.read_settings(configuration.settings["viecap"], str(configuration.file))
        clip_model = configuration.settings.get("clip_model_name")
        self._vocabulary = (
            None
            if self._settings.order == "soft_only"
            else configured_vocabulary(configuration.settings["viecap"], clip_model, str(configuration.file))
        )

    def requests(self) -> list[FileRequest]:
        return [
            _weights_request(self._configuration, self._settings),
            *self._tokenizer_requests,
            *([] if self._vocabulary is None else self._vocabulary.requests()),
        ]

    def read(self, files: Sequence[Path], vectors: DecodedVectors) -> DecoderParts:
        count = len(self._tokenizer_requests)
        weights, tokenizer = files[0], self._read_tokenizer(files[1 : 1 + count])
        prompts = self._read_prompts(files[1 + count :], tokenizer, vectors)
        rules = self._settings.rules(0 if prompts is None else prompts.max_tokens)
        source = str(weights)
        decoder = prompted_from_state(read_pickle(weights), "viecap", viecap.MAPPING_PREFIX, rules, source)
        _check_lengths(decoder.mapping.config, self._settings, source)
        return DecoderParts(decoder, tokenizer, self._end_tokens(tokenizer, viecap.END_TOKENS), prompts)

    def _read_prompts(
        self, files: Sequence[Path], tokenizer: Tokenizer, vectors: DecodedVectors
    ) -> EntityPromptSource | None:
        if self._vocabulary is None:
            return None
        found, settings = self._vocabulary.read(files, vectors.rules), self._settings
        if found.text_space not in (None, vectors.text_space):
            raise CheckpointError(
                f"{found.source}: expected entities in the text space {vectors.text_space!r}, got {found.text_space!r}"
            )
        pieces = make_pieces(tokenizer, found.names)
        return EntityPromptSource(found.embeddings, pieces, settings.temperature, settings.top_k, settings.threshold)


class _Meacap(_Prompted):
    """MeaCap: ViECap's network, whose prompts name what captions of a memory agree on."""

    keys = frozenset({"viecap"})

    def __init__(self, configuration: Configuration) -> None:
        super().__init__(configuration)
        self._settings = viecap.read_settings(configuration.settings["viecap"], str(configuration.file))
        assert self._settings.meacap is not None  # who has none is ViECap
        self._memory = self._settings.meacap

    def requests(self) -> list[FileRequest]:
        configuration, memory = self._configuration, self._memory
        repository = memory.hf_repo_id or configuration.repository
        return [
            _weights_request(configuration, self._settings),
            *memory_requests(memory.memory_id, repository),
            FileRequest(
                "the encoder of entities' names",
                (memory.wte_model_path, Path(memory.wte_model_path).name),
                ((memory.wte_model_path, "config.json"),),
            ),
            *self._tokenizer_requests,
        ]

    def read(self, files: Sequence[Path], vectors: DecodedVectors) -> DecoderParts:
        weights, captions, embeddings, graphs, encoder_path, *tokenizer_files = files
        tokenizer, source = self._read_tokenizer(tokenizer_files), str(weights)
        memory = read_meacap_memory(captions, embeddings, vectors.width, vectors.text_space)
        encoder = load_name_encoder(str(encoder_path if encoder_path.is_dir() else encoder_path.parent), "cpu")
        prompts = read_concepts(memory, graphs, encoder, tokenizer, self._memory.memory_caption_num)
        rules = self._settings.rules(prompts.max_tokens)
        decoder = prompted_from_state(read_pickle(weights), "meacap", viecap.MAPPING_PREFIX, rules, source)
        _check_lengths(decoder.mapping.config, self._settings, source)
        return DecoderParts(
            decoder, tokenizer, self._end_tokens(tokenizer, viecap.END_TOKENS), prompts, memory, prompts.notes
        )


class _Clipcap(_Prompted):
    """ClipCap, whose prompts are soft tokens alone."""

    keys = frozenset({"clipcap"})

    def __init__(self, configuration: Configuration) -> None:
        super().__init__(configuration)
        self._settings = clipcap.read_settings(configuration.settings["clipcap"], str(configuration.file))

    def requests(self) -> list[FileRequest]:
        return [_weights_request(self._configuration, self._settings), *self._tokenizer_requests]

    def read(self, files: Sequence[Path], vectors: DecodedVectors) -> DecoderParts:  # noqa: ARG002  # as all
        weights, tokenizer = files[0], self._read_tokenizer(files[1:])
        rules, source = self._settings.rules, str(weights)
        decoder = prompted_from_state(read_pickle(weights), "clipcap", clipcap.MAPPING_PREFIX, rules, source)
        return DecoderParts(decoder, tokenizer, self._end_tokens(tokenizer, clipcap.END_TOKENS))


_AsksFor: TypeAlias = Callable[[Mapping[str, Any]], bool]

CONFIGURED_DECODERS: Sequence[tuple[_AsksFor, Callable[[Configuration], ConfiguredDecoder]]] = (
    (lambda settings: isinstance(settings.get("viecap"), dict) and "meacap" in settings["viecap"], _Meacap),
    (lambda settings: bool(settings.get("viecap")), _Viecap),
    (lambda settings: bool(settings.get("clipcap")), _Clipcap),
    (lambda settings: bool(settings.get("talk2dino_config")) and bool(settings.get("talk2dino_weights")), _Inversion),
    (lambda _: True, _Decap),
)
"""Which settings ask for a kind, in the order in which the published system looks; the first that holds."""


def _weights_request(
    configuration: Configuration, settings: viecap.ViecapSettings | clipcap.ClipcapSettings
) -> FileRequest:
    return configuration.request("the decoder", settings.weight_path, settings.hf_repo_id)


def _check_lengths(found: Any, settings: viecap.ViecapSettings, source: str) -> None:
    """Raise if the lengths of a mapping network are others than the configuration's."""
    for key, length in (
        ("continuous_prompt_length", found.soft_tokens),
        ("clip_project_length", found.carrier_tokens),
    ):
        if getattr(settings, key) != length:
            raise CheckpointError(f"{source}: viecap: {key}: expected {getattr(settings, key)} tokens, got {length}")


def _clip_tokenizer(configuration: Configuration) -> Tokenizer:
    settings, folders = configuration.settings, configuration.folders
    if "tokenizer" not in settings:
        return read_clip_bpe(find_local((MERGES_FILE,), folders))
    (path,) = resolve_files(
        [configuration.request("tokenizer", str(settings["tokenizer"]))], folders, configuration.source
    )
    return read_tokenizer(path)
