"""The U-Net: sizes known from the paper, its parts against PyTorch's own, and that every piece is really used."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ddpm_utils.unet import PAPER, SMALL, TINY, Attention, Downsample, Norm, ResBlock, UNet, UNetConfig, Upsample


def parameters(config):
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(config).parameters())


def awake(module):
    """Random weights instead of the zero-initialised ones, so that every part has a say."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module.eval()


def test_the_paper_preset_has_the_papers_size():
    assert parameters(PAPER) == 35_746_307


def test_the_presets_have_large_norm_groups_and_the_stated_sizes():
    assert 4e6 < parameters(SMALL) < 11e6 and parameters(TINY) < 1.5e6
    for config in (SMALL, TINY):
        assert config.channels // config.groups >= 16


@pytest.mark.parametrize("config", [TINY, SMALL, replace(TINY, num_classes=10), replace(PAPER, channels=32)])
def test_output_has_the_shape_of_the_input(config):
    model = UNet(config).eval()
    assert model(torch.randn(2, 3, 32, 32), torch.tensor([0, 999])).shape == (2, 3, 32, 32)


def test_another_size_and_one_channel():
    model = UNet(replace(TINY, image_channels=1))
    assert model(torch.randn(1, 1, 48, 16), torch.tensor([3])).shape == (1, 1, 48, 16)


def test_a_new_network_answers_zero_and_its_blocks_are_the_identity():
    assert (UNet(TINY)(torch.randn(2, 3, 32, 32), torch.tensor([1, 2])) == 0).all()
    x = torch.randn(2, 32, 8, 8)
    assert torch.equal(ResBlock(32, 32, 16, 2, 0.0)(x, torch.randn(2, 16)), x)
    assert torch.equal(Attention(32, 2)(x), x)


def test_every_parameter_gets_a_gradient():
    """A skip that is never popped or a norm that is never called would leave parameters without one."""
    config = replace(TINY, num_classes=10)
    model = awake(UNet(config))
    model(torch.randn(2, 3, 32, 32), torch.tensor([5, 900]), torch.tensor([0, 10])).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_every_tensor_of_the_way_down_comes_back_on_the_way_up():
    model, left, taken = awake(UNet(TINY)), [], []
    for module in (model.conv_in, *model.down):
        module.register_forward_hook(lambda module, inputs, output: left.append(output))
    for module in model.up:
        if not isinstance(module, Upsample):
            module.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
    model(torch.randn(2, 3, 32, 32), torch.tensor([3, 700]))
    assert len(left) == len(taken)
    for skip, joined in zip(reversed(left), taken, strict=True):  # the last one left is the first one taken
        assert torch.equal(joined[:, -skip.shape[1] :], skip)


def test_the_network_is_told_the_time_in_steps():
    model, told = UNet(TINY), []
    model.time_mlp.register_forward_pre_hook(lambda module, inputs: told.append(inputs[0]))
    model(torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 7]))
    fastest = told[0][:, 0].tolist()  # the wave that turns by one radian per step
    assert fastest == pytest.approx([math.sin(0), math.sin(1), math.sin(7)], abs=1e-5)


def test_the_answer_may_be_any_number():
    """Noise is negative half of the time, and beyond 1 a third of the time: no activation may stand at the end."""
    model, bias = UNet(TINY), torch.tensor([-3.0, 0.5, 3.0])
    model.conv_out.bias.data.copy_(bias)  # conv_out starts at zero: a new network answers its bias
    answer = model(torch.randn(1, 3, 32, 32), torch.tensor([5]))
    assert torch.equal(answer, bias[None, :, None, None].expand_as(answer))


def test_time_reaches_each_image_and_only_its_own():
    """The embedding on the wrong axis would mix the images of a batch."""
    model = awake(UNet(TINY))
    x, t = torch.randn(4, 3, 32, 32), torch.tensor([1, 300, 600, 999])
    together = model(x, t)
    for i in range(4):
        assert torch.allclose(model(x[i : i + 1], t[i : i + 1]), together[i : i + 1], atol=1e-3)
    assert not torch.allclose(model(x, t.flip(0)), together, atol=1e-2)


def test_the_time_is_added_per_channel_at_every_pixel():
    block = awake(ResBlock(4, 4, 16, 2, 0.0))  # B = C = 4: where a wrong axis goes unnoticed
    block.norm2 = torch.nn.Identity()
    x, emb = torch.randn(4, 4, 8, 8), torch.randn(4, 16)
    h = block.conv1(F.silu(block.norm1(x)))
    shift = torch.stack([block.emb_proj(F.silu(e)) for e in emb])
    h = torch.stack([torch.stack([h[b, c] + shift[b, c] for c in range(4)]) for b in range(4)])
    assert torch.allclose(block(x, emb), x + block.conv2(F.silu(h)), atol=1e-5)


def test_labels_matter_and_no_label_is_the_extra_one():
    model = awake(UNet(replace(TINY, num_classes=3)))
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([10, 20])
    assert torch.equal(model(x, t), model(x, t, torch.tensor([3, 3])))
    assert not torch.allclose(model(x, t), model(x, t, torch.tensor([0, 1])), atol=1e-3)


def test_norm_is_group_norm_by_hand():
    x = torch.randn(2, 8, 5, 5) * 3 + 1
    norm = awake(Norm(2, 8))
    for image, out in zip(x, norm(x), strict=True):
        for g in range(2):
            part = image[4 * g : 4 * g + 4]
            plain = (part - part.mean()) / (part.var(unbiased=False) + 1e-6).sqrt()
            weight, bias = (p[4 * g : 4 * g + 4, None, None] for p in (norm.weight, norm.bias))
            assert torch.allclose(out[4 * g : 4 * g + 4], plain * weight + bias, atol=1e-5)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_norms_eps_is_the_official_one():
    """It matters where the features are faint: with a variance of 1e-6, eps = 1e-6 halves what comes out."""
    x = torch.randn(1, 8, 50, 50, dtype=torch.float64) * 1e-3
    out = Norm(2, 8)(x.float())
    assert out.var().item() == pytest.approx(1e-6 / (1e-6 + 1e-6), rel=0.1)


def test_attention_is_a_softmax_average_by_hand():
    attention, x = awake(Attention(8, 2)), torch.randn(1, 8, 3, 3)
    pixels = attention.norm(x)[0].reshape(8, 9).T
    q, k, v = (
        pixels @ w.T + b for w, b in zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True)
    )
    weights = torch.stack([torch.softmax(torch.stack([qi @ kj for kj in k]) / 8**0.5, 0) for qi in q])
    expected = x + (weights @ v @ attention.out.weight.T + attention.out.bias).T.reshape(1, 8, 3, 3)
    assert torch.allclose(attention(x), expected, atol=1e-5)


def test_downsampling_pads_right_and_bottom_only():
    down = Downsample(1)
    torch.nn.init.zeros_(down.conv.weight)
    torch.nn.init.zeros_(down.conv.bias)
    down.conv.weight.data[0, 0, 0, 0] = 1  # picks the upper left pixel of each window
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(down(x)[0, 0], torch.tensor([[0.0, 2.0], [8.0, 10.0]]))


def test_one_batch_can_be_learned_by_heart():
    torch.manual_seed(0)
    model = UNet(replace(TINY, channels=16, groups=1))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    x, t, eps = torch.randn(4, 3, 16, 16), torch.tensor([10, 300, 600, 900]), torch.randn(4, 3, 16, 16)
    for _ in range(150):
        loss = (model(x, t) - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1  # the best constant answer stays at 1


@pytest.mark.parametrize(
    "x,t,y,named",
    [
        (torch.zeros(2, 1, 32, 32), torch.zeros(2, dtype=torch.long), None, "xt must"),
        (torch.zeros(2, 3, 30, 32), torch.zeros(2, dtype=torch.long), None, "xt must"),
        (torch.zeros(3, 32, 32), torch.zeros(3, dtype=torch.long), None, "xt must"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(1, dtype=torch.long), None, "t must"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.long), torch.tensor([0, 4]), "y must"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.long), torch.tensor([-1, 0]), "y must"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.long), torch.tensor([0.0, 1.0]), "y must"),
    ],
)
def test_bad_input_is_named(x, t, y, named):
    with pytest.raises(ValueError, match=named):
        UNet(replace(TINY, num_classes=3))(x, t, y)


def test_labels_for_a_model_without_classes_are_refused():
    with pytest.raises(ValueError, match="no classes"):
        UNet(TINY)(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long), torch.tensor([0]))


@pytest.mark.parametrize(
    "change",
    [{"channels": 0}, {"channels": 33}, {"groups": 7}, {"attention": (True,)}, {"dropout": 1.0}, {"blocks": 0}],
)
def test_an_impossible_config_is_refused(change):
    with pytest.raises(ValueError):
        UNetConfig(**change)
