"""Train the small AutoencoderKL that ships as `demo`, and print its PSNR on photographs it never saw.

    pip install scikit-image scikit-learn
    python scripts/train_demo_vae.py --out inpaint_data/demo/vae --bf16

An untrained GroupNorm network takes hours to learn what a matrix knows, so the encoder starts as an
exact linear code: the principal components of 8x8 patches. Training can then only improve on it.
Seeded; the number of steps, not the clock, ends it.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import skimage
import sklearn.datasets
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

PHOTOS = Path(__file__).parents[1] / "inpaint_data" / "demo" / "photos"
SKIMAGE = ["astronaut", "brick", "chelsea", "coins", "grass", "gravel"]  # lossless in scikit-image's package
HELD_OUT = {"coffee"}
LATENT_CHANNELS = 16
LATENT_NOISE = 0.02  # the standard deviation of the posterior, the same everywhere
CONSTANT = 8.0  # a channel this much larger than the signal makes GroupNorm scale by a constant
GROUPS = 4


def read(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1  # (3, H, W) in [-1, 1]


def training_photos() -> list[Tensor]:
    """Every training photograph at three scales, so that 8x8 patches see coarse and fine detail."""
    skimage_data = Path(skimage.__file__).parent / "data"
    paths = [path for path in sorted(PHOTOS.glob("*.jpg")) if path.stem not in HELD_OUT]
    paths += [skimage_data / f"{name}.png" for name in SKIMAGE]
    scales = []
    for image in map(read, paths):
        for scale in (1.0, 0.7, 0.5):
            size = (round(image.width * scale), round(image.height * scale))
            if min(size) >= 160:
                scales.append(to_tensor(image.resize(size, Image.Resampling.LANCZOS)))
    return scales


def held_out_photos() -> dict[str, Tensor]:
    coffee = read(Path(skimage.__file__).parent / "data" / "coffee.png")
    flower = Image.fromarray(sklearn.datasets.load_sample_image("flower.jpg"))
    photos = {}
    for name, image in {"coffee": coffee, "flower": flower}.items():
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        photos[name] = to_tensor(square.resize((512, 512), Image.Resampling.LANCZOS))[None]
    return photos


def draw_batch(photos: list[Tensor], size: int, side: int, rng: np.random.Generator) -> Tensor:
    crops = []
    for index in rng.integers(len(photos), size=size):
        photo = photos[index]
        top, left = rng.integers(photo.shape[1] - side + 1), rng.integers(photo.shape[2] - side + 1)
        crop = photo[:, top : top + side, left : left + side].rot90(int(rng.integers(4)), (1, 2))
        crop = crop.flip(2) if rng.random() < 0.5 else crop
        crop = crop[torch.from_numpy(rng.permutation(3))] if rng.random() < 0.3 else crop
        gain, shift = rng.uniform(0.7, 1.1, (3, 1, 1)), rng.uniform(-0.15, 0.15, (3, 1, 1))
        crops.append((crop * torch.from_numpy(gain).float() + torch.from_numpy(shift).float()).clamp(-1, 1))
    return torch.stack(crops)


def pca(photos: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (192,), components (192, 192) in rows, and standard deviations of 8x8 RGB patches."""
    covariance, mean, count = torch.zeros(192, 192, dtype=torch.float64), torch.zeros(192, dtype=torch.float64), 0
    for photo in photos:
        patches = nn.functional.unfold(photo[None], 8, stride=8)[0].double()  # (3*64, n)
        covariance += patches @ patches.T
        mean += patches.sum(1)
        count += patches.shape[1]
    mean /= count
    values, vectors = torch.linalg.eigh(covariance / count - mean.outer(mean))
    return mean.float(), vectors.T.flip(0).float(), values.flip(0).clamp(min=1e-9).sqrt().float()


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(((a.clamp(-1, 1) - b) / 2).square().mean().item())


def psnr_of_pca(photo: Tensor, mean: Tensor, components: Tensor, count: int) -> float:
    patches = nn.functional.unfold(photo, 8, stride=8)[0] - mean[:, None]
    kept = components[:count]
    decoded = kept.T @ (kept @ patches) + mean[:, None]
    return psnr(nn.functional.fold(decoded[None], photo.shape[-2:], 8, stride=8), photo)


@torch.no_grad()
def start_as_linear_code(vae: AutoencoderKL, mean: Tensor, components: Tensor, deviations: Tensor) -> None:
    """Set the encoder to the whitened PCA code and silence the residual branches, which then grow in training."""
    for module in vae.modules():
        if hasattr(module, "conv2") and hasattr(module, "norm2"):  # a ResNet block
            module.conv2.weight.mul_(0.01)
            module.conv2.bias.zero_()
    encoder = vae.encoder

    def only(conv: nn.Conv2d) -> nn.Conv2d:
        conv.weight.zero_()
        conv.bias.zero_()
        return conv

    centre = only(encoder.conv_in)
    for channel in range(3):
        centre.weight[channel, channel, 1, 1] = 1
    for block in encoder.down_blocks:
        if block.resnets[0].conv_shortcut is not None:
            shortcut = only(block.resnets[0].conv_shortcut)
            for channel in range(shortcut.in_channels):
                shortcut.weight[channel, channel] = 1
    # Two strided convolutions gather 4x4 patches whole: 3 -> 12 -> 48 channels, ordered (y, x, channel).
    for level, channels in ((0, 3), (1, 12)):
        gather = only(encoder.down_blocks[level].downsamplers[0].conv)
        for y in range(2):
            for x in range(2):
                for channel in range(channels):
                    gather.weight[(2 * y + x) * channels + channel, channel, y, x] = 1
    # The third projects four of them on the components, as +z and -z: silu(z) - silu(-z) = z.
    project = only(encoder.down_blocks[2].downsamplers[0].conv)
    code = (components / deviations[:, None])[:LATENT_CHANNELS]
    grid = code.reshape(-1, 3, 2, 2, 2, 2, 2, 2)  # channel, y4, y2, y1, x4, x2, x1
    grid = grid.permute(0, 2, 5, 3, 6, 4, 7, 1)  # y4, x4, y2, x2, y1, x1, channel
    # A gathered channel is (y1, x1) inside (y2, x2): the second gather is the outer one.
    grid = grid.reshape(LATENT_CHANNELS, 2, 2, 48)
    width, pairs = project.out_channels // GROUPS, LATENT_CHANNELS // GROUPS
    rows = [index // pairs * width + 2 * (index % pairs) for index in range(LATENT_CHANNELS)]
    for index, plus in enumerate(rows):
        for sign, row in ((1, plus), (-1, plus + 1)):
            project.weight[row, :48, :2, :2] = sign * grid[index].permute(2, 0, 1)
            project.bias[row] = -sign * (code[index] @ mean)
    for group in range(GROUPS):
        spare = group * width + 2 * pairs
        project.bias[spare], project.bias[spare + 1] = CONSTANT, -CONSTANT
    gain = CONSTANT * math.sqrt(2 / width)
    out = only(encoder.conv_out)
    for index, plus in enumerate(rows):
        out.weight[index, plus, 1, 1], out.weight[index, plus + 1, 1, 1] = gain, -gain
    out.bias[LATENT_CHANNELS:] = 2 * math.log(LATENT_NOISE)

    # The decoder's last norm likewise passes three channels on unchanged.
    decoder = vae.decoder
    shortcut = decoder.up_blocks[-1].resnets[0].conv_shortcut
    width = shortcut.out_channels // GROUPS
    out = only(decoder.conv_out)
    for channel in range(3):
        first = channel * width
        shortcut.weight[first + 1] = -shortcut.weight[first]
        shortcut.weight[first + 2 : first + 4] = 0
        shortcut.bias[first : first + 4] = torch.tensor([0.0, 0.0, CONSTANT, -CONSTANT])
        gain = CONSTANT * math.sqrt(2 / width)
        out.weight[channel, first, 1, 1], out.weight[channel, first + 1, 1, 1] = gain, -gain


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    photos, tests = training_photos(), held_out_photos()
    mean, components, deviations = pca(photos)
    for count in (4, 16):
        figures = ", ".join(f"{name} {psnr_of_pca(x, mean, components, count):.1f} dB" for name, x in tests.items())
        print(f"PCA of 8x8 patches, {count} components: {figures}", flush=True)

    vae = AutoencoderKL(
        block_out_channels=(16, 48, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=GROUPS,
        sample_size=512,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    ).to(memory_format=torch.channels_last)
    start_as_linear_code(vae, mean, components, deviations)
    print(f"{sum(p.numel() for p in vae.parameters()):,} parameters", flush=True)

    optimizer = torch.optim.Adam(vae.parameters(), lr=args.lr, betas=(0.9, 0.99))
    average = {name: value.clone() for name, value in vae.state_dict().items()}
    started = time.perf_counter()
    for step in range(args.steps + 1):
        rate = args.lr * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * min(1, step / args.steps)))
        # Until the decoder reads the linear code well, its gradients would only spoil that code.
        for parameter in vae.encoder.parameters():
            parameter.requires_grad_(step >= args.steps // 2)
        optimizer.param_groups[0]["lr"] = rate
        batch = draw_batch(photos, args.batch_size, args.side, rng).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            latents = vae.encode(batch).latent_dist.mode()
            decoded = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        loss = (decoded.float() - batch).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(0.999, step / (step + 10))
            for name, value in vae.state_dict().items():
                average[name].lerp_(value, 1 - decay)
        if step % args.report_every == 0 or step == args.steps:
            report(vae, average, tests, f"step {step:6d}  {time.perf_counter() - started:6.0f} s  loss {loss:.5f}")
            save(vae, average, photos, args.out)


@torch.no_grad()
def report(vae: AutoencoderKL, average: dict[str, Tensor], tests: dict[str, Tensor], title: str) -> None:
    trained = {name: value.clone() for name, value in vae.state_dict().items()}
    vae.load_state_dict(average)
    figures = {name: psnr(vae.decode(vae.encode(x).latent_dist.mode()).sample, x) for name, x in tests.items()}
    vae.load_state_dict(trained)
    print(title, *(f" {name} {figure:.2f} dB" for name, figure in figures.items()), flush=True)


@torch.no_grad()
def save(vae: AutoencoderKL, average: dict[str, Tensor], photos: list[Tensor], out: Path) -> None:
    shipped = AutoencoderKL.from_config(vae.config)
    shipped.load_state_dict(average)
    latents = [shipped.encode(photo[None, :, :160, :160]).latent_dist.mode() for photo in photos]
    shipped.register_to_config(scaling_factor=round(1 / torch.cat(latents).std().item(), 4))
    # Half precision halves the file; the weights are rounded here once, so every user has the same ones.
    shipped.half().save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_vae"))
    parser.add_argument("--steps", type=int, default=8_000)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--side", type=int, default=96, help="side of the training crops, a multiple of 8")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast: faster on processors that have it")
    parser.add_argument("--report_every", type=int, default=500)
    train(parser.parse_args())
