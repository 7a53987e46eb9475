"""Where a hook on a network can hang."""

from __future__ import annotations

from torch import nn

ON_MODULES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
ON_PARAMETERS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def hooks_of(network: nn.Module) -> list[str]:
    """Names of the modules and parameters that have one, with its kind."""
    on_modules = [(name, module, kind) for name, module in network.named_modules() for kind in ON_MODULES]
    on_parameters = [(name, value, kind) for name, value in network.named_parameters() for kind in ON_PARAMETERS]
    return [f"{name}: {kind}" for name, holder, kind in (*on_modules, *on_parameters) if getattr(holder, kind)]
