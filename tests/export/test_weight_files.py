"""Files of weights: TorchScript archives, and pickles of training programs, neither of which is run."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from export.checkpoint import CheckpointError
from export.readers import clip
from export.readers.backbone_family import BackboneRequest
from export.readers.clip import ClipOptions
from export.readers.weight_files import read_weights
from tests.children import run_child

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Attention(nn.Module):
    """With the names of torch's own, as OpenAI's archives have them."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = nn.Parameter(torch.randn(192, 64)), nn.Parameter(torch.randn(192))
        self.out_proj = nn.Linear(64, 64)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.ln_1, self.ln_2 = Attention(), nn.LayerNorm(64), nn.LayerNorm(64)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(64, 256), "c_proj": nn.Linear(256, 64)})


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([Block(), Block()])


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(64))
        self.positional_embedding = nn.Parameter(torch.randn(5, 64))
        self.proj = nn.Parameter(torch.randn(32, 64).T)  # not contiguous
        self.conv1 = nn.Conv2d(3, 64, 16, stride=16, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(64), nn.LayerNorm(64)
        self.transformer = Transformer()


class Clip(nn.Module):
    """The names of OpenAI's archives, the numbers of their configuration among them, and settings of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = Tower()
        self.register_buffer("input_resolution", torch.tensor(32))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        self.names, self.sizes = ["a", "b"], [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        return self.visual.conv1(x) * len(self.names) * self.sizes[0]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A TorchScript archive in float16, as ViT-B-16.pt is."""
    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(Clip().half()), tmp_path / "ViT-B-16.pt")
    return tmp_path / "ViT-B-16.pt"


def rewrite(path: Path, **parts: bytes) -> Path:
    """Write an archive again with other bytes in some of its files."""
    with zipfile.ZipFile(path) as source:
        files = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in files.items():
            target.writestr(name, parts.get(name.rpartition("/")[2].removesuffix(".pkl"), data))
    return path


def test_a_torchscript_archive_has_the_state_dict_of_its_module(archive: Path) -> None:
    expected = torch.jit.load(archive).state_dict()
    state = read_weights(archive)
    assert set(state) == set(expected)
    for name, value in expected.items():
        assert (state[name].dtype, state[name].shape) == (value.dtype, value.shape)
        assert state[name].equal(value)
    assert state["visual.proj"].dtype == torch.float16


def test_openais_archive_becomes_a_tower(archive: Path) -> None:
    state = read_weights(archive)
    tower = clip.from_state(state, BackboneRequest(32, str(archive), None, ClipOptions()))
    assert (tower.config.width, tower.config.depth, tower.output_dim) == (64, 2, 32)
    assert tower.head.weight.dtype == torch.float32
    assert tower.head.weight.equal(state["visual.proj"].T.float())


class Runs:
    """Pickled as a call of a function."""

    def __init__(self, function: Callable[[Path], object], path: Path) -> None:
        self.call = (function, (path,))

    def __reduce__(self) -> tuple[Callable[[Path], object], tuple[Path]]:
        return self.call


def test_no_code_in_an_archive_is_run(archive: Path) -> None:
    mark = archive.parent / "it-ran"
    rewrite(archive, data=pickle.dumps(Runs(Path.touch, mark), protocol=2))
    with pytest.raises(CheckpointError, match=r"ViT-B-16.pt: not a TorchScript archive .*: it names \w+.getattr"):
        read_weights(archive)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps([1, 2]), "expected a module, got list"),
        (b"\x80\x02c__torch__\nM\n)\x81}(X\x01\x00\x00\x00aX\x01\x00\x00\x00bub", "Ran out of input"),
        (b"", "Ran out of input"),
    ],
)
def test_an_archive_of_something_else_is_refused(data: bytes, message: str, archive: Path) -> None:
    with pytest.raises(CheckpointError, match=f"not a TorchScript archive of a module: .*({message})"):
        read_weights(rewrite(archive, data=data))


def test_a_damaged_archive_is_refused(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    stored = torch.jit.load(archive).visual.class_embedding.detach().numpy().tobytes()
    data[data.index(stored) + 1] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(CheckpointError, match="not a TorchScript archive of a module: Bad CRC"):
        read_weights(archive)


def test_a_tensor_beyond_its_storage_is_refused(archive: Path) -> None:
    with pytest.raises(CheckpointError, match="not a TorchScript archive of a module: .*out of bounds"):
        read_weights(rewrite(archive, **{str(number): bytes(8) for number in range(40)}))


@pytest.mark.parametrize("leaf", ["empty", "with a tensor"])
def test_an_archive_of_shared_modules_without_end_is_refused_or_read_at_once(leaf: str, archive: Path) -> None:
    """Fifty modules, each of which holds the one before twice: more names than there is time for."""
    text = {one: b"X" + len(one).to_bytes(4, "little") + one for one in (b"storage", b"0", b"cpu")}
    storage = b"(" + text[b"storage"] + b"ctorch\nHalfStorage\n" + text[b"0"] + text[b"cpu"] + b"K\x40tQ"
    rest = b"K\x00(K\x40t(K\x01t\x89ccollections\nOrderedDict\n)R"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"
    part = b"X\x01\x00\x00\x00t" + tensor if leaf != "empty" else b""
    data = b"\x80\x02c__torch__\nM\n)\x81}(" + part + b"ubq\x00"
    for number in range(50):
        held = b"h" + bytes([number])
        data += b"0c__torch__\nM\n)\x81}(X\x01\x00\x00\x00a" + held + b"X\x01\x00\x00\x00b" + held
        data += b"ubq" + bytes([number + 1])
    rewrite(archive, data=data + b".")
    code = """
        import sys, pathlib
        from export.checkpoint import CheckpointError
        from export.readers.weight_files import read_weights
        try:
            print(read_weights(pathlib.Path(sys.argv[1])))
        except CheckpointError as error:
            print(error)
    """
    child = run_child(code, archive, timeout_s=30)
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == "{}" if leaf == "empty" else "more than 100000 weights" in child.stdout


def test_a_module_that_holds_itself_is_refused(archive: Path) -> None:
    data = b"\x80\x02c__torch__\nM\n)\x81q\x00}(X\x01\x00\x00\x00ah\x00ub."
    with pytest.raises(CheckpointError, match="not a TorchScript archive of a module: a module holds itself"):
        read_weights(rewrite(archive, data=data))


def test_a_compressed_archive_is_refused(archive: Path) -> None:
    """It could be of any size."""
    with zipfile.ZipFile(archive) as source:
        files = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in files.items():
            target.writestr(name, data)
    with pytest.raises(CheckpointError, match="not a TorchScript archive of a module: .*/data.pkl is compressed"):
        read_weights(archive)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_state_dict_is_found_among_what_training_keeps(key: str, tmp_path: Path) -> None:
    torch.save({"meta": {"epoch": 3}, "iteration": 7, key: {"a": torch.ones(2)}}, tmp_path / "x.pth")
    assert list(read_weights(tmp_path / "x.pth")) == ["a"]


def test_a_weight_may_be_called_model(tmp_path: Path) -> None:
    torch.save({"model": torch.ones(2), "b": torch.ones(1)}, tmp_path / "x.pth")
    assert set(read_weights(tmp_path / "x.pth")) == {"model", "b"}


def test_training_files_without_a_state_dict_are_refused(tmp_path: Path) -> None:
    torch.save({"optimizer": {"a": torch.ones(2)}, "model": {"a": 3}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"expected a state dict .* or under 'state_dict' or 'model'"):
        read_weights(tmp_path / "x.pth")


def test_a_folder_of_transformers_may_hold_a_pickle(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert list(read_weights(tmp_path)) == ["a"]
    save_file({"b": torch.ones(2)}, tmp_path / "model.safetensors")
    assert list(read_weights(tmp_path)) == ["b"]
