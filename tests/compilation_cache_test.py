"""The folder of compiled programs: which one is used, when none is, and what becomes of broken ones."""

import warnings
import zlib

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from experiments.runs import compilation_cache

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def no_folder():
    """Starts without a folder, and gives back the one of the tests."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


def used():
    return tuple(getattr(jax.config, name) for name in SETTINGS)


def test_the_users_cache_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    compilation_cache.use(None)
    assert used() == (str(tmp_path / ".cache" / "dada" / "jax"), 0.0)
    assert (tmp_path / ".cache" / "dada" / "jax").is_dir()


def test_xdg_cache_home_moves_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    compilation_cache.use(None)
    assert used()[0] == str(tmp_path / "xdg" / "dada" / "jax")


def test_what_jax_was_told_stays_unless_the_flag_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    compilation_cache.use(None)
    assert used() == (str(tmp_path / "theirs"), 1.0) and not (tmp_path / "xdg").exists()
    compilation_cache.use(str(tmp_path / "ours"))
    assert used() == (str(tmp_path / "ours"), 0.0)
    compilation_cache.use("")
    assert used()[0] is None


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compilation_cache.use(None)
    assert used()[0] is None
    with pytest.raises(OSError, match="file"):
        compilation_cache.use(str(tmp_path / "file" / "folder"))


@pytest.mark.parametrize(
    "broken",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"no program" * 100,
        lambda content: zlib.compress(b"no program"),
    ],
    ids=["empty", "cut off", "another file", "another content"],
)
def test_a_broken_program_is_replaced_with_one_line(tmp_path, broken, capsys):
    def compile_again():
        jax.clear_caches()
        jax_cache.reset_cache()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compilation_cache.use(str(tmp_path))
            return jax.jit(lambda x: jnp.sin(x) @ x).lower(jnp.ones((3, 3))).compile()

    compile_again()
    compilation_cache._say_once.cache_clear()
    good = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert good
    for path in tmp_path.iterdir():
        path.write_bytes(broken(path.read_bytes()))
    capsys.readouterr()
    compile_again()
    line = f"{tmp_path}: compiled programs that cannot be read or written are compiled again\n"
    assert capsys.readouterr().err == line
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == good.keys() and all(abs(sizes[name] - good[name]) < 20 for name in good)
    compile_again()
    assert capsys.readouterr().err == ""
