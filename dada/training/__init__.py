"""Training with a policy: the update of the network, learning-rate schedules, and the loop's jitted step.

`sgd`: losses and PyTorch's SGD. `schedules`: learning rates. `policy_training`: one step with a policy. Copy
with `ops`, `policies`, `augment` and `checks.py` beside it; `sgd` and `schedules` need jax only.
"""

from . import policy_training, schedules, sgd

__all__ = ["policy_training", "schedules", "sgd"]
