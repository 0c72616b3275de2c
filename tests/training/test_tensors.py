"""Tensor classes on real models: a ResNet-18 with BatchNorm, tied weights, frozen parts, half precision."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from anabranch.wire.tensors import check_file, check_values, read_tensors
from silo_agent.training import tensors
from silo_agent.training.task import Garbage


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample: nn.Module | None = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        way = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + way)


class ResNet18(nn.Module):
    """He et al. 2015, the layout and names of torchvision, narrower by `width`."""

    def __init__(self, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for number, (before, after) in enumerate([(1, 1), (1, 2), (2, 4), (4, 8)], 1):
            first = Block(width * before, width * after, 1 if number == 1 else 2)
            setattr(self, f"layer{number}", nn.Sequential(first, Block(width * after, width * after, 1)))
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.fc(x.mean((2, 3)))


class Tied(nn.Module):
    """A language model's shape: the output layer is the embedding. Plus a frozen part and buffers that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("positions", torch.arange(5.0), persistent=False)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen(self.embedding(x)) * self.scale)


def train_resnet(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()


def test_resnet18_classes() -> None:
    manifest = tensors.manifest_of(ResNet18(), "average")
    roles = {spec.name: spec.role for spec in manifest.specs}
    assert len(manifest.trainable()) == 62  # 20 convolutions, 20 norms with weight and bias, 1 linear layer
    buffers = {name for name, role in roles.items() if role == "buffer"}
    assert len(buffers) == 40
    assert all(name.endswith((".running_mean", ".running_var")) for name in buffers)
    assert not any(name.endswith("num_batches_tracked") for name in roles)
    assert roles["layer2.0.downsample.1.running_var"] == "buffer"
    for kept in ("local", "none"):
        assert tensors.manifest_of(ResNet18(), kept).specs == manifest.trainable()  # type: ignore[arg-type]


def test_resnet18_update_is_trained_minus_base_and_values_of_buffers(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = ResNet18()
    manifest = tensors.manifest_of(model, "average")
    digest = tensors.save_values(model, tmp_path / "base", manifest)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    train_resnet(model)
    after = model.state_dict()
    tensors.save_update(model, tmp_path / "base", tmp_path / "update", manifest)

    assert check_file(tmp_path / "update", manifest).bytes == manifest.file_bytes
    update = read_tensors(tmp_path / "update", manifest)
    for spec in manifest.specs:
        value = after[spec.name] - before[spec.name] if spec.role == "trainable" else after[spec.name]
        assert np.array_equal(update[spec.name], value.numpy()), spec.name
    assert after["bn1.num_batches_tracked"] == 1
    assert (update["bn1.running_mean"] != 0).all()
    assert check_values(tmp_path / "update", manifest) > 0

    torch.manual_seed(2)
    other = ResNet18()  # another silo
    tensors.load(other, tmp_path / "base", manifest)
    assert tensors.save_values(other, tmp_path / "again", manifest) == digest
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["again", "base", "update"]


def test_tied_weights_travel_once_frozen_and_integer_tensors_never(tmp_path: Path) -> None:
    model = Tied()
    manifest = tensors.manifest_of(model, "average")
    assert [(s.name, s.shape, s.role) for s in manifest.specs] == [
        ("embedding.weight", (11, 4), "trainable"),
        ("head.bias", (11,), "trainable"),
        ("scale", (), "buffer"),
    ]
    tensors.save_values(model, tmp_path / "base", manifest)
    with torch.no_grad():
        model.head.weight.add_(0.5)
        model.frozen.weight.add_(1)
    tensors.save_update(model, tmp_path / "base", tmp_path / "update", manifest)
    update = read_tensors(tmp_path / "update", manifest)
    assert np.allclose(update["embedding.weight"], 0.5, atol=1e-6)

    other = Tied()
    frozen = other.frozen.weight.clone()
    tensors.load(other, tmp_path / "base", manifest)
    assert other.head.weight is other.embedding.weight
    assert torch.equal(other.head.weight + 0.5, model.head.weight)
    assert torch.equal(other.frozen.weight, frozen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_travel_as_float32_and_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(3)
    exact = nn.Linear(16, 16)
    manifest = tensors.manifest_of(exact, "average")
    tensors.save_values(exact, tmp_path / "base", manifest)  # the head: float32, finer than half precision
    model = nn.Linear(16, 16).to(dtype)
    assert tensors.manifest_of(model, "average") == manifest
    tensors.load(model, tmp_path / "base", manifest)
    assert model.weight.dtype == dtype
    assert torch.equal(model.weight, exact.weight.to(dtype))

    tensors.save_update(model, tmp_path / "base", tmp_path / "nothing", manifest)
    assert (
        check_values(tmp_path / "nothing", manifest) == 0
    )  # untrained: the rounding of the base is no update
    loaded = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.mul_(2)
    tensors.save_update(model, tmp_path / "base", tmp_path / "update", manifest)
    update = read_tensors(tmp_path / "update", manifest)["weight"]
    assert update.dtype == np.float32
    assert np.array_equal(update, (model.weight.double() - loaded.double()).float().detach().numpy())


def test_a_model_that_changed_or_blew_up_is_garbage(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    manifest = tensors.manifest_of(model, "average")
    tensors.save_values(model, tmp_path / "base", manifest)
    kinds = []
    with torch.no_grad():
        model.weight[1, 1] = float("nan")
    for change in (
        lambda: None,
        lambda: setattr(model, "extra", nn.Linear(1, 1)),
        lambda: model.requires_grad_(False),
    ):
        change()
        with pytest.raises(Garbage) as garbage:
            tensors.save_update(model, tmp_path / "base", tmp_path / "update", manifest)
        kinds.append(garbage.value.kind)
    assert kinds == ["NotFinite", "ModelChanged", "NothingToTrain"]
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_what_cannot_travel_is_named() -> None:
    for model in (nn.LazyLinear(3), nn.Linear(2, 2, dtype=torch.complex64)):
        with pytest.raises(Garbage) as garbage:
            tensors.manifest_of(model, "average")
        assert garbage.value.kind == "CannotTravel"
        assert "weight" in str(garbage.value)
