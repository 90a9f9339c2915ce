import pytest
import torch
from torch.nn import functional as F

from steepest.nn.convnet import small_resnet


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (3, 33), (1, 8), (1, 4), (3, 1)])
@pytest.mark.parametrize("width", [4, 6])
def test_features_of_every_size(channels, size, width):
    net = small_resnet(channels, width=width)
    out = net(torch.randn(2, channels, size, size))
    assert out.shape == (2, 4 * width)
    assert net.out_features == 4 * width
    assert out.isfinite().all()


def test_the_features_are_those_of_a_plain_functional_form():
    net = small_resnet(3, width=6).double()
    x = torch.randn(3, 3, 10, 11, dtype=torch.float64)
    named = dict(net.named_parameters())

    def norm(value, name):
        split = value.reshape(len(value), {4: 4, 12: 6, 24: 8}[value.shape[1]], -1)
        mean = split.mean(2, keepdim=True)
        split = (split - mean) / ((split - mean) ** 2).mean(2, keepdim=True).add(1e-5).sqrt()
        return split.reshape(value.shape) * named[name + ".weight"].view(-1, 1, 1) + named[name + ".bias"].view(
            -1, 1, 1
        )

    h = F.max_pool2d(F.conv2d(x, named["stem.0.weight"], padding=1), 2, ceil_mode=True)
    h = norm(h, "stem.2").clamp(min=0)
    for block in ("blocks.0", "blocks.1"):
        inner = norm(F.conv2d(h, named[f"{block}.body.0.weight"], stride=2, padding=1), f"{block}.body.1").clamp(min=0)
        inner = norm(F.conv2d(inner, named[f"{block}.body.3.weight"], padding=1), f"{block}.body.4")
        short = F.conv2d(F.avg_pool2d(h, 2, ceil_mode=True), named[f"{block}.shortcut.1.weight"])
        h = (short + inner).clamp(min=0)
    torch.testing.assert_close(net(x), h.mean((2, 3)), rtol=1e-10, atol=1e-12)


def test_the_stated_cost():
    net = small_resnet(3)
    assert sum(p.numel() for p in net.parameters()) == 158_480
    costs = []
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            # A place of the output costs a multiply-add for each weight
            module.register_forward_hook(lambda m, _, out: costs.append(m.weight.numel() * out[0, 0].numel()))
    net(torch.zeros(1, 3, 32, 32))
    assert sum(costs) == 4_325_376


def test_an_image_does_not_depend_on_its_batch_nor_on_the_mode():
    net = small_resnet(1, width=8)
    x = torch.randn(6, 1, 16, 16)
    whole = net(x)
    torch.testing.assert_close(torch.cat([net(row[None]) for row in x]), whole)
    torch.testing.assert_close(net.eval()(x), whole)
    assert not list(net.buffers())


def test_memory_format_changes_no_number():
    net = small_resnet(3, width=8)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(net(x), net(x.contiguous(memory_format=torch.channels_last)))
    torch.testing.assert_close(net(x), net.to(memory_format=torch.channels_last)(x))


def test_weights_stay_contiguous_as_files_of_tensors_need_them():
    net = small_resnet(3, width=4)
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(p.is_contiguous() and p.grad.is_contiguous() for p in net.parameters())


def test_every_weight_gets_a_gradient_and_a_few_steps_separate_two_textures():
    net = small_resnet(1, width=8)
    head = torch.nn.Linear(32, 2)
    stripes = torch.arange(12).remainder(2).float().expand(12, 12)
    x = torch.stack([stripes, stripes.T]).repeat(16, 1, 1)[:, None] + 0.5 * torch.randn(32, 1, 12, 12)
    y = torch.arange(2).repeat(16)
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(12):
        optimizer.zero_grad()
        loss = F.cross_entropy(head(net(x)), y)
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
        optimizer.step()
    assert loss < 0.35


def test_the_seed_decides():
    first = small_resnet(3, width=4).state_dict()
    torch.manual_seed(0)
    again = small_resnet(3, width=4).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: small_resnet(0), ValueError, "in_channels"),
        (lambda: small_resnet(3, width=2.5), TypeError, "width"),
        (lambda: small_resnet(3, width=4)(torch.zeros(2, 1, 8, 8)), ValueError, "inputs"),
        (lambda: small_resnet(3, width=4)(torch.zeros(2, 3, 8)), ValueError, "inputs"),
        (lambda: small_resnet(3, width=4)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)), TypeError, "inputs"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()
