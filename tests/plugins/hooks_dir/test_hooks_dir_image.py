"""Hooks that an image brings: off by default, asked last, contained, and able to refuse this host but nothing else."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from datetime import UTC, datetime

import pytest
import trio
from bootc_hooks_dir import run
from support import images

from bootc_core.errors import HookError
from bootc_core.models.context import Context, Operation, Phase
from bootc_core.models.verdict import Deny

HOOK = "usr/lib/bootc/image-hooks.d/gate/"


def bootc(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "bootc_core.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


class Host:
    """A host on version 1, and an update in the layout ``os``."""

    def __init__(self, place, backend="composefs"):
        self.place, self.root = place, place / "root"
        self.where = ("--sysroot", place / "host", "--config-root", self.root)
        (self.root / "etc/containers").mkdir(parents=True)
        (self.root / "etc/containers/policy.json").write_text(
            json.dumps({"default": [{"type": "insecureAcceptAnything"}]})
        )
        self.build("1")
        done = bootc(
            *("switch", "--backend", backend, "--transport", "oci", f"{place}/os:x", *self.where)
        )
        assert done.returncode == 0, done.stderr

    def build(self, version, hooks=None, mode=0o755):
        files = {"etc/n": version}
        names = [images.bootable(files)]
        if hooks:
            names.append(hook_layer(hooks, mode))
        images.build(self.place / "os", names, tag="x")

    def allow(self):
        directory = self.root / "etc/bootc/config.d"
        directory.mkdir(parents=True)
        (directory / "10-images.toml").write_text('[plugins]\nimage-hooks = "yes"\n')

    def upgrade(self):
        return bootc("upgrade", *self.where)

    def version(self):
        status = json.loads(bootc("status", "--json", *self.where[:2]).stdout)
        return status["status"]["booted"]["image"]["imageDigest"]


def hook_layer(hooks, mode):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        path = ""
        for part in HOOK.strip("/").split("/"):
            path = f"{path}/{part}".strip("/")
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name, text in hooks.items():
            entry = tarfile.TarInfo(HOOK + name)
            entry.size, entry.mode = len(text), mode
            archive.addfile(entry, io.BytesIO(text.encode()))
    return stream.getvalue()


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


NO = "#!/bin/sh\necho 'needs UEFI' >&2\nexit 1\n"


def test_they_are_off_until_root_says_so(host):
    before = host.version()
    host.build("2", {"10-no": NO})
    assert host.upgrade().returncode == 0
    assert host.version() != before
    listed = bootc("hooks", "list", *host.where)
    assert 'hooks of images: not run ([plugins] image-hooks = "no")\n' in listed.stdout
    assert ": gate/10-no\n" in listed.stdout


def test_an_image_refuses_this_host_and_nothing_is_left(host):
    before = host.version()
    host.allow()
    host.build("2", {"10-yes": "#!/bin/sh\nexit 0\n", "20-no": NO})
    done = host.upgrade()
    assert done.returncode == 1
    assert "the image's usr/lib/bootc/image-hooks.d/gate/20-no: needs UEFI" in done.stderr
    assert host.version() == before
    host.build(
        "3",
        {"10-later": '#!/bin/sh\ncat >/dev/null\necho \'{"verdict": "hold", "reason": "busy"}\'\n'},
    )
    done = host.upgrade()
    assert done.returncode == 1
    assert "asks to wait with finalize" in done.stderr
    host.build("4")
    assert host.upgrade().returncode == 0
    assert host.version() != before
    order = bootc("plugins", "list", "--order", "--config-root", host.root)
    assert (
        "  hooks of images: asked before finalize, after all others, in a sandbox" in order.stdout
    )


@pytest.mark.root
@pytest.mark.real
def test_of_an_image_that_libostree_stages(tmp_path):
    host = Host(tmp_path, "ostree")
    before = host.version()
    host.allow()
    host.build("2", {"20-no": NO})
    done = host.upgrade()
    assert done.returncode == 1
    assert "the image's usr/lib/bootc/image-hooks.d/gate/20-no: needs UEFI" in done.stderr
    assert host.version() == before


def test_the_site_has_the_last_word(host):
    """What an image says does not undo what the site says, and a site's no is not put to the image."""
    host.allow()
    site = host.root / "etc/bootc/hooks.d/gate"
    site.mkdir(parents=True)
    (site / "10-no").write_text(
        '#!/bin/sh\n[ "$BOOTC_PHASE" != finalize ] || { echo freeze >&2; exit 1; }\n'
    )
    (site / "10-no").chmod(0o755)
    host.build("2", {"10-yes": "#!/bin/sh\nexit 0\n"})
    done = host.upgrade()
    assert done.returncode == 1
    assert "10-no: freeze" in done.stderr


CONTAINED = """#!/bin/sh
# nobody (or the same ordinary user), no network, nothing to write, nobody to signal, the facts on standard input
grep -q '"phase":"finalize"' || { echo "no context"; exit 1; }
echo "user $(id -u)"
echo "interfaces $(tail -n +3 /proc/self/net/dev | wc -l)"
for place in / /tmp /var/tmp /dev/shm /run "$HOST"; do
    ( : > "$place/bootc-image-hook" ) 2>/dev/null && echo "wrote to $place"
done
kill -0 1 2>/dev/null && [ "$(id -u)" = 0 ] && echo "signalled init"
echo "privileges $(grep -c 'NoNewPrivs:.1' /proc/self/status) $(sed -n 's/^CapEff:.0*[1-9a-f].*/some/p' /proc/self/status)"
exit 1
"""


def ask(place, text, mode=0o755):
    """The verdicts of one hook, run as the gate of finalize runs it."""
    (place / "gate").mkdir()
    hook = place / "gate/10-hook"
    hook.write_text(text)
    hook.chmod(mode)
    context = Context(
        transaction="t",
        operation=Operation.UPGRADE,
        phase=Phase.FINALIZE,
        sysroot="/nowhere",
        live=False,
        started_at=datetime.now(UTC),
        image_hooks=str(place),
    )
    return trio.run(run.ask_image, place, context)


def test_it_has_hardly_any_rights(tmp_path):
    (verdict,) = ask(tmp_path, CONTAINED.replace("$HOST", str(tmp_path)))
    assert isinstance(verdict, Deny)
    lines = verdict.reason.partition(": ")[2].split(" | ")
    user = 65534 if os.geteuid() == 0 else os.geteuid()
    assert lines == [f"user {user}", "interfaces 1", "privileges 1"]
    assert not list(tmp_path.glob("bootc-image-hook"))


@pytest.mark.parametrize(
    ("text", "mode", "problem"),
    [
        ("#!/bin/sh\nexit 0\n", 0o644, "no file that everybody may execute"),
        ("#!/no/such/shell\n", 0o755, "cannot be started: No such file or directory"),
        ("#!/bin/sh\nno-such-command\n", 0o755, "a command in it was not found"),
        ('#!/bin/sh\necho \'{"verdict": "maybe"}\'\n', 0o755, "verdict"),
    ],
)
def test_one_that_breaks_is_an_error(tmp_path, text, mode, problem):
    with pytest.raises(HookError) as caught:
        ask(tmp_path, text, mode)
    assert problem in str(caught.value.to_json())


def test_where_it_cannot_be_contained_it_is_not_run(tmp_path):
    """Here: a process that may not make namespaces, as in many containers."""
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\n: > {tmp_path}/ran\n")
    hook.chmod(0o755)
    with hook.open() as file:
        command = [
            sys.executable,
            "-I",
            "-m",
            "bootc_core.containment.sandbox",
            str(file.fileno()),
            "hook",
        ]
        if os.geteuid() == 0:
            command = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", *command]
        else:
            pytest.skip("an ordinary user may")
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, pass_fds=(file.fileno(),)
        )
    assert done.returncode == 126
    assert (
        "cannot be contained on this machine (make namespaces: Operation not permitted)"
        in done.stderr
    )
    assert not (tmp_path / "ran").exists()
