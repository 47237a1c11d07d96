"""One process of two: trains on its share of each batch, and the first saves the weights."""

import sys
from pathlib import Path

import test_trainer
import torch

from fgq.train.finetune import processes
from fgq.train.trainer import train

with processes() as first:
    folder = Path(sys.argv[1])
    module = train(
        test_trainer.student(),
        test_trainer.networks.data(),
        test_trainer.SHORT,
        folder / "two",
        teacher=test_trainer.networks.network(),
    )
    if first:
        torch.save(module.state_dict(), folder / "together.pt")
