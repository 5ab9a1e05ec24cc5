"""Image ops: forward equal to Pillow on every 8-bit pixel, a declared gradient backward.

`color`, `spatial` and `crop` hold the ops, each of one image and one physical value (contract: `one_image`);
`boxes` holds those of images with boxes, and how boxes move. `table` gives all of them names, ranges and
search spaces. Needs jax and numpy; copy the folder alone.
"""

from .table import (
    ALL_OPS,
    BOX_OPS,
    EXTRA_OPS,
    OPS,
    RANDOM_OPS,
    SPACE_NAMES,
    Draws,
    OpRow,
    SearchSpace,
    apply_op,
    apply_op_with_boxes,
    level_to_value,
    move_boxes,
    op_ids,
    random_ops,
    row_op_ids,
    search_space,
    space_options,
)

__all__ = [
    "ALL_OPS",
    "BOX_OPS",
    "EXTRA_OPS",
    "OPS",
    "RANDOM_OPS",
    "SPACE_NAMES",
    "Draws",
    "OpRow",
    "SearchSpace",
    "apply_op",
    "apply_op_with_boxes",
    "level_to_value",
    "move_boxes",
    "op_ids",
    "random_ops",
    "row_op_ids",
    "search_space",
    "space_options",
]
