"""An example of a custom model: a small network that finds five colors in an image; it may show several.

    python examples/colors.py      # trains it; writes colors.pth, and red.png to try it on, to examples/trained/

docs/custom-models.md shows how to convert and serve it.
"""

from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import trange

HEIGHT, WIDTH = 96, 128
COLORS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.7, 0.2], [0.1, 0.2, 0.9], [0.9, 0.9, 0.2], [0.5, 0.5, 0.5]])
STEPS, BATCH = 200, 32
OUTPUT = Path(__file__).parent / "trained"


class Colors(nn.Module):
    """Returns a logit per color, [batch, 5], of float32 [batch, 3, 96, 128], normalized to [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 8, stride=8), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU()
        )
        self.head = nn.Conv2d(16, len(COLORS), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x)).amax((2, 3))  # anywhere in the image


def main() -> None:
    """Train on noisy images of one color on the left and one on the right."""
    torch.manual_seed(0)
    network = Colors()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in trange(STEPS, desc="training"):
        shown = torch.randint(len(COLORS), (BATCH, 2))
        halves = COLORS[shown].transpose(1, 2).repeat_interleave(WIDTH // 2, 2)
        images = halves[:, :, None] + 0.1 * torch.randn(BATCH, 3, HEIGHT, WIDTH)
        labels = torch.zeros(BATCH, len(COLORS)).scatter(1, shown, 1)
        loss = binary_cross_entropy_with_logits(network((images - 0.5) / 0.5), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    OUTPUT.mkdir(exist_ok=True)
    torch.save(network.state_dict(), OUTPUT / "colors.pth")
    Image.new("RGB", (400, 300), (230, 25, 25)).save(OUTPUT / "red.png")
    print(f"wrote {OUTPUT / 'colors.pth'} (the weights) and {OUTPUT / 'red.png'} (an image to classify)")


if __name__ == "__main__":
    main()
