"""A mixer is an ordinary torch module: put one into a model of your own, train it with your own loop, decode with a state.

Run:  python examples/03_train_by_hand.py
"""

import torch
from torch import nn

from hybridattn.nn import GatedDeltaNet, GatedDeltaNetOptions, MixerState

VOCABULARY, WIDTH, PAIRS = 24, 64, 6


class Recaller(nn.Module):
    """One mixer between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        options = GatedDeltaNetOptions(hidden_size=WIDTH, num_heads=2, short_convolution=4, rotary="drop")
        self.mixer = GatedDeltaNet(options)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: torch.Tensor, state: MixerState | None = None) -> torch.Tensor:
        hidden = self.embed(ids)
        return self.head(hidden + self.mixer.mix(hidden, state=state)[0])


def batch(rows: int) -> torch.Tensor:
    """Key value key value ..., then every key again with its value."""
    keys = torch.rand(rows, VOCABULARY // 2).argsort(1)[:, :PAIRS]
    values = torch.randint(VOCABULARY // 2, VOCABULARY, (rows, PAIRS))
    pairs = torch.stack([keys, values], -1)
    again = pairs[:, torch.randperm(PAIRS)]
    return torch.cat([pairs.flatten(1), again.flatten(1)], 1)


torch.manual_seed(0)
model = Recaller()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
asked = slice(2 * PAIRS, None, 2)  # the keys of the second half: the next token is known
for step in range(201):
    ids = batch(64)
    logits = model(ids)[:, asked]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 2 * PAIRS + 1 :: 2].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step:3d}  loss {loss.item():.3f}")

with torch.no_grad():
    ids, state = batch(256), MixerState()
    logits = torch.cat([model(ids[:, t : t + 1], state) for t in range(ids.shape[1])], 1)  # token by token
    right = logits[:, asked].argmax(-1) == ids[:, 2 * PAIRS + 1 :: 2]
    print(
        f"recall, decoded from a state of {tuple(state.recurrent.shape[1:])} per sequence: {right.float().mean():.3f}"
    )
