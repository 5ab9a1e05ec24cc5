"""The programs of a DeepAA step that is called from Python, compiled as by `quick_jit`."""

import contextlib

import pytest
import quick_jit

from dada.searches.deepaa import scores as deepaa_scores


@contextlib.contextmanager
def programs():
    """Replaces the two programs that hold a network."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_add_gradient", "_alignments"):
            function = getattr(deepaa_scores, name).__wrapped__
            patch.setattr(deepaa_scores, name, quick_jit.jit(function, static_argnums=0))
        yield
