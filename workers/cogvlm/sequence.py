"""Where the tokens of a batch stand: which expert reads them, their rotary positions, and their packed order.

A sequence is `[BOS] + [pad] * image_tokens + text`, with token types `0, 1 .. 1, 0 ..`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TEXT, IMAGE = 0, 1


def upload(tensor: Tensor, device: torch.device | str | None) -> Tensor:
    """`tensor` on `device`. To a GPU from pinned memory: the host queues the copy and does not wait for the device."""
    if device is None or torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def expert_mask(token_types: Tensor) -> Tensor:
    """True where the vision expert reads the token: it and the next one are image tokens. [B, L] -> bool [B, L].

    So BOI and the patches go to the vision expert; EOI, text and everything generated go to the language expert.
    """
    image = token_types == IMAGE
    mask = torch.zeros_like(image)
    mask[:, :-1] = image[:, :-1] & image[:, 1:]
    return mask


def position_ids(token_types: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Rotary positions [B, L]: a count of the text tokens, in which all patches of one picture share one position.

    BOI and EOI count as text. Padding does not count, but after left padding BOS is 1 and not 0, as in the reference:
    a constant shift of that row, to which exact rotary embeddings are blind.
    """
    real = torch.ones_like(token_types, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    image, text = (token_types == IMAGE) & real, (token_types == TEXT) & real
    edge = torch.ones_like(image[:, :1])
    # An image token beside text, or at an end of the row, is BOI or EOI.
    boundary = image & (torch.cat((edge, text[:, :-1]), 1) | torch.cat((text[:, 1:], edge), 1))
    text, patch = text | boundary, image & ~boundary
    counts = text.clone()
    counts[:, 1:] |= patch[:, 1:] & text[:, :-1]  # the first patch of a picture moves on, the others stay
    counts[:, 0] = False
    return counts.long().cumsum(1)


@dataclass(frozen=True)
class Packing:
    """A padded batch [B, L] as one list of T tokens without the padding, in expert order.

    The vision expert's tokens come first, row by row, then the language expert's: each expert multiplies one
    contiguous slice, and padding costs nothing. Only attention needs the order of the sequence; there every row
    begins at column 0, so that padding stands at the end and a plain causal mask hides it.
    """

    vision: int  # tokens[:vision] belong to the vision expert
    source: Tensor  # [T] index of each token in the flattened batch B * L
    place: Tensor  # [T] index of each token in the flattened attention grid B * columns
    image: Tensor  # where the image tokens (BOI and EOI too) stand among the T, row by row
    last: Tensor  # [B] where each row's last token stands among the T
    positions: Tensor  # [T] rotary positions
    lengths: Tensor  # [B] tokens of each row
    rows: int
    columns: int  # length of the longest row
    padded: int  # L

    def spread(self, x: Tensor) -> Tensor:
        """[T, heads, d] -> [B, heads, columns, d], zeros after the end of a row."""
        grid = x.new_zeros(self.rows * self.columns, *x.shape[1:])
        grid[self.place] = x
        return grid.view(self.rows, self.columns, *x.shape[1:]).transpose(1, 2)

    def collect(self, grid: Tensor) -> Tensor:
        """[B, heads, columns, d] -> [T, heads, d], the inverse of `spread`."""
        return grid.transpose(1, 2).flatten(0, 1)[self.place]

    def unpack(self, x: Tensor) -> Tensor:
        """[T, ...] -> [B, L, ...] in the batch's own order, zeros at its padding."""
        batch = x.new_zeros(self.rows * self.padded, *x.shape[1:])
        batch[self.source] = x
        return batch.view(self.rows, self.padded, *x.shape[1:])


def pack(
    token_types: Tensor,
    attention_mask: Tensor | None = None,
    positions: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Packing:
    """The packing of a batch [B, L] padded on either side; `positions` default to `position_ids`.

    Computed where `token_types` lie (the host: it must know `vision` and `columns`), then moved to `device`.
    """
    real = torch.ones_like(token_types, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if positions is None:
        positions = position_ids(token_types, attention_mask)
    rows, padded = token_types.shape
    lengths = real.sum(1)
    columns = int(lengths.max())
    place = torch.arange(rows)[:, None] * columns + real.long().cumsum(1) - 1
    by_vision = (expert_mask(token_types) & real).flatten()
    source = torch.cat((by_vision.nonzero(), (~by_vision & real.flatten()).nonzero())).flatten()
    rank = torch.full((rows * padded,), -1)
    rank[source] = torch.arange(len(source))
    image = ((token_types == IMAGE) & real).flatten().nonzero().flatten()
    last = torch.where(real, torch.arange(rows * padded).view(rows, padded), -1).amax(1)
    # One copy for all of them: each would cost a launch.
    parts = (source, place.flatten()[source], rank[image], rank[last], positions.flatten()[source], lengths)
    joined = upload(torch.cat([part.long() for part in parts]), device)
    moved = torch.split(joined, [len(part) for part in parts])
    return Packing(
        vision=int(by_vision.sum()),
        source=moved[0],
        place=moved[1],
        image=moved[2],
        last=moved[3],
        positions=moved[4],
        lengths=moved[5],
        rows=rows,
        columns=columns,
        padded=padded,
    )
