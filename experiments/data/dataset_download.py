"""Fetches an official file to disk: resumed, checked by SHA-256, in place only once it is whole.

Contract: `fetch` is called only when a user asks for it. Bytes go to `<file_name>.part`; a later call goes on
where an interrupted one stopped; the finished file is renamed in one step after its hash was found right. A
server may be offline or send anything: what does not match the hash below never gets the official name.
"""

import hashlib
import http.client
import os
import pathlib
import urllib.request
from typing import NamedTuple

import tqdm

_CHUNK = 2**20  # bytes
_TIMEOUT = 30.0  # seconds without an answer


class Source(NamedTuple):
    """Where an official file is published, its size in bytes and its SHA-256 in hexadecimal."""

    url: str
    num_bytes: int
    sha256: str


_TORONTO = "https://www.cs.toronto.edu/~kriz/"
_STANFORD = "http://ufldl.stanford.edu/housenumbers/"
_FILES = f"""\
{_TORONTO} cifar-10-binary.tar.gz 170052171 c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd
{_TORONTO} cifar-100-python.tar.gz 169001437 85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7
{_STANFORD} train_32x32.mat 182040794 435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8
{_STANFORD} test_32x32.mat 64275384 cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b
{_STANFORD} extra_32x32.mat 1329278602 a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3
"""
SOURCES = {
    name: Source(folder + name, int(num_bytes), sha256)
    for folder, name, num_bytes, sha256 in map(str.split, _FILES.splitlines())
}


def fetch(file_name, folder):
    """Downloads one official file, a key of SOURCES, into a folder, unless it is already there; returns its
    path.

    Raises:
      FileNotFoundError: the server cannot be reached or stopped early; names address, path and hash for
        fetching by hand.
      ValueError: what was received is not the official file; it is deleted.
    """
    source, target = SOURCES[file_name], pathlib.Path(folder) / file_name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(file_name + ".part")
    have = part.stat().st_size if part.exists() else 0
    if have < source.num_bytes:
        try:
            _receive(source, part, have)
        # URLError and timeouts are OSErrors; HTTPException is what a broken answer raises.
        except (OSError, http.client.HTTPException) as error:
            by_hand = f"fetch it by hand to {target} (SHA-256 {source.sha256})"
            raise FileNotFoundError(
                f"cannot download {source.url} ({error}); run again to go on, or {by_hand}"
            ) from error
    with open(part, "rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != source.sha256:
        size = part.stat().st_size
        part.unlink()
        raise ValueError(
            f"{source.url}: received {size} bytes with SHA-256 {got}, expected {source.num_bytes} "
            f"bytes with {source.sha256}; deleted"
        )
    os.replace(part, target)
    return target


def _receive(source, part, have):
    """Appends the missing bytes to `part`, never more; OSError if the server ends early."""
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(source.url, headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0  # The server does not resume: it sends the file from its start.
        progress = tqdm.tqdm(total=source.num_bytes, initial=have, unit="B", unit_scale=True, desc=part.stem)
        with progress, open(part, "ab" if have else "wb") as file:
            while have < source.num_bytes:
                chunk = response.read(min(_CHUNK, source.num_bytes - have))
                if not chunk:
                    raise OSError(f"the server stopped at {have} of {source.num_bytes} bytes")
                file.write(chunk)
                have += len(chunk)
                progress.update(len(chunk))
