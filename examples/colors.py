"""A small network of one's own, to deploy: which of five colors does a picture show? It may be several.

    python examples/colors.py      # train it; writes colors.pth, and red.png to try it on, into examples/trained/

docs/custom-models.md says how it is converted and served.
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
    """Takes float32 [batch, 3, 96, 128], normalized to -1 to 1; returns a logit for each color, [batch, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 8, stride=8), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU()
        )
        self.head = nn.Conv2d(16, len(COLORS), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x)).amax((2, 3))  # a color that is anywhere is there


def main() -> None:
    """Train on noisy pictures of one color on the left and one on the right."""
    torch.manual_seed(0)
    network = Colors()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in trange(STEPS, desc="training"):
        shown = torch.randint(len(COLORS), (BATCH, 2))
        halves = COLORS[shown].transpose(1, 2).repeat_interleave(WIDTH // 2, 2)
        pictures = halves[:, :, None] + 0.1 * torch.randn(BATCH, 3, HEIGHT, WIDTH)
        wanted = torch.zeros(BATCH, len(COLORS)).scatter(1, shown, 1)
        loss = binary_cross_entropy_with_logits(network((pictures - 0.5) / 0.5), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    OUTPUT.mkdir(exist_ok=True)
    torch.save(network.state_dict(), OUTPUT / "colors.pth")
    Image.new("RGB", (400, 300), (230, 25, 25)).save(OUTPUT / "red.png")
    print(f"wrote {OUTPUT / 'colors.pth'} (the weights) and {OUTPUT / 'red.png'} (an image to classify)")


if __name__ == "__main__":
    main()
