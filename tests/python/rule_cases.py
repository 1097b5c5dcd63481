"""The rules under test, random inputs for each, and both of its forms with every gradient."""

import torch
import torch.nn.functional as F

from hybridattn import ops

RULES = {
    "gated_delta_rule": ("g", "beta"),
    "delta_rule": ("beta",),
    "lightning": ("g",),
    "linear_attention": (),
    "gla": ("g",),
    "kda": ("g", "beta"),
    "dplr_delta_rule": ("g", "a", "b"),
}
PER_CHANNEL = ("gla", "kda", "dplr_delta_rule")


def inputs(rule, tokens, heads=2, value_heads=4, key_dim=10, value_dim=6, batch=2, states=None, dtype=torch.float64):
    q = torch.randn(batch, tokens, heads, key_dim, dtype=dtype)
    k = F.normalize(torch.randn(batch, tokens, heads, key_dim, dtype=dtype), dim=-1)
    v = torch.randn(batch, tokens, value_heads, value_dim, dtype=dtype)
    a = F.normalize(torch.randn(batch, tokens, heads, key_dim, dtype=dtype), dim=-1)
    channels = (key_dim,) if rule in PER_CHANNEL else ()
    gates = {
        "g": -torch.rand(batch, tokens, value_heads, *channels, dtype=dtype),
        "beta": torch.rand(batch, tokens, value_heads, dtype=dtype),
        "a": a,
        "b": -a * torch.rand(batch, tokens, heads, key_dim, dtype=dtype),
    }
    state = torch.randn(states or batch, value_heads, key_dim, value_dim, dtype=dtype)
    tensors = {"q": q, "k": k, "v": v} | {name: gates[name] for name in RULES[rule]}
    return {name: x.requires_grad_() for name, x in tensors.items()}, state.requires_grad_()


def both(rule, tensors, state, **options):
    """Values and gradients of the recurrence and of the chunked form, the final state's gradient being non-zero."""
    results = []
    for form in ("naive", "chunk"):
        extra = {} if form == "naive" else {"chunk_size": options.get("chunk_size", 64)}
        op = getattr(ops, f"{form}_{rule}")
        out, final = op(
            **tensors, initial_state=state, output_final_state=True, cu_seqlens=options.get("cu_seqlens"), **extra
        )
        torch.manual_seed(1)
        weights = [torch.randn(x.shape).bfloat16().to(x) for x in (out, final)]  # the same in every dtype
        objective = (out * weights[0]).sum() + (final * weights[1]).sum()
        results.append((out, final, *torch.autograd.grad(objective, [*tensors.values(), state])))
    return results
