"""Multi-head attention whose inner width may differ from its queries'.

`nn.MultiheadAttention` asserts that both are the same, so that no head could go while its queries stay as wide as they
are. A cut puts the class below in its place: the same parameters under the same names, the same results.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class SlimMultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with as many heads, of as many channels, as its weights have.

    `num_heads` says how many heads there are. `embed_dim` is the width of queries and outputs. The scale of the scores
    is that of the original, by `head_dim`, also where the heads have lost channels. Made of a plain one, not built:
    see `become_slim`.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
                need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
                is_causal: bool = False) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`: the same arguments, shapes and results.

        Raises:
            RuntimeError: `is_causal` without `attn_mask`, as there.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask; give attn_mask, too")
        batched = query.dim() == 3
        q, k, v = self._project(query, key, value)
        mask = self._mask(key_padding_mask, attn_mask, query.dtype)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat([x, bias.expand_as(x[:, :1])], 1) for x, bias in ((k, self.bias_k), (v, self.bias_v)))
        q, k, v = (torch.unflatten(x, -1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        if self.add_zero_attn:
            k, v = (torch.cat([x, torch.zeros_like(x[:, :, :1])], 2) for x in (k, v))
        scale, dropout = self.head_dim ** -0.5, self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * scale) @ k.transpose(-2, -1)
            weights = F.dropout(F.softmax(scores if mask is None else scores + mask, -1), dropout)
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale)
        out = F.linear(out.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as (batch, length, inner width)."""
        if self.in_proj_weight is not None and query is key is value:
            packed = F.linear(self._batch_first(query), self.in_proj_weight, self.in_proj_bias)
            q, k, v = packed.chunk(3, -1)
            return q, k, v
        weights = (self.in_proj_weight.chunk(3) if self.in_proj_weight is not None
                   else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight))
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(self._batch_first(x), weight, bias)
                   for x, weight, bias in zip((query, key, value), weights, biases, strict=True))
        return q, k, v

    def _batch_first(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _mask(self, key_padding_mask: Tensor | None, attn_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """The sum of both masks, to be added to scores of shape (batch, heads, queries, keys)."""
        parts = []
        if attn_mask is not None:
            parts.append(attn_mask if attn_mask.dim() == 2 else torch.unflatten(attn_mask, 0, (-1, self.num_heads)))
        if key_padding_mask is not None:
            parts.append(key_padding_mask.unsqueeze(-2).unsqueeze(-2))
        added = sum((self.bias_k is not None, self.add_zero_attn))  # these keys everyone may look at
        total = None
        for mask in parts:
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
            mask = F.pad(mask, (0, added)) if added else mask
            total = mask if total is None else total + mask
        return total


def is_plain_attention(module: nn.Module) -> bool:
    """True for torch's own class, whose code is known, and no other that is derived of it."""
    return type(module) is nn.MultiheadAttention


def become_slim(module: nn.Module) -> None:
    """Make a plain attention one of any width; hooks, parameters and attributes stay what they are."""
    module.__class__ = SlimMultiheadAttention
    # `nn.TransformerEncoderLayer` then calls this module, and no kernel of its own.
    module.__dict__["_qkv_same_embed_dim"] = False


@contextmanager
def attention_of_any_width(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run a model's plain attentions by the code that their slim ones will have: the same operations at any width."""
    plain = [module for module in modules if is_plain_attention(module)]
    for module in plain:
        module.__class__ = SlimMultiheadAttention
    try:
        yield
    finally:
        for module in plain:
            module.__class__ = nn.MultiheadAttention
