"""``ostree container image …``, run by the real ostree where it finds such programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bootc_ostree import container
from bootc_ostree.objects import escape_ref, unescape_ref
from hypothesis import given
from hypothesis import strategies as st
from support.ostree_program import ostree

from bootc_core.testing.contract import OS
from bootc_core.testing.images import make_image

IMAGE = f"docker://{OS}"


def ask(capsys, *arguments):
    """Exit status, lines of output, text of errors."""
    status = container.main([*map(str, arguments)])
    told = capsys.readouterr()
    return status, told.out.splitlines(), told.err


@pytest.mark.root
@pytest.mark.real
def test_images_of_a_host(system, capsys):
    image = make_image("1")
    system.transport.images[OS] = image
    system.switch(OS)
    repo = system.sysroot.path / "ostree/repo"
    assert ask(capsys, "image", "list", "--repo", repo) == (0, [IMAGE], "")
    status, lines, _ = ask(capsys, "image", "metadata", "--repo", repo, IMAGE)
    assert (status, json.loads(lines[0])) == (0, json.loads(image.manifest.raw))
    _, lines, _ = ask(capsys, "image", "metadata", "--config", "--repo", repo, IMAGE)
    assert json.loads(lines[0]) == json.loads(image.config.raw)
    _, lines, _ = ask(capsys, "image", "history", "--repo", repo, IMAGE)
    assert [line.split()[0] for line in lines[1:]] == [
        layer.digest.removeprefix("sha256:")[:18] for layer in image.layers
    ]
    assert ask(capsys, "image", "clear-cached-update", "--repo", repo, IMAGE) == (0, [], "")
    status, _, told = ask(capsys, "image", "metadata", "--repo", repo, "docker://quay.io/no:1")
    assert (status, "no image docker://quay.io/no:1" in told) == (1, True)
    assert ask(capsys, "image", "prune-layers", "--repo", repo)[1] == ["Removed layers: 0"]
    status, lines, _ = ask(capsys, "image", "remove", "--repo", repo, IMAGE)
    assert (status, lines) == (0, ["Removed images: 1", "Removed layers: 0"]), "it is deployed"
    assert ask(capsys, "image", "list", "--repo", repo) == (0, [], "")
    ostree("fsck", f"--repo={repo}", "--quiet")


@pytest.mark.root
@pytest.mark.real
def test_the_real_ostree_finds_it(system):
    system.transport.images[OS] = make_image("1")
    system.switch(OS)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["ostree", "container", "image", "list", f"--repo={system.sysroot.path}/ostree/repo"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert (done.stdout, done.stderr, done.returncode) == (f"{IMAGE}\n", "", 0)


def test_what_is_elsewhere_says_where(tmp_path, capsys):
    status, _, told = ask(capsys, "image", "deploy", "--imgref", IMAGE)
    assert (status, "bootc switch --sysroot" in told) == (1, True)
    status, _, told = ask(capsys, "image", "list", "--repo", tmp_path)
    assert (status, "is not an ostree repository" in told) == (1, True)


@given(
    st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
)
def test_escaping_can_be_undone(text):
    assert unescape_ref(escape_ref(text)) == text
