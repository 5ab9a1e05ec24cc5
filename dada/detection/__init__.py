"""What a detector is trained by, and judged by: assignment, losses, decoding, suppression, average precision.

Contract: boxes are float32 [B, N, 4], (x_min, y_min, x_max, y_max) in pixels; pixel i covers [i, i + 1).
Labels are integers [B, N] in [0, C); valid, bool [B, N], says which slots hold a box. The other slots may
hold anything, NaN included: nothing depends on them. Anchors are boxes [A, 4] of positive width and height.

What runs in training is pure JAX, of fixed shapes: `assignment`, `box_coding`, `losses`, `candidates`. What
judges afterwards is NumPy on the host: `suppression`, `average_precision`.
"""

from . import assignment, average_precision, box_coding, candidates, losses, suppression

__all__ = ["assignment", "average_precision", "box_coding", "candidates", "losses", "suppression"]
