"""Import of checkpoints in the authors' layout; malformed ones are refused."""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from manas_jax.errors import UserError
from manas_jax.inference import import_torch
from manas_jax.models.network import Network
from manas_jax.space import CANDIDATES, Genotype, SearchSpace, derive
from manas_jax.workdir import weights

SPACE = SearchSpace(channels=(4, 8), branches=(2,), columns=(2,), stem_blocks=1)
GENOTYPE = Genotype(
    SPACE,
    (("parallel", "fusion"),),
    ((("sep_conv_3x3", "SE", "CBAM"), ("dil_conv_3x3_spatial", "skip_connect", "SE_A_M")),),
)
CHOSEN = [CANDIDATES.index(e) for cell in GENOTYPE.attention for module in cell for e in module]


def _torch_layout(flat, x):
    x = np.moveaxis(x, (-1, -2), (0, 1)) if x.ndim == 4 else x.T
    return import_torch.torch_name(flat.partition("/")[2]), np.ascontiguousarray(x)


def _supernet_state(space=SPACE, seed=0):
    draw = np.random.default_rng(seed)
    arrays = {
        flat: draw.normal(0, 1, leaf.shape).astype(np.float32)
        for flat, leaf in weights.network_shapes(space).items()
    }
    return dict(_torch_layout(flat, x) for flat, x in arrays.items()), arrays


def _derived_state(genotype=GENOTYPE, seed=0):
    """The state with all candidates, as released, and our arrays of the chosen ones."""
    full, arrays = _supernet_state(genotype.space, seed)
    drop = {"parallel": "fuse", "fusion": "horizontal"}
    state = {}
    for name, x in full.items():
        parts = name.split(".")
        if parts[0].startswith("stage") and parts[0] != "stage1":
            choice = genotype.columns[int(parts[0][5:]) - 2][int(parts[1])]
            if parts.pop(2) == drop[choice]:
                continue
        state[".".join(parts)] = x
    return state, {flat: arrays[flat] for flat in weights.network_shapes(genotype)}


def _save(path, content):
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file({k: np.asarray(v) for k, v in content.items()}, path)
    else:
        np.savez(path, **content)
    return path


def _run(capsys, *arguments):
    status = import_torch.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def _assert_refused(capsys, tmp_path, checkpoint, *words, arguments=()):
    """Checks for an error of one line with these words, and that nothing was written."""
    before = sorted(p.name for p in tmp_path.iterdir())
    status, _, err = _run(capsys, checkpoint, "--out", tmp_path / "out", *arguments)
    assert status == 1
    assert err.startswith("error: ") and err.count("\n") == 1
    for word in words:
        assert word in err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_command_imports_a_derived_network_without_torch(suffix, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    state, arrays = _derived_state()
    path = _save(tmp_path / f"net{suffix}", state | {"attention": np.array(CHOSEN)})
    status, out, err = _run(capsys, path, "--out", tmp_path / "a" / "out", "--verbose")
    assert (status, err) == (0, "")
    assert f"dropped {len(state) - len(arrays)} unused tensors" in out
    assert "dropped auto1.0.ops.0.ops.8.ChannelGate.mlp.1.weight\n" in out
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["out"]
    written = tmp_path / "a" / "out"
    assert {p.name for p in written.iterdir()} == {"weights.safetensors", "genotype.json"}
    assert Genotype.load(written / "genotype.json") == GENOTYPE
    variables, genotype, provenance = weights.load_weights(written / "weights.safetensors")
    assert genotype == GENOTYPE and provenance["checkpoint"] == path.name
    found = weights.flatten(variables)
    assert found.keys() == arrays.keys()
    for name, x in arrays.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)


def test_supernet_is_imported_with_its_logits(tmp_path, capsys):
    state, arrays = _supernet_state()
    draw = np.random.default_rng(1)
    columns = draw.normal(0, 1, (2, 2)).astype(np.float32)
    attention = draw.normal(0, 1, (6, 9)).astype(np.float32)
    content = {f"module.{k}": v for k, v in state.items()}
    path = _save(tmp_path / "s.npz", content | {"arch_param": columns, "auto_param": attention})
    status, out, _ = _run(capsys, path, "--out", tmp_path / "out")
    assert status == 0 and "supernet" in out
    variables, space, _ = weights.load_weights(tmp_path / "out" / "weights.safetensors")
    assert space == SPACE
    np.testing.assert_array_equal(variables["architecture"]["columns"], columns)
    logits = attention.reshape(2, 3, 9)  # modules in order, three rows each
    np.testing.assert_array_equal(variables["architecture"]["attention"], logits)
    assert Genotype.load(tmp_path / "out" / "genotype.json") == derive(SPACE, columns, logits)
    assert weights.flatten(variables).keys() - arrays.keys() == {
        "architecture/columns",
        "architecture/attention",
    }


def test_columns_that_never_run_are_dropped():
    space = SearchSpace(channels=(4, 4, 4), branches=(2, 3), columns=(1, 2), stem_blocks=1)
    state, arrays = _supernet_state(space)
    unused = {
        name.replace("stage3.0.", f"stage3.{i}."): x
        for name, x in state.items()
        for i in (2, 3)
        if name.startswith("stage3.0.")
    }
    checkpoint = import_torch.Checkpoint(state | unused, np.zeros((3, 2)))
    imported = import_torch.import_checkpoint(checkpoint)
    assert imported.space == space and set(imported.dropped) == set(unused)
    for name, x in weights.flatten(imported.variables).items():
        np.testing.assert_array_equal(x, arrays[name], err_msg=name)
    with pytest.raises(UserError, match="arch_param is needed"):
        import_torch.import_checkpoint(import_torch.Checkpoint(state | unused))
    with pytest.raises(UserError, match="9 rows for 5 columns"):
        import_torch.import_checkpoint(import_torch.Checkpoint(state | unused, np.zeros((9, 2))))


def test_released_derivation_shares_rows_and_can_derive_none():
    space = SearchSpace(channels=(4, 4, 4, 4), columns=(1, 0, 1))
    attention = np.zeros((27, 9))
    best = [1, 2, 3, 0, 5, 6, 7, 8, 4, *[2] * 18]  # only the first nine rows are read
    attention[np.arange(27), best] = 1.0
    genotype = import_torch.released_derivation(space, np.array([[0, 1], [1, 0]]), attention)
    assert genotype.columns == (("fusion",), (), ("parallel",))
    first, second, third = (
        tuple(CANDIDATES[i] for i in rows) for rows in ((1, 2, 3), (0, 5, 6), (7, 8, 4))
    )
    assert genotype.attention == ((first,) * 2, (second,) * 3, (third,) * 4)


def test_genotype_is_derived_from_the_search(tmp_path):
    shared = ("CBAM", "SE", "sep_conv_3x3_spatial")
    genotype = Genotype(SPACE, GENOTYPE.columns, ((shared, shared),))
    attention = np.zeros((6, 9))
    attention[range(6), [CANDIDATES.index(name) for name in shared] + [1, 1, 1]] = 2.0
    search = {"arch_param": np.array([[1.0, 0], [0, 1]]), "auto_param": attention}
    state, _ = _derived_state(genotype)
    bare = _save(tmp_path / "bare.npz", state)
    assert (
        import_torch.import_file(_save(tmp_path / "own.npz", state | search)).genotype == genotype
    )
    file = _save(tmp_path / "search.npz", _supernet_state()[0] | search)
    assert import_torch.import_file(bare, file).genotype == genotype
    genotype.save(tmp_path / "genotype.json")
    assert import_torch.import_file(bare, tmp_path / "genotype.json").genotype == genotype


def _without(name):
    return lambda state: {k: v for k, v in state.items() if k != name}


MALFORMED = {
    "missing": (_without("auto1.0.se.fc.0.weight"), "missing tensors: auto1.0.se.fc.0.weight"),
    "missing of a chosen candidate": (
        _without("auto1.0.ops.0.ops.2.op.4.weight"),
        "missing tensors: auto1.0.ops.0.ops.2.op.4.weight",
    ),
    "missing head": (_without("final_conv.0.weight"), "missing tensors: final_conv.0.weight"),
    "extra": (lambda s: s | {"stage9.x": np.zeros(3)}, "does not have: stage9.x"),
    "extra candidate": (
        lambda s: s | {"auto1.0.ops.0.ops.9.fc.0.weight": np.zeros((1, 2))},
        "does not have: auto1.0.ops.0.ops.9",
    ),
    "shape": (
        lambda s: s | {"stage1.0.conv2.weight": np.zeros((4, 4, 1, 1))},
        "stage1.0.conv2.weight has the shape (4, 4, 1, 1), expected (4, 4, 3, 3)",
    ),
    "shape of an unused candidate": (
        lambda s: s | {"auto1.0.ops.0.ops.6.fc.0.weight": np.zeros((7, 7))},
        "auto1.0.ops.0.ops.6.fc.0.weight has the shape (7, 7)",
    ),
    "not finite": (
        lambda s: s | {"final_conv.0.weight": np.full((3, 4, 1, 1), np.nan)},
        "final_conv.0.weight has values that are not finite",
    ),
    "no genotype": (_without("attention"), "give --genotype"),
    "bad indices": (lambda s: s | {"attention": np.arange(6) + 5}, "expected 6 integers"),
    "another network": (lambda s: {"conv1.weight": np.zeros((3, 3))}, "none of its tensors"),
    "words": (lambda s: s | {"name": np.array("net")}, "'name'"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_wrong_tensors_are_refused(case, tmp_path, capsys):
    change, words = MALFORMED[case]
    content = _derived_state()[0] | {"attention": np.array(CHOSEN)}
    path = _save(tmp_path / "net.npz", change(content))
    _assert_refused(capsys, tmp_path, path, "net.npz", words)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_damaged_files_are_refused(suffix, tmp_path, capsys):
    path = _save(tmp_path / f"net{suffix}", _derived_state()[0])
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:40], b"", b"no checkpoint\n" * 9):
        path.write_bytes(broken)
        _assert_refused(capsys, tmp_path, path, path.name, "truncated, damaged or no")
    _assert_refused(capsys, tmp_path, tmp_path / f"absent{suffix}", "no such file")


def test_claims_of_an_npz_are_bounded_by_its_content(tmp_path, capsys):
    path = tmp_path / "net.npz"
    np.savez_compressed(path, x=np.zeros(10**7, np.float32))
    _assert_refused(capsys, tmp_path, path, path.name, "it claims to hold")


def test_a_list_that_holds_itself_is_no_tensor():
    endless = []
    endless.append(endless)
    with pytest.raises(UserError, match="'x' is a list, not a tensor"):
        import_torch._array("x", endless)


@pytest.mark.parametrize("seed", range(20))
def test_npz_with_a_flipped_bit_is_read_or_refused(tmp_path, capsys, seed):
    path = _save(tmp_path / "net.npz", _derived_state()[0] | {"attention": np.array(CHOSEN)})
    content = bytearray(path.read_bytes())
    draw = np.random.default_rng(seed)
    content[draw.integers(len(content))] ^= 1 << int(draw.integers(8))
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        import_torch.import_file(path)


class _Code:
    """Creates a folder if it is unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def test_pickled_code_is_refused_and_not_run(tmp_path, capsys):
    trace = tmp_path / "trace"
    np.savez(tmp_path / "net.npz", x=np.array([_Code(trace)], dtype=object))
    _assert_refused(capsys, tmp_path, tmp_path / "net.npz", "net.npz", "pickle")
    assert not trace.exists()


def test_mismatched_genotype_is_refused(tmp_path, capsys):
    path = _save(tmp_path / "net.npz", _derived_state()[0])
    file = tmp_path / "genotype.json"
    arguments = ("--genotype", file)
    Genotype(SPACE, (("fusion", "fusion"),), GENOTYPE.attention).save(file)
    _assert_refused(capsys, tmp_path, path, "the columns of cell 0 are", arguments=arguments)
    other = SearchSpace(channels=(4, 6), branches=(2,), columns=(2,), stem_blocks=1)
    Genotype(other, GENOTYPE.columns, GENOTYPE.attention).save(file)
    _assert_refused(capsys, tmp_path, path, "its channels differ", arguments=arguments)
    file.write_text("{")
    _assert_refused(
        capsys, tmp_path, path, "genotype.json", "damaged or no genotype", arguments=arguments
    )
    supernet = _save(tmp_path / "supernet.npz", _supernet_state()[0])
    GENOTYPE.save(file)
    _assert_refused(capsys, tmp_path, supernet, "omit --genotype", arguments=arguments)
    arguments = ("--genotype", supernet)
    _assert_refused(capsys, tmp_path, path, "supernet.npz", "arch_param", arguments=arguments)


def test_existing_folder_is_refused(tmp_path, capsys):
    path = _save(tmp_path / "net.npz", _derived_state()[0] | {"attention": np.array(CHOSEN)})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    _assert_refused(capsys, tmp_path, path, "choose a new folder")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_missing_pytorch_is_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "net.pt").write_bytes(b"PK")
    _assert_refused(capsys, tmp_path, tmp_path / "net.pt", "net.pt", "pip install torch")


def test_weights_file_is_validated(tmp_path):
    _, arrays = _derived_state()
    path = tmp_path / "w.safetensors"
    weights.save_weights(path, weights.unflatten(arrays), GENOTYPE, {"by": "a test"})
    good = path.read_bytes()
    assert weights.load_weights(path)[1:] == (GENOTYPE, {"by": "a test"})
    fewer = {k: v for k, v in arrays.items() if k != "params/head_conv/kernel"}
    with pytest.raises(ValueError, match="params/head_conv/kernel"):
        weights.save_weights(path, weights.unflatten(fewer), GENOTYPE, {})
    assert path.read_bytes() == good and list(tmp_path.iterdir()) == [path]

    _, metadata = weights.read_safetensors(path)
    small = arrays | {"params/head_conv/kernel": np.zeros((1, 1, 4, 2), np.float32)}
    for tensors, changed, words in (
        (arrays, {"format": "another"}, "not a weights file"),
        (arrays, {"version": "2"}, "version 2"),
        (arrays, {"genotype": "{}"}, "not a genotype"),
        (arrays, {"provenance": "{"}, "damaged or no weights file"),
        (fewer, {}, "missing tensors: params/head_conv/kernel"),
        (arrays | {"params/x": np.zeros(1)}, {}, "does not have: params/x"),
        (small, {}, "params/head_conv/kernel: shape"),
    ):
        safetensors.numpy.save_file(tensors, path, metadata | changed)
        with pytest.raises(UserError, match=words):
            weights.load_weights(path)
    path.write_bytes(good[:-9])
    with pytest.raises(UserError, match="truncated"):
        weights.load_weights(path)
    with pytest.raises(UserError, match="absent"):
        weights.load_weights(tmp_path / "absent.safetensors")


# With PyTorch: a network of its layers, named as in the authors' checkpoints.


@pytest.fixture(scope="module")
def torch():
    reason = "PyTorch is not installed; it is only needed to read PyTorch files"
    return pytest.importorskip("torch", reason=reason)


def _torch_network(torch):
    """The derived network of GENOTYPE in PyTorch."""
    nn = torch.nn

    class Part(nn.Module):
        """A module of named children and a function that runs them."""

        def __init__(self, run, **children):
            super().__init__()
            self.run = run
            for name, child in children.items():
                setattr(self, name, child)

        def forward(self, x):
            return self.run(self, x)

    def conv(inputs, outputs, size, stride=1, **more):
        return nn.Conv2d(inputs, outputs, size, stride, more.pop("padding", size // 2), **more)

    def conv_norm(inputs, outputs, size, stride=1, relu=False):
        parts = [conv(inputs, outputs, size, stride, bias=False), nn.BatchNorm2d(outputs)]
        return nn.Sequential(*parts, *([nn.ReLU()] if relu else []))

    def gate(op, look=lambda x: x):
        return Part(lambda self, x: x * self.op(look(x)), op=nn.Sequential(*op))

    def pooled(x):
        return torch.cat([x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)], 1)

    def depthwise(c, dilation=1):
        return conv(c, c, 3, groups=c, padding=dilation, dilation=dilation, bias=False)

    def pointwise(inputs, outputs):
        return [conv(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, affine=False)]

    def separable(c, outputs):
        first = [depthwise(c), *pointwise(c, c), nn.ReLU()]
        return [*first, depthwise(c), *pointwise(c, outputs), nn.Sigmoid()]

    def mean(x):
        return x.mean((2, 3))

    def se(c, reduction, use_maximum=False):
        def run(self, x):
            logits = self.fc(mean(x)) + (self.fc(x.amax((2, 3))) if use_maximum else 0)
            return x * torch.sigmoid(logits)[..., None, None]

        hidden = max(1, c // reduction)
        layers = nn.Linear(c, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, c, bias=False)
        return Part(run, fc=nn.Sequential(*layers))

    def cbam(c):
        def channels(self, x):
            logits = self.mlp(mean(x)) + self.mlp(x.amax((2, 3)))
            return x * torch.sigmoid(logits)[..., None, None]

        hidden = max(1, c // 4)
        mlp = nn.Sequential(nn.Flatten(), nn.Linear(c, hidden), nn.ReLU(), nn.Linear(hidden, c))
        spatial = Part(
            lambda self, x: self.bn(self.conv(x)),
            conv=conv(2, 1, 7, bias=False),
            bn=nn.BatchNorm2d(1, momentum=0.01),
        )
        return Part(
            lambda self, x: self.SpatialGate(self.ChannelGate(x)),
            ChannelGate=Part(channels, mlp=mlp),
            SpatialGate=Part(
                lambda self, x: x * torch.sigmoid(self.spatial(pooled(x))), spatial=spatial
            ),
        )

    def edge(c, index):
        full = conv(2, 1, 3, padding=2, dilation=2, bias=False)
        ops = nn.ModuleList(
            [
                Part(lambda self, x: 0 * x),
                nn.Identity(),
                gate(separable(c, c)),
                gate([depthwise(c, 2), *pointwise(c, c), nn.Sigmoid()]),
                gate(separable(2, 1), pooled),
                gate([full, *pointwise(1, 1), nn.Sigmoid()], pooled),
                se(c, 4),
                se(c, 4, use_maximum=True),
                cbam(c),
            ]
        )
        return Part(lambda self, x: self.ops[index](x), ops=ops)

    def attention(c, indices):
        def run(self, x):
            f0, f1 = x.chunk(2, 1)
            u0 = self.ops[0](f0)
            u1 = self.ops[1](f1) + self.ops[2](u0)
            return self.se2(x + self.channel_back(torch.cat([u0, u1, self.se(f0 + f1)], 1)))

        half = c // 2
        back = [*conv_norm(3 * half, c, 1, relu=True), *conv_norm(c, c, 1)]
        ops = nn.ModuleList(edge(half, index) for index in indices)
        gates = {"se": se(half, 4), "se2": se(c, 16)}
        return Part(run, ops=ops, channel_back=nn.Sequential(*back), **gates)

    def residual_block(c):
        def run(self, x):
            y = torch.relu(self.bn1(self.conv1(x)))
            return torch.relu(x + self.bn2(self.conv2(y)))

        convs = {f"conv{i}": conv(c, c, 3, bias=False) for i in (1, 2)}
        return Part(run, **convs, **{f"bn{i}": nn.BatchNorm2d(c) for i in (1, 2)})

    def bottleneck(inputs, c):
        def run(self, x):
            y = torch.relu(self.bn1(self.conv1(x)))
            y = torch.relu(self.bn2(self.conv2(y)))
            return torch.relu(self.downsample(x) + self.bn3(self.conv3(y)))

        convs = conv(inputs, c, 1, bias=False), conv(c, c, 3, bias=False)
        children = {"conv1": convs[0], "conv2": convs[1], "conv3": conv(c, 4 * c, 1, bias=False)}
        norms = {f"bn{i}": nn.BatchNorm2d(n) for i, n in ((1, c), (2, c), (3, 4 * c))}
        return Part(run, **children, **norms, downsample=conv_norm(inputs, 4 * c, 1))

    def fusion(channels, outputs):
        c0, c1 = channels
        up = nn.Sequential(*conv_norm(c1, c0, 1), nn.Upsample(scale_factor=2, mode="nearest"))
        down = nn.Sequential(conv_norm(c0, c1, 3, 2))
        rows = [nn.ModuleList([None, up]), nn.ModuleList([down, None])][:outputs]

        def run(self, xs):
            fuse = self.fuse_layers
            made = [xs[0] + fuse[0][1](xs[1])]
            if outputs == 2:
                made.append(fuse[1][0](xs[0]) + xs[1])
            return [torch.relu(y) for y in made]

        return Part(run, fuse_layers=nn.ModuleList(rows))

    def parallel(channels):
        def run(self, xs):
            return [branch(x) for branch, x in zip(self.branches, xs, strict=True)]

        branches = nn.ModuleList(nn.Sequential(residual_block(c)) for c in channels)
        return Part(run, branches=branches)

    def run(self, x):
        x = self.stage1(x)
        xs = self.stage2([layer(x) for layer in self.transition1.transition_layers])
        xs = [module(y) for module, y in zip(self.auto1, xs, strict=True)]
        return self.final_conv(self.final_fuse(xs)[0])

    c0, c1 = SPACE.channels
    down = nn.Sequential(conv_norm(4 * c0, c1, 3, 2, relu=True))
    layers = nn.ModuleList([conv_norm(4 * c0, c0, 3, relu=True), down])
    network = Part(
        run,
        stage1=nn.Sequential(bottleneck(3, c0)),
        transition1=Part(lambda self, x: x, transition_layers=layers),
        stage2=nn.Sequential(parallel(SPACE.channels), fusion(SPACE.channels, 2)),
        auto1=nn.ModuleList([attention(c0, CHOSEN[:3]), attention(c1, CHOSEN[3:])]),
        final_fuse=fusion(SPACE.channels, 1),
        final_conv=nn.Sequential(conv(c0, 3, 1, bias=False)),
    )
    with torch.no_grad():  # statistics and scales other than 0 and 1
        for name, x in (*network.named_parameters(), *network.named_buffers()):
            if name.endswith("running_var") or (x.ndim == 1 and name.endswith("weight")):
                x.uniform_(0.5, 1.5)
            elif x.ndim == 1:
                x.normal_(0, 0.2)
    return network


def _import_in_a_process(path, out, *arguments):
    command = [sys.executable, "-m", "manas_jax.inference.import_torch", path, "--out", out]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing(tmp_path, monkeypatch, capsys, number, status):
    state, _ = _supernet_state()
    safetensors.numpy.save_file(state, tmp_path / "net.safetensors")
    monkeypatch.setattr(weights, "save_weights", lambda *_: signal.raise_signal(number))
    arguments = [str(tmp_path / "net.safetensors"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        sys.exit(import_torch.main(arguments))
    assert stopped.value.code == status and "Traceback" not in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_pytorch_network_has_the_same_outputs(torch, tmp_path):
    torch.manual_seed(0)
    network = _torch_network(torch).eval()
    auto = torch.zeros(6, 9).requires_grad_()  # alone it would derive `none`: all logits equal
    content = {"state_dict": network.state_dict(), "auto_param": [auto], "attention": CHOSEN}
    torch.save(content | {"epoch": 3}, tmp_path / "net.pt")
    done = _import_in_a_process(tmp_path / "net.pt", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    variables, genotype, _ = weights.load_weights(tmp_path / "out" / "weights.safetensors")
    assert genotype == GENOTYPE
    images = np.random.default_rng(0).uniform(0, 1, (2, 16, 20, 3)).astype(np.float32)
    for train in (False, True):
        network.train(train)
        with torch.no_grad():
            theirs = network(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
        theirs = theirs.transpose(0, 2, 3, 1)
        run = jax.jit(
            lambda v, x, train=train: Network(SPACE, GENOTYPE).apply(
                v, x, train=train, mutable=["batch_stats"]
            )[0]
        )
        error = np.abs(run(variables, images) - theirs).max() / theirs.std()
        assert error <= 1e-4


@pytest.mark.parametrize("form", ["bare", "legacy", "parallel", "listed"])
def test_layouts_of_pytorch_files(form, torch, tmp_path):
    state = {k: torch.from_numpy(v) for k, v in _derived_state()[0].items()}
    auto = torch.zeros(6, 9)
    auto[:, 1] = 1.0
    arch = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    path, genotype = tmp_path / "net.pt", tmp_path / "genotype.json"
    GENOTYPE.save(genotype)
    if form == "bare":
        torch.save(state, path)
        assert import_torch.import_file(path, genotype).genotype == GENOTYPE
    elif form == "legacy":
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
        assert import_torch.import_file(path, genotype).genotype == GENOTYPE
    elif form == "parallel":
        torch.save({f"module.{k}": v.half() for k, v in state.items()}, path)
        assert import_torch.import_file(path, genotype).genotype == GENOTYPE
    else:
        torch.save({"state_dict": state, "arch_param": [arch], "auto_param": (auto,)}, path)
        skips = Genotype(SPACE, GENOTYPE.columns, (((("skip_connect",) * 3),) * 2,))
        assert import_torch.import_file(path).genotype == skips


def test_pickled_module_is_refused_with_instructions(torch, tmp_path, capsys):
    path = tmp_path / "net.pt"
    for legacy in (False, True):
        torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=not legacy)
        _assert_refused(
            capsys,
            tmp_path,
            path,
            "torch.nn.modules.linear.Linear",
            "save its tensors",
            "state_dict",
        )
    done = _import_in_a_process(path, tmp_path / "out")
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_malicious_and_damaged_pytorch_files_are_refused(torch, tmp_path, capsys):
    path, trace = tmp_path / "net.pt", tmp_path / "trace"
    path.write_bytes(pickle.dumps(_Code(trace)))
    _assert_refused(capsys, tmp_path, path, "net.pt")
    torch.save({"state_dict": {"a": _Code(trace)}}, path)
    _assert_refused(capsys, tmp_path, path, "mkdir", "not only tensors")
    assert not trace.exists()
    torch.save({k: torch.from_numpy(v) for k, v in _derived_state()[0].items()}, path)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", json.dumps({"a": 1}).encode()):
        path.write_bytes(broken)
        _assert_refused(capsys, tmp_path, path, "truncated, damaged or not")
    for content in ([1, 2], torch.zeros(3), {1: torch.zeros(2)}):
        torch.save(content, path)
        _assert_refused(capsys, tmp_path, path, "not a state dictionary")
    torch.save({"model": {"a": torch.zeros(2)}}, path)
    _assert_refused(capsys, tmp_path, path, "'model' is a dict")
