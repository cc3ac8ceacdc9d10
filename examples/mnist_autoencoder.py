# SPDX-License-Identifier: BSD-3-Clause
"""Train an autoencoder of MNIST whose decoder enlarges by sub-pixel convolution, with three decoders.

    python examples/mnist_autoencoder.py                         all of it: 25 epochs
    python examples/mnist_autoencoder.py --limit 2048 --epochs 1 a short try

The decoders are one function of the same parameters, computed in three ways:

    fused       fused_subpixel.SubpixelConv2d
    pytorch     nn.Conv2d, ReLU, pixel shuffle
    transposed  nn.ConvTranspose2d with the equivalent kernel, and a crop

They start from the same numbers and see the same batches in the same order, in turns epoch by epoch, so that
both their losses and their times can be compared. docs/examples/autoencoder.md has the results.
"""

from __future__ import annotations

import argparse
import copy
import csv
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    import torch
    import torch.nn.functional as F
    from fetch_mnist import DEFAULT_FOLDER, DataError, fetch, load
    from torch import Tensor, nn
    from tqdm import tqdm

    import fused_subpixel as fs
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: install it with pip install --no-build-isolation '.[examples]'") from None

OUT = Path("build/mnist_autoencoder")
R = 2  # the upscale factor of both layers


# ---- the network -------------------------------------------------------------------------------------------


class Autoencoder(nn.Module):
    """28 x 28 pixels to a vector of ``code`` numbers and back; the two layers named ``up`` enlarge."""

    def __init__(self, code: int, channel_order: str, layout: torch.memory_format) -> None:
        super().__init__()
        self.layout = layout
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, code),
        )
        self.dense = nn.Sequential(nn.Linear(code, 32 * 7 * 7), nn.ReLU(), nn.Unflatten(1, (32, 7, 7)))
        options = {"upscale_factor": R, "padding": "same", "channel_order": channel_order}
        self.up1 = fs.SubpixelConv2d(32, 32, 2, activation="relu", **options)  # [N, 32, 14, 14]
        self.up2 = fs.SubpixelConv2d(32, 1, 2, **options)  # [N, 1, 28, 28]
        for up in (self.up1, self.up2):
            nn.init.zeros_(up.bias)  # as in TensorFlow; and a transposed convolution can start there too

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(self.encoder(x)).contiguous(memory_format=self.layout)
        return self.up2(self.up1(x))


class ConvAndShuffle(nn.Conv2d):
    """A ``SubpixelConv2d`` as PyTorch's own layers."""

    def __init__(self, twin: fs.SubpixelConv2d) -> None:
        super().__init__(twin.in_channels, twin.weight.shape[0], twin.kernel_size, padding="same")
        self.load_state_dict(twin.state_dict())
        self.activation = twin.activation
        self.channel_order = twin.channel_order

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.activation == "relu":
            x = F.relu(x)
        if self.channel_order == "dcr":  # PyTorch has the other order only
            x = x.unflatten(1, (R * R, -1)).transpose(1, 2).flatten(1, 2)
        return F.pixel_shuffle(x, R)


class TransposedConv(nn.ConvTranspose2d):
    """The same as a transposed convolution, 4 x 4 with stride 2, with one bias per output channel."""

    def __init__(self, twin: fs.SubpixelConv2d) -> None:
        size = tuple(R * taps for taps in twin.kernel_size)
        super().__init__(twin.in_channels, twin.out_channels, size, stride=R)
        order = {"channel_order": twin.channel_order}
        weight = fs.subpixel_weight_to_conv_transpose(twin.weight, R, **order)
        bias = fs.subpixel_bias_to_conv_transpose(twin.bias, R, **order)
        self.load_state_dict({"weight": weight, "bias": bias})
        self.activation = twin.activation

    def forward(self, x: Tensor) -> Tensor:
        # "same" pads a 2 x 2 kernel at the bottom and right only: the crop is at the top and left only, which
        # the argument `padding` cannot say
        x = super().forward(x)[..., R:, R:]
        return F.relu(x) if self.activation == "relu" else x


def with_layers(model: Autoencoder, layer: Callable[[fs.SubpixelConv2d], nn.Module]) -> Autoencoder:
    """A copy, the same numbers in it, whose enlarging layers are others."""
    model = copy.deepcopy(model)
    model.up1, model.up2 = layer(model.up1), layer(model.up2)
    return model


def build(
    code: int = 32,
    channel_order: str = "crd",
    layout: torch.memory_format = torch.contiguous_format,
    seed: int = 0,
) -> dict[str, Autoencoder]:
    torch.manual_seed(seed)
    fused = Autoencoder(code, channel_order, layout)
    models = {
        "fused": fused,
        "pytorch": with_layers(fused, ConvAndShuffle),
        "transposed": with_layers(fused, TransposedConv),
    }
    return {name: model.to(memory_format=layout) for name, model in models.items()}


# ---- training ----------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A line of results.csv."""

    epoch: int
    decoder: str
    train_loss: float  # mean of the epoch's batches, as they were trained on
    test_mse: float
    seconds: float  # of training


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Tensor],
    images: Tensor,
    amp: bool,
    bar: tqdm,
) -> float:
    total = torch.zeros((), dtype=torch.float64, device=images.device)
    for batch in batches:
        x = images[batch]
        with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
            output = model(x)
        loss = F.mse_loss(output.to(x.dtype), x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach()
        bar.update()
    return total.item() / len(batches)  # a GPU's time ends here: item() waits for it


@torch.no_grad()
def test_error(model: nn.Module, images: Tensor) -> float:
    errors = [F.mse_loss(model(x), x, reduction="sum") for x in images.split(1000)]
    return float(sum(errors)) / images.numel()


def train(
    models: dict[str, Autoencoder],
    images: Tensor,
    test: Tensor,
    epochs: int,
    batch: int,
    seed: int,
    amp: bool = False,
) -> list[Row]:
    optimizers = {name: torch.optim.Adam(model.parameters()) for name, model in models.items()}
    random = torch.Generator().manual_seed(seed)
    rows = []
    steps = -(-len(images) // batch) * epochs * len(models)
    with tqdm(total=steps, desc="training", unit="step", disable=None) as bar:
        for epoch in range(1, epochs + 1):
            batches = torch.randperm(len(images), generator=random).to(images.device).split(batch)
            for name, model in models.items():
                began = time.perf_counter()
                loss = train_epoch(model, optimizers[name], batches, images, amp, bar)
                seconds = time.perf_counter() - began
                rows.append(Row(epoch, name, loss, test_error(model, test), seconds))
                bar.set_postfix(epoch=epoch, loss=f"{loss:.5f}")
    return rows


# ---- results -----------------------------------------------------------------------------------------------


def column(rows: list[Row], decoder: str, field: str) -> np.ndarray:
    return np.array([getattr(row, field) for row in rows if row.decoder == decoder])


def write_csv(rows: list[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        for row in rows:
            loss, error = f"{row.train_loss:.17g}", f"{row.test_mse:.17g}"  # --dtype float64 wants them all
            writer.writerow((row.epoch, row.decoder, loss, error, f"{row.seconds:.3f}"))


def results_table(rows: list[Row], models: dict[str, Autoencoder]) -> str:
    """Markdown, a line per decoder: median seconds, the last epoch's errors, the largest distance of any."""
    heads = (
        "decoder",
        "parameters",
        "seconds per epoch",
        "train loss",
        "test MSE",
        "loss, apart from pytorch's",
    )
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|---|---|"]
    truth = column(rows, "pytorch", "train_loss")
    for name, model in models.items():
        loss = column(rows, name, "train_loss")
        apart = "" if name == "pytorch" else f"{np.max(np.abs(loss - truth) / truth):.1e}"
        count = sum(parameter.numel() for parameter in model.parameters())
        seconds, error = column(rows, name, "seconds"), column(rows, name, "test_mse")
        lines.append(
            f"| {name} | {count:,} | {median(seconds):.2f} | {loss[-1]:.6f} | {error[-1]:.6f} | {apart} |"
        )
    return "\n".join(lines) + "\n"


def draw_curves(rows: list[Row], path: Path) -> None:
    figure, (losses, differences) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    truth = column(rows, "pytorch", "train_loss")
    epochs = column(rows, "pytorch", "epoch")
    styles = {"pytorch": ("C7", "-", 5), "transposed": ("C1", "-", 2), "fused": ("C0", "--", 1.5)}
    for name, (colour, line, width) in styles.items():
        loss = column(rows, name, "train_loss")
        losses.plot(epochs, loss, line, color=colour, linewidth=width, marker=".", label=name)
        if name != "pytorch":
            apart = np.abs(loss - truth) / truth
            differences.plot(epochs, apart, line, color=colour, marker=".", label=name)
    losses.set(ylabel="training loss (MSE)", title="three decoders, one on top of the other")
    differences.set(ylabel="relative, absolute value", yscale="log", title="loss, apart from pytorch's")
    for axes in (losses, differences):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)
    plt.close(figure)


@torch.no_grad()
def draw_reconstructions(models: dict[str, Autoencoder], images: Tensor, path: Path) -> None:
    rows = {"original": images} | {name: model(images) for name, model in models.items()}
    figure, axes = plt.subplots(len(rows), 1, figsize=(8, 2.2), layout="constrained")
    for place, (name, digits) in zip(axes, rows.items(), strict=True):
        place.imshow(torch.cat(list(digits.cpu()[:, 0]), dim=1).numpy(), cmap="gray", vmin=0, vmax=1)
        place.set_ylabel(name, rotation=0, ha="right", va="center")
        place.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=90)
    plt.close(figure)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--data", type=Path, help="folder of MNIST's IDX files (default: they are fetched)")
    parser.add_argument("--any-data", action="store_true", help="take the files in --data, MNIST's or not")
    parser.add_argument("--limit", type=int, metavar="N", help="use N images only, for a short try")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--code", type=int, default=32, help="numbers that an image becomes (default: 32)")
    parser.add_argument(
        "--channel-order",
        choices=("crd", "dcr"),
        default="crd",
        help="of the shuffle: PyTorch's (crd, the default) or that of TensorFlow's depth_to_space (dcr)",
    )
    parser.add_argument("--channels-last", action="store_true", help="the memory format of the activations")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--amp", action="store_true", help="train with bfloat16 autocast")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="processor threads (default: as many as PyTorch chooses)")
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    options = parser.parse_args(arguments)
    for name in ("limit", "epochs", "batch", "code", "threads"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} should be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with ``arguments``, by default those of the process; return the exit status."""
    options = parse(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        if options.data is None:
            fetch(DEFAULT_FOLDER)
        data = load(options.data or DEFAULT_FOLDER, any_data=options.any_data)
        options.out.mkdir(parents=True, exist_ok=True)
    except (DataError, OSError) as error:
        print(f"mnist_autoencoder: {error}", file=sys.stderr)
        return 2
    dtype = getattr(torch, options.dtype)
    images, test = (
        torch.tensor(part[: options.limit, None], dtype=dtype, device=options.device).div_(255)
        for part in data
    )  # [N, 1, 28, 28], 0 to 1

    # PyTorch pads a 2 x 2 kernel's input in a copy, and says so: that is part of what is compared
    warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    models = build(options.code, options.channel_order, layout, options.seed)
    for model in models.values():
        model.to(options.device, dtype)
    rows = train(models, images, test, options.epochs, options.batch, options.seed, options.amp)

    write_csv(rows, options.out / "results.csv")
    table = results_table(rows, models)
    (options.out / "table.md").write_text(table)
    draw_curves(rows, options.out / "autoencoder_loss.png")
    draw_reconstructions(models, test[:16], options.out / "autoencoder_digits.png")
    print(f"\n{table}\nin {options.out}: results.csv, table.md, autoencoder_loss.png, autoencoder_digits.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
