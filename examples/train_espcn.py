# SPDX-License-Identifier: BSD-3-Clause
"""Train ESPCN, the network that introduced sub-pixel convolution, on photographs that scikit-image ships.

    python examples/train_espcn.py                                           one process, 40,000 steps
    python examples/train_espcn.py --minutes 5                               as far as it gets
    python examples/train_espcn.py --resume --steps 80000                    goes on, exactly
    torchrun --nproc-per-node 2 examples/train_espcn.py                      data parallel: the same numbers

W. Shi et al., CVPR 2016: three convolutions on the luminance at low resolution, then the pixel shuffle; the
last convolution and the shuffle are one SubpixelConv2d. docs/examples/espcn.md has the results, and how they
are measured.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    import skimage
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from PIL import Image
    from torch import Tensor, nn
    from tqdm import tqdm

    import fused_subpixel as fs
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: install it with pip install --no-build-isolation '.[examples]'") from None

# Photographs inside the scikit-image package. None of those held out shares a scene with the others.
TRAINING = (
    "astronaut.png", "brick.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png",
    "moon.png", "motorcycle_left.png", "motorcycle_right.png", "retina.jpg",
)  # fmt: skip
# And where to look closely: the middle of the crop, in fractions of width and height.
HELD_OUT = {
    "camera.png": (0.50, 0.26),
    "chelsea.png": (0.35, 0.38),
    "coffee.png": (0.38, 0.55),
    "rocket.jpg": (0.50, 0.40),
}
OUT = Path("build/espcn")
PATCH, STRIDE = 17, 14  # of the training patches, in pixels of the input; as in the paper
HALF_LIFE = 10000  # steps in which the learning rate halves
CROP = 96  # pixels of the output in the picture


class ESPCN(nn.Module):
    """[N, 1, H, W] to [N, 1, H*r, W*r]."""

    def __init__(self, upscale_factor: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 64, 5, padding=2), nn.Tanh(), nn.Conv2d(64, 32, 3, padding=1), nn.Tanh()
        )
        self.head = fs.SubpixelConv2d(32, 1, 3, upscale_factor, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


# ---- data --------------------------------------------------------------------------------------------------


def photograph(name: str, factor: int) -> Tensor:
    """[3, H, W], 0 to 1, cut to multiples of the factor."""
    image = np.array(Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB"))
    rgb = torch.from_numpy(image).permute(2, 0, 1).float().div(255)
    return rgb[:, : rgb.shape[1] // factor * factor, : rgb.shape[2] // factor * factor]


def luminance(rgb: Tensor) -> Tensor:
    """[3, H, W] to [1, 1, H, W]: Y of BT.601, 16/255 to 235/255, as super-resolution papers have it."""
    y = 65.481 * rgb[0] + 128.553 * rgb[1] + 24.966 * rgb[2] + 16
    return y.div(255)[None, None]


def reduce(image: Tensor, factor: int) -> Tensor:
    size = (image.shape[2] // factor, image.shape[3] // factor)
    return F.interpolate(image, size, mode="bicubic", antialias=True)


def bicubic(image: Tensor, factor: int, softer: bool = False) -> Tensor:
    """PyTorch's coefficient is -0.75, ``softer`` that of Pillow and MATLAB, -0.5: with antialias=True."""
    return F.interpolate(image, scale_factor=factor, mode="bicubic", antialias=softer)


def training_patches(factor: int) -> tuple[Tensor, Tensor]:
    """All patches of all photographs: [P, 1, 17, 17] to learn from, [P, 1, 17*r, 17*r] to learn."""
    low, high = [], []
    for name in TRAINING:
        y = luminance(photograph(name, factor))
        for patches, image, unit in ((low, reduce(y, factor), 1), (high, y, factor)):
            size, stride = PATCH * unit, STRIDE * unit
            cut = image[0, 0].unfold(0, size, stride).unfold(1, size, stride)
            patches.append(cut.reshape(-1, 1, size, size))
    return torch.cat(low), torch.cat(high)


def draw_batch(patches: tuple[Tensor, Tensor], seed: int, step: int, size: int) -> list[Tensor]:
    """The batch of one step, a function of seed and step alone: nothing else is needed to resume."""
    random = np.random.default_rng((seed, step))
    chosen = torch.from_numpy(random.integers(len(patches[0]), size=size))
    turns, mirrored = random.integers(4), random.integers(2)
    batch = [part[chosen].rot90(turns, (2, 3)) for part in patches]
    return [part.flip(3).contiguous() if mirrored else part.contiguous() for part in batch]


# ---- validation --------------------------------------------------------------------------------------------


def psnr(image: Tensor, truth: Tensor, border: int) -> float:
    """In dB, on values clamped to [0, 1], without ``border`` pixels on each side."""
    inside = (..., slice(border, -border), slice(border, -border))
    return -10 * torch.log10(F.mse_loss(image.clamp(0, 1)[inside], truth[inside])).item()


class Validation:
    """The held-out photographs, reduced, and what bicubic makes of them."""

    def __init__(self, factor: int, device: torch.device) -> None:
        self.factor = factor
        self.rgb = {name: photograph(name, factor) for name in HELD_OUT}
        self.truth = {name: luminance(rgb).to(device) for name, rgb in self.rgb.items()}
        self.low = {name: reduce(y, factor) for name, y in self.truth.items()}
        self.bicubic, self.softer = (
            self.scores({name: bicubic(y, factor, softer) for name, y in self.low.items()})
            for softer in (False, True)
        )

    def scores(self, images: dict[str, Tensor]) -> dict[str, float]:
        return {name: psnr(image, self.truth[name], self.factor) for name, image in images.items()}

    @torch.no_grad()
    def enlarge(self, model: ESPCN) -> dict[str, Tensor]:
        return {name: model(y) for name, y in self.low.items()}

    def draw(self, model: ESPCN, path: Path) -> None:
        """The colours come from bicubic, the luminance from the network."""
        enlarged = self.enlarge(model)
        scores = self.scores(enlarged)
        figure, axes = plt.subplots(len(HELD_OUT), 4, figsize=(8, 2.2 * len(HELD_OUT)), layout="constrained")
        for row, (name, centre) in zip(axes, HELD_OUT.items(), strict=True):
            truth = self.rgb[name][None]
            low = reduce(truth, self.factor)
            smooth = bicubic(low, self.factor)
            change = enlarged[name].cpu() - luminance(smooth[0])
            columns = {
                "input": F.interpolate(low, scale_factor=self.factor, mode="nearest"),
                f"bicubic, {self.bicubic[name]:.2f} dB": smooth,
                f"ESPCN, {scores[name]:.2f} dB": smooth + change * (255 / 219),  # Y spans 219 of 255 steps
                "original": truth,
            }
            x, y = (int(c * size - CROP / 2) for c, size in zip(centre, truth.shape[:1:-1], strict=True))
            for place, (title, image) in zip(row, columns.items(), strict=True):
                crop = image[0, :, y : y + CROP, x : x + CROP].clamp(0, 1).permute(1, 2, 0)
                place.imshow(crop.numpy(), interpolation="nearest")
                place.set_title(title, fontsize=9)
                place.axis("off")
        figure.savefig(path, dpi=90, pil_kwargs={"quality": 88})
        plt.close(figure)


def mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


# ---- training ----------------------------------------------------------------------------------------------


class Trainer:
    """Model, optimizer and log, and how they go to a file and back."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device = options, device
        torch.manual_seed(options.seed)
        self.model = ESPCN(options.upscale_factor).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=options.lr)
        self.step, self.seconds = 0, 0.0
        self.log: list[tuple[int, float, float, float]] = []  # step, loss, mean PSNR, seconds
        # What decides the numbers: a checkpoint made with other values is another experiment.
        self.settings = {name: getattr(options, name) for name in ("upscale_factor", "batch", "lr", "seed")}

    def load(self, path: Path) -> None:
        if not path.is_file():
            raise SystemExit(f"train_espcn: there is no checkpoint {path} to resume from")
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["settings"] != self.settings:
            raise SystemExit(f"train_espcn: {path} was made with {state['settings']}, not {self.settings}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.log = [tuple(row) for row in state["log"]]

    def save(self, path: Path) -> None:
        """All of a file or nothing: an interruption leaves the checkpoint before."""
        state = {name: getattr(self, name) for name in ("settings", "step", "seconds", "log")}
        state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        partial = path.with_suffix(".part")
        torch.save(state, partial)
        os.replace(partial, path)

    def run(self, validation: Validation | None, rank: int, processes: int) -> None:
        """Train up to the given number of steps or minutes; only rank 0 has a ``validation``."""
        options = self.options
        patches = training_patches(options.upscale_factor)
        model: nn.Module = self.model
        if processes > 1:
            model = nn.parallel.DistributedDataParallel(model)
        if options.compile:
            model = torch.compile(model)
        bar = tqdm(
            total=options.steps,
            initial=self.step,
            desc="training",
            unit="step",
            disable=None if rank == 0 else True,
        )
        stop = False
        while self.step < options.steps and not stop:
            began = time.perf_counter()
            losses = []
            until = min(options.steps, (self.step // options.check_every + 1) * options.check_every)
            while self.step < until:
                batch = draw_batch(patches, options.seed, self.step, options.batch)
                losses.append(self.train_step(model, [part[rank::processes] for part in batch]))
                bar.update()
            loss = torch.stack(losses).mean().item()
            self.seconds += time.perf_counter() - began
            if validation is not None:
                score = mean(validation.scores(validation.enlarge(self.model)))
                self.log.append((self.step, loss, score, self.seconds))
                bar.set_postfix(loss=f"{loss:.6f}", psnr=f"{score:.2f}")
                self.save(options.out / "checkpoint.pt")
            stop = agreed(options.minutes is not None and self.seconds >= 60 * options.minutes, processes)
        bar.close()

    def train_step(self, model: nn.Module, batch: list[Tensor]) -> Tensor:
        low, high = (part.to(self.device) for part in batch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr * 0.5 ** (self.step / HALF_LIFE)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.amp):
            output = model(low)
        loss = F.mse_loss(output.float(), high)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss.detach()


def agreed(stop: bool, processes: int) -> bool:
    """What rank 0 says: clocks differ, and one process must not wait for others that have stopped."""
    if processes == 1:
        return stop
    decision = [stop]
    dist.broadcast_object_list(decision, src=0)
    return decision[0]


def write_results(trainer: Trainer, validation: Validation, out: Path) -> str:
    """Files and a Markdown table."""
    with (out / "log.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("step", "loss", "val_psnr", "seconds"))
        for step, loss, score, seconds in trainer.log:
            writer.writerow((step, f"{loss:.8f}", f"{score:.4f}", f"{seconds:.1f}"))
    columns = {
        "bicubic": validation.bicubic,
        "bicubic_softer": validation.softer,
        "espcn": validation.scores(validation.enlarge(trainer.model)),
    }
    rows = [(Path(name).stem, *(scores[name] for scores in columns.values())) for name in HELD_OUT]
    rows.append(("mean", *map(mean, columns.values())))
    with (out / "psnr.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("photograph", *columns))
        writer.writerows((name, *(f"{score:.4f}" for score in scores)) for name, *scores in rows)
    lines = ["| photograph | bicubic, dB | ESPCN, dB | gain |", "|---|---|---|---|"]
    for name, before, _, after in rows:
        lines.append(f"| {name} | {before:.2f} | {after:.2f} | {after - before:+.2f} |")
    table = "\n".join(lines) + "\n"
    (out / "table.md").write_text(table)
    validation.draw(trainer.model, out / "espcn.jpg")
    return table


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--upscale-factor", type=int, default=3, metavar="R")
    parser.add_argument("--steps", type=int, default=40000, help="in all, with those before a --resume")
    parser.add_argument("--minutes", type=float, help="of training, in all; stops at the check after")
    parser.add_argument(
        "--check-every", type=int, default=500, metavar="STEPS", help="validate, log and save"
    )
    parser.add_argument("--batch", type=int, default=16, help="patches a step, over all processes")
    parser.add_argument("--lr", type=float, default=2e-3, help="of Adam, halved every 10,000 steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--threads", type=int, help="processor threads (default: as many as PyTorch chooses)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of checkpoint, log and pictures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with ``arguments``, by default those of the process; return the exit status."""
    options = parse(arguments)
    rank, local, processes = (
        int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
    )
    if options.batch % processes:
        raise SystemExit(f"train_espcn: --batch {options.batch} is not divisible by {processes} processes")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if processes > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    options.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(options, device)
    if options.resume:
        trainer.load(options.out / "checkpoint.pt")
    validation = Validation(options.upscale_factor, device) if rank == 0 else None
    trainer.run(validation, rank, processes)
    if validation is not None:
        table = write_results(trainer, validation, options.out)
        print(f"\n{table}\n{trainer.step} steps, {trainer.seconds:.0f} s of training")
        print(f"in {options.out}: checkpoint.pt, log.csv, psnr.csv, table.md, espcn.jpg")
    if processes > 1:
        # DistributedDataParallel keeps the group and is part of a reference cycle. Were it still there,
        # threads of gloo would outlive the interpreter, whose end they sometimes crash.
        gc.collect()
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
