"""Binaries that run the searches and trainings, and everything of theirs that touches the disk."""
