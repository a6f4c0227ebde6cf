"""The dilated ResNet and its decoders as PyTorch modules, to compare with; needs PyTorch.

Written from the papers and torchvision's names, independent of the library.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    def __init__(self, before, planes, stride, dilation, expansion, first):
        super().__init__()
        out = planes * expansion
        self.conv1, self.bn1 = nn.Conv2d(before, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(
            planes, planes, 3, stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, out, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample = None
        if first:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Trunk(nn.Module):
    """Output stride 8: stages 3 and 4 give up their stride."""

    def __init__(self, blocks=(3, 4, 6, 3), planes=(64, 128, 256, 512), stem=64, expansion=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        before = stem
        # Of each stage: the stride of its first block, its dilation, that of the others.
        for stage, (stride, first, rest) in enumerate([(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]):
            width, layers = planes[stage], []
            for i in range(blocks[stage]):
                form = (stride, first) if i == 0 else (1, rest)
                layers.append(Bottleneck(before, width, *form, expansion, i == 0))
                before = width * expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def unit(before, width, size=1, dilation=1):
    padding = dilation if size == 3 else 0
    conv = nn.Conv2d(before, width, size, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())


class Pooling(nn.Sequential):
    def __init__(self, before, width):
        super().__init__(nn.AdaptiveAvgPool2d(1), *unit(before, width))

    def forward(self, x):
        y = super().forward(x)
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


class Pyramid(nn.Module):
    def __init__(self, before, width, rates):
        super().__init__()
        atrous = [unit(before, width, 3, rate) for rate in rates]
        self.convs = nn.ModuleList([unit(before, width), *atrous, Pooling(before, width)])
        self.project = nn.Sequential(*unit((len(rates) + 2) * width, width), nn.Dropout(0.5))

    def forward(self, x):
        return self.project(torch.cat([conv(x) for conv in self.convs], dim=1))


class Head(nn.Sequential):
    def __init__(self, before, width, rates, outputs):
        last = unit(width, width, 3)
        super().__init__(
            Pyramid(before, width, rates), *last, nn.Conv2d(width, outputs, 1, bias=True)
        )


class Whole(nn.Module):
    """Trunk and decoders, named as in FusionBench's checkpoints."""

    def __init__(self, trunk, decoders):
        super().__init__()
        self.encoder, self.decoders = trunk, nn.ModuleDict(decoders)

    def forward(self, images):
        features = self.encoder(images)
        size = images.shape[-2:]
        maps = {
            task: F.interpolate(decoder(features), size, mode="bilinear", align_corners=True)
            for task, decoder in self.decoders.items()
        }
        return features, maps


def made(width, rates, outputs, seed=0, **sizes):
    """A whole network with random weights, and statistics about those of a batch."""
    torch.manual_seed(seed)
    trunk = Trunk(**sizes)
    before = trunk.layer4[0].conv3.out_channels
    model = Whole(trunk, {task: Head(before, width, rates, n) for task, n in outputs.items()})
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)
        for part in norms:
            part.weight.add_(0.2 * torch.randn_like(part.weight))
            part.bias.add_(0.2 * torch.randn_like(part.bias))
            part.momentum = 1.0
        without_dropout(model)(torch.rand(3, 3, 48, 64))
        for part in norms:
            part.momentum = 0.1
            part.num_batches_tracked.fill_(7)
            part.running_mean.add_(0.1 * torch.randn_like(part.running_mean))
            part.running_var.mul_(0.7 + 0.6 * torch.rand_like(part.running_var)).add_(0.01)
    return model.eval()


def without_dropout(model):
    """The same network in training mode, dropping nothing."""
    model.train()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.eval()
    return model
