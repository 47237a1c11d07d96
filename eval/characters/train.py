"""Train the character network on freshly rendered images and write it as ONNX.

Every image is drawn once from an endless seeded series (`fgq.eval.characters.render.chunk`), so a run is
told apart by its seed and its length alone, and a run that was stopped goes on from its last checkpoint as
if it had not been. Stochastic gradient descent with Nesterov momentum, a cosine schedule with warm restarts
(Loshchilov and Hutter 2017, "SGDR", equation 5) after a linear warm-up, and smoothed labels (Szegedy et al.
2016, "Rethinking the Inception Architecture for Computer Vision", section 7). Each cycle of the schedule
ends at rate 0 with a usable network, and the next, twice as long, goes on from there.
"""

import argparse
import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional

from fgq.errors import ConfigError
from fgq.eval.characters import MODEL, load
from fgq.eval.characters.export import export
from fgq.eval.characters.network import CharacterNet
from fgq.eval.characters.render import CHUNK, SEEDS, GlyphAtlas, chunk
from fgq.support.schema import check, table, whole
from fgq.train.checkpoint import moments_of, tensors_like
from fgq.train.checkpoint import read as read_checkpoint

BATCH = 128
_FIRST_CYCLE = 1500  # steps; each further cycle is twice as long (SGDR: T_0, T_mult = 2)
_PEAK_RATE = 0.1
_WARM_UP = 150  # steps
_MOMENTUM = 0.9
_WEIGHT_DECAY = 5e-4
_LABEL_SMOOTHING = 0.05
_CHECKPOINT_EVERY = 200  # steps
_MOST = 2**63  # of a step or a seed in a checkpoint


def length(cycles: int) -> int:
    """Return the number of steps in the first `cycles` cycles of the schedule."""
    return _FIRST_CYCLE * ((1 << cycles) - 1)


def learning_rate(step: int) -> float:
    """Return the rate of one step: half a cosine down to 0 in every cycle, rising linearly at the start."""
    cycle = (step // _FIRST_CYCLE + 1).bit_length() - 1
    done = (step - length(cycle)) / (length(cycle + 1) - length(cycle))
    return _PEAK_RATE * 0.5 * (1 + math.cos(math.pi * done)) * min(1.0, (step + 1) / _WARM_UP)


def batches(atlas: GlyphAtlas, seed: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the endless series of training batches from number `first` on.

    Yields
    ------
    images : float32 [128, 1, 32, 32] in 0..1
    labels : int64 [128]
    """
    with ThreadPoolExecutor(1) as pool:
        number, start = divmod(first * BATCH, CHUNK)
        images, labels = chunk(atlas, seed, number)
        following = pool.submit(chunk, atlas, seed, number + 1)
        while True:
            for row in range(start, CHUNK, BATCH):
                grey = torch.from_numpy(images[row : row + BATCH, None]).float() / 255
                yield grey, torch.from_numpy(labels[row : row + BATCH])
            (images, labels), start, number = following.result(), 0, number + 1
            following = pool.submit(chunk, atlas, seed, number + 1)


def make_optimizer(network: nn.Module) -> torch.optim.SGD:
    """Set up SGD with Nesterov momentum; weights decay, biases and batch normalization do not."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=_PEAK_RATE, momentum=_MOMENTUM, nesterov=True)


@torch.inference_mode()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images, in 0..1, whose largest logit is their label's."""
    network.eval()
    logits = torch.cat([network(images[start : start + 1024]) for start in range(0, len(images), 1024)])
    network.train()
    return (logits.argmax(1) == labels).float().mean().item()


def train(cycles: int, seed: int, checkpoint: Path, resume: bool) -> CharacterNet:
    """Train a network, writing checkpoints on the way.

    Parameters
    ----------
    cycles
        Length of the whole run in cycles of the schedule.
    seed
        Seed of the first weights and of the images.
    checkpoint
        Where the state is written every 200 steps.
    resume
        Go on from `checkpoint`.

    Returns
    -------
    CharacterNet
        The trained network in evaluation mode.

    Raises
    ------
    ConfigError
        If the seed is that of the calibration images, or the checkpoint is missing or belongs to a run of
        another seed or of more cycles.
    DataError
        If a font is not installed.
    """
    if seed == SEEDS["calibration"]:
        raise ConfigError(
            f"seed {seed}: found the calibration images' own, wanted another for training images"
        )
    torch.manual_seed(seed)
    network: CharacterNet = CharacterNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(network)
    first, steps = 0, length(cycles)
    if resume:
        kind = table(
            {
                "network": tensors_like(network.state_dict()),
                "optimizer": moments_of(optimizer),
                "step": whole(0, _MOST),
                "seed": whole(0, _MOST),
            }
        )
        state = check(kind, read_checkpoint(checkpoint, [network]), str(checkpoint), ConfigError)
        if state["seed"] != seed or state["step"] > steps:
            raise ConfigError(
                f"{checkpoint}: found step {state['step']} of a run with seed {state['seed']}, wanted at "
                f"most step {steps} with seed {seed}; give its seed and its cycles, or omit --resume"
            )
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    calibration = load("calibration")
    images, labels = torch.from_numpy(calibration.images), torch.from_numpy(calibration.labels)
    series = batches(GlyphAtlas.draw("train", progress=True), seed, first)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=steps, completed=first)
        started, losses = time.monotonic(), list[float]()
        for step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step)
            batch, wanted = next(series)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(batch.to(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits.float(), wanted, label_smoothing=_LABEL_SMOOTHING)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            progress.advance(task)
            done = step + 1
            if done % _CHECKPOINT_EVERY == 0 or done == steps:
                rate = (done - first) * BATCH / (time.monotonic() - started)
                progress.console.print(
                    f"step {done}: loss {fmean(losses):.3f}, top-1 on the calibration images "
                    f"{accuracy(network, images, labels):.3f}, {rate:.0f} images/s"
                )
                losses.clear()
                _save(checkpoint, network, optimizer, step=done, seed=seed)
    return network.eval()


def _save(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, **numbers: int) -> None:
    beside = path.with_suffix(".tmp")
    torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict(), **numbers}, beside)
    os.replace(beside, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and export."""
    parser = argparse.ArgumentParser(
        prog="python -m fgq.eval.characters.train",
        description="Train the character network and write it as ONNX.",
        epilog="example: python -m fgq.eval.characters.train --cycles 3 --out other.onnx",
    )
    parser.add_argument("--cycles", type=int, default=2, help="of the schedule: 1500, 4500, 10500 steps (2)")
    parser.add_argument(
        "--seed", type=int, default=SEEDS["train"], help="of weights and images (%(default)s)"
    )
    parser.add_argument("--checkpoint", type=Path, default=Path("characters.pt"), help="state (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--out", type=Path, default=MODEL, help="the .onnx file to write (%(default)s)")
    options = parser.parse_args(arguments)
    if options.cycles < 1:
        parser.error(f"--cycles: found {options.cycles}, wanted at least 1")
    network = train(options.cycles, options.seed, options.checkpoint, options.resume)
    export(network, options.out)
    test = load("test")
    top1 = accuracy(network, torch.from_numpy(test.images), torch.from_numpy(test.labels))
    print(f"top-1 on the {len(test.labels)} test images: {top1:.4f}")


if __name__ == "__main__":
    main()
