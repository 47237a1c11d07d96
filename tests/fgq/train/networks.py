"""Small networks and data of the tests of `fgq.train`, importable by name for the command."""

import torch
from torch import nn

from fgq.train.trainer import Data


class Residual(nn.Module):
    """Every kind of site: a sum, a concatenation, poolings, bounds, a depthwise convolution, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.pool = nn.MaxPool2d(2)
        self.left = nn.Conv2d(16, 16, 3, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.right = nn.Conv2d(16, 16, 1)
        self.mix = nn.Conv2d(32, 24, 3, stride=2)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(24, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = self.pool(torch.relu(self.norm(self.stem(x))))
        y = torch.relu(self.left(x)) + self.right(torch.relu(self.deep(x)))
        x = self.average(torch.relu(self.mix(torch.cat([x, y], 1)))).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


def network():
    torch.manual_seed(0)
    module = Residual()
    with torch.no_grad():
        module.norm.weight.uniform_(-1.0, 1.0)  # negative gains too
        module.norm.running_var.uniform_(0.5, 2.0)
    return module.eval()


class Blobs(torch.utils.data.Dataset):
    """Noise around one pattern for each class."""

    def __init__(self, count=96, classes=5, seed=0):
        generator = torch.Generator().manual_seed(seed)
        patterns = torch.randn(classes, 3, 12, 12, generator=torch.Generator().manual_seed(9))
        self.labels = torch.arange(count) % classes
        self.images = patterns[self.labels] + 0.5 * torch.randn(count, 3, 12, 12, generator=generator)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return self.images[row], int(self.labels[row])


def data():
    return Data(Blobs(), Blobs(40, seed=1))
