"""Large programs that run a few times: compiling is all that they cost, and less than half with this.

Not where pixels or bits are compared with those of a program that was compiled as usual.
"""

import functools

import jax

# XLA's fusion emitters take most of the time of a compilation without optimisation.
OPTIONS = {"xla_cpu_use_fusion_emitters": False}
XLA_FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())

jit = functools.partial(jax.jit, compiler_options=OPTIONS)
