"""Networks: one file each, with the same `init` and `apply`."""
