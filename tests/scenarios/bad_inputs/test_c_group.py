"""Bad configuration, arguments, kernel arguments and surroundings (catalogue group C), at the real command line."""

from __future__ import annotations

import contextlib
import fcntl
import http.server
import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time

import pytest
from support import refusal
from support.images import Dir
from support.refusal import CLI, Host, assert_refused, build, copy

pytestmark = pytest.mark.root
USER = 65534


@pytest.fixture(scope="module")
def composefs(tmp_path_factory):
    return refusal.template(tmp_path_factory.mktemp("composefs"))


@pytest.fixture(scope="module")
def clean(composefs, tmp_path_factory):
    """Objects of a host that went from 1 to 2 and never met anything bad."""
    host = copy(composefs[0], tmp_path_factory.mktemp("clean"))
    host.assert_good_run(composefs[1]["2"])
    return host.objects()


@pytest.fixture
def layouts(composefs):
    return composefs[1]


@pytest.fixture
def host(composefs, tmp_path):
    copied = copy(composefs[0], tmp_path)
    copied.serve(composefs[1]["2"])
    return copied


@pytest.fixture(scope="module")
def ostree(tmp_path_factory):
    host, layouts = refusal.template(tmp_path_factory.mktemp("ostree"), "ostree")
    yield host, layouts
    refusal.wipe(host.sysroot)


@pytest.fixture(autouse=True)
def _removable(tmp_path):
    """Deployments of libostree are immutable; nobody else could remove them."""
    yield
    refusal.wipe(tmp_path / "host")


def kargs_d(text):
    return {
        "usr/lib/bootc": Dir(),
        "usr/lib/bootc/kargs.d": Dir(),
        "usr/lib/bootc/kargs.d/x.toml": text,
    }


# --- C01 to C04, C16: files of the administrator ---------------------------------------------------------------------


def settings(root, where, name, text):
    path = root / where / "bootc/config.d" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[storage\n", ["10.toml", "line 1"]),
        ("[storage]\nbackend = 5\n", ["10.toml", "storage.backend", "a string"]),
        ('[storage]\ncolour = "red"\n[extra]\nx = 1\n', ["storage.colour", "[extra]"]),
        ('[storage]\nbackend = "a"\nbackend = "b"\n', ["10.toml", "line 3"]),
        ('[storage]\nbackend = "nobody"\n', ["nobody"]),
    ],
)
def test_c01_malformed_settings(text, names, layouts, tmp_path):
    root = tmp_path / "root"
    settings(root, "etc", "10.toml", text)
    host = Host(tmp_path)
    host.serve(layouts["1"])
    done = host.command(
        "switch",
        "--config-root",
        root,
        "--no-signature-verification",
        "--transport",
        "oci",
        host.live,
    )
    assert_refused(done, ("CFG", "PLUG"), *names)
    assert not host.sysroot.exists()
    settings(root, "etc", "10.toml", "")
    assert host.switch("--config-root", root).returncode == 0


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "huge", "bytes", "dangling"])
def test_c02_settings_that_are_no_file(kind, host, tmp_path):
    path = settings(tmp_path / "root", "etc", "10.toml", "")
    path.unlink()
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "huge":
            with path.open("wb") as file:
                file.truncate(1 << 30)
        case "bytes":
            path.write_bytes(b"\xff\xfe")
        case "dangling":
            path.symlink_to("gone.toml")
    before = host.snapshot()
    done = host.upgrade("--config-root", tmp_path / "root", timeout=30)
    assert_refused(done, "CFG", "10.toml")
    host.assert_unchanged(before)


@pytest.mark.parametrize("what", ["file", "directory", "owner", "parent"])
def test_c03_settings_that_others_can_write(what, host, tmp_path):
    root = tmp_path / "root"
    path = settings(root, "etc", "10.toml", "")
    match what:
        case "file":
            path.chmod(0o666)
        case "directory":
            path.parent.chmod(0o777)
        case "owner":
            os.chown(path, USER, -1)
        case "parent":
            os.chown(root / "etc", USER, -1)
    before = host.snapshot()
    error = assert_refused(host.upgrade("--config-root", root), "CFG", "owner")
    assert re.search(r"owner \d+, mode \d{4}", error["found"])
    host.assert_unchanged(before)


@pytest.mark.parametrize(
    ("vendor", "local", "backend"),
    [
        ({"10.toml": "ostree"}, {"20.toml": "composefs"}, "composefs"),  # later names win
        ({"20.toml": "ostree"}, {"10.toml": "composefs"}, "ostree"),  # wherever they are
        ({"10.toml": "ostree"}, {"10.toml": "composefs"}, "composefs"),  # the same name is replaced
        ({"10.toml": "ostree"}, {"10.toml": None}, "composefs"),  # masked: the default again
        ({"10.toml": "ostree"}, {"10.toml": ""}, "composefs"),  # an empty file replaces, too
        ({"10.toml": "ostree"}, {"20.toml": ""}, "ostree"),  # and adds nothing
    ],
)
def test_c04_order_masks_and_empty_files(vendor, local, backend, tmp_path):
    """Nothing is fetched: the reference is refused after the backend was chosen, which the error's sysroot shows."""
    root = tmp_path / "root"
    for where, files in (("usr/lib", vendor), ("etc", local)):
        for name, value in files.items():
            text = f'[storage]\nbackend = "{value}"\n' if value else ""
            path = settings(root, where, name, text)
            if value is None:
                path.unlink()
                path.symlink_to("/dev/null")
    done = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; from pathlib import Path; from bootc_core import config; "
         "c = config.load(Path(sys.argv[1])); print(c.backend, c.sources.get('backend', 'default'))", root],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split()[0] == backend


@pytest.mark.parametrize("what", ["config.d", "file", "etc", "hooks.d"])
def test_c16_configuration_is_looked_for_beneath_its_root_only(what, host, tmp_path):
    """A link that leads out of the root is refused by name; one that stays inside is followed."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    bad = settings(outside, "etc", "10.toml", '[storage]\ncolour = "outside"\n')
    hook = outside / "hooks.d/pre-upgrade"
    hook.parent.mkdir()
    hook.write_text("#!/bin/sh\ntouch /run/bootc-c16\n")
    hook.chmod(0o755)
    (root / "etc/bootc").mkdir(parents=True)
    match what:
        case "config.d":
            (root / "etc/bootc/config.d").symlink_to(bad.parent)
        case "file":
            (root / "etc/bootc/config.d").mkdir()
            (root / "etc/bootc/config.d/10.toml").symlink_to(
                "../../../../outside/etc/bootc/config.d/10.toml"
            )
        case "etc":
            (root / "etc/bootc").rmdir()
            (root / "etc/bootc").symlink_to(outside / "etc/bootc")
        case "hooks.d":
            (root / "etc/bootc/hooks.d").symlink_to(hook.parent)
    before = host.snapshot()
    done = host.upgrade("--config-root", root)
    error = assert_refused(done, ("CFG", "HOOK"), "etc/bootc")
    assert "colour" not in json.dumps(error)
    assert not os.path.exists("/run/bootc-c16")
    host.assert_unchanged(before)


def test_c16_a_link_inside_the_root_is_followed(host, tmp_path):
    root = tmp_path / "root"
    settings(root, "usr/share", "real.toml", '[storage]\nbackend = "composefs"\n')
    (root / "etc/bootc").mkdir(parents=True)
    (root / "etc/bootc/config.d").symlink_to("../../usr/share/bootc/config.d")
    policy = root / "etc/containers/policy.json"
    policy.parent.mkdir()
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    assert host.upgrade("--config-root", root).returncode == 0


# --- C05 to C09: kernel arguments of the new image -------------------------------------------------------------------

MALFORMED = {
    "c05_not_toml": ("kargs = [", "CON", "kargs.d/x.toml"),
    "c05_wrong_type": ("kargs = 5\n", "CON", "kargs.d/x.toml"),
    "c05_unknown_key": ('kargs = ["a"]\nkarg = ["b"]\n', "CON", "karg"),
    "c05_bytes": (b"kargs = ['\xff']\n", "CON", "kargs.d/x.toml"),
    "c06_newline": ('kargs = ["a\\nlinux /evil"]\n', "CON", "kargs.d/x.toml"),
    "c06_nul": ('kargs = ["a\\u0000b"]\n', "CON", "kargs.d/x.toml"),
    "c06_quote": ("kargs = ['a=\"b']\n", "CON", "kargs.d/x.toml"),
    "c06_brace": ('kargs = ["a}"]\n', "CON", "kargs.d/x.toml"),
    "c06_options": ('kargs = ["quiet\\noptions init=/bin/sh"]\n', "CON", "kargs.d/x.toml"),
    "c06_escape": ('kargs = ["\\u001b[2Jx"]\n', "CON", "kargs.d/x.toml"),
    "c07_too_long": (f'kargs = ["{"a" * 4097}"]\n', "LIM", "kernel"),
    "c07_many": (f'kargs = [{", ".join(f"{chr(34)}k{n}=value{chr(34)}" for n in range(400))}]\n', "LIM", "kernel"),
    "c08_root": ('kargs = ["root=/dev/sda1"]\n', "POL", "root"),
    "c08_ostree": ('kargs = ["ostree=/ostree/boot.1/x"]\n', "POL", "ostree"),
    "c08_composefs": ('kargs = ["composefs=00"]\n', "POL", "composefs"),
    "c08_init": ('kargs = ["init=/bin/sh"]\n', "POL", "init"),
    "c08_break": ('kargs = ["rd.break"]\n', "POL", "rd.break"),
    "c08_debug_shell": ('kargs = ["quiet systemd.debug-shell=1"]\n', "POL", "systemd.debug-shell"),
    "c09_architecture": ('kargs = ["a"]\nmatch-architectures = ["amd64"]\n', "CON", "amd64"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_kernel_arguments_of_the_new_image(name, host, layouts, clean, tmp_path):
    text, catalogue, thing = MALFORMED[name]
    host.serve(build(tmp_path / "bad", "3", kargs_d(text)))
    before = host.snapshot()
    assert_refused(host.upgrade(), catalogue, thing)
    host.assert_unchanged(before)
    if name[:3] + "_" not in {n[:4] for n in list(MALFORMED)[: list(MALFORMED).index(name)]}:
        host.assert_good_run(layouts["2"], clean=clean)  # once an id


@pytest.mark.parametrize("name", ["c05_not_toml", "c06_newline", "c07_too_long", "c08_init"])
def test_kernel_arguments_of_the_new_image_with_ostree(name, ostree, tmp_path):
    text, catalogue, thing = MALFORMED[name]
    host = copy(ostree[0], tmp_path)
    host.serve(build(tmp_path / "bad", "3", kargs_d(text)))
    before = host.snapshot()
    assert_refused(host.upgrade(), catalogue, thing)
    host.assert_unchanged(before)
    host.assert_good_run(ostree[1]["2"])


def test_c08_the_administrator_may(host, layouts):
    """What root wrote into the entry that boots is carried over, protected or not."""
    (entry,) = (host.sysroot / "boot/loader/entries").glob("*.conf")
    text = entry.read_text()
    entry.write_text(text.replace("options ", "options root=UUID=1 systemd.debug_shell "))
    host.assert_good_run(layouts["2"])
    newest = min(
        (host.sysroot / "boot/loader/entries").glob("*.conf"),
        key=lambda path: re.search(r"sort-key (.*)", path.read_text())[1],
    )
    assert "root=UUID=1 systemd.debug_shell" in newest.read_text()
    assert "version=2" in newest.read_text()


def test_c09_arguments_for_other_machines_are_left_out(host, tmp_path):
    host.serve(
        build(
            tmp_path / "other", "2", kargs_d('kargs = ["far"]\nmatch-architectures = ["s390x"]\n')
        )
    )
    assert host.upgrade().returncode == 0
    entries = [path.read_text() for path in (host.sysroot / "boot/loader/entries").glob("*.conf")]
    assert not [text for text in entries if " far" in text]


# --- C10 to C14: the command line and who calls it -------------------------------------------------------------------

REFERENCES = {
    "empty": "",
    "space": "quay.io/acme/my os",
    "only_spaces": "   ",
    "control": "quay.io/acme/os\x1b[2J",
    "newline": "quay.io/acme/os\nquay.io/evil/os",
    "shell": "quay.io/acme/$(touch /run/bootc-c10)",
    "long": "quay.io/" + "a" * 10_240,
    "homoglyph": "qu\u0430y.io/acme/os",
    "upper": "quay.io/Acme/OS",
    "port": "quay.io:99999/acme/os",
    "port_text": "quay.io:port/acme/os",
    "digest_short": "quay.io/acme/os@sha256:abc",
    "digest_md5": "quay.io/acme/os@md5:" + "0" * 32,
    "traversal": "quay.io/../../etc/passwd",
    "tag_empty": "quay.io/acme/os:",
    "tag_long": "quay.io/acme/os:" + "t" * 129,
    "scheme": "ftp://quay.io/acme/os",
    "userinfo": "user:secret@quay.io/acme/os",
}


@pytest.mark.parametrize("name", REFERENCES)
def test_c10_references(name, tmp_path):
    host = Host(tmp_path)
    done = host.run(
        "switch", "--sysroot", host.sysroot, "--no-signature-verification", "--", REFERENCES[name]
    )
    error = assert_refused(done, "USE")
    assert len(done.stderr) < 2000
    assert "secret" not in done.stderr
    assert error["reference"] == "bad-reference"
    assert list(tmp_path.iterdir()) == []
    assert not os.path.exists("/run/bootc-c10")


def test_c10_what_looks_like_an_option_is_none(host):
    before = host.snapshot()
    done = host.command("switch", "--transport", "oci", "--no-signature-verification", "--x")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    host.assert_unchanged(before)


def test_c10_tag_and_digest_together_are_a_reference(tmp_path):
    """It comes past the grammar, and its digest is what the registry is asked for."""
    asked = []

    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            place = f"127.0.0.1:{server.server_port}"
            registries = tmp_path / "root/etc/containers/registries.conf"
            registries.parent.mkdir(parents=True)
            registries.write_text(f'[[registry]]\nlocation = "{place}"\ninsecure = true\n')
            host = Host(tmp_path)
            reference = f"{place}/acme/os:1@sha256:" + "0" * 64
            flags = ("--config-root", tmp_path / "root", "--no-signature-verification")
            done = host.command("switch", *flags, reference)
        finally:
            server.shutdown()
            thread.join()
    assert_refused(done, "NOTFOUND", place)
    assert [path for path in asked if "manifests" in path] == [
        "/v2/acme/os/manifests/sha256:" + "0" * 64
    ]


def test_c11_variables_of_ours(host, layouts):
    """A value we do not know is refused; a name we do not know is told, once, and changes nothing."""
    before = host.snapshot()
    done = host.upgrade(env={"BOOTC_ERROR_FORMAT": "xml"})
    assert done.returncode == 1
    assert "BOOTC_ERROR_FORMAT" in done.stderr
    assert "xml" in done.stderr
    host.assert_unchanged(before)
    done = host.upgrade(env={"BOOTC_EROR_FORMAT": "json", "BOOTC_X\x1b": "1"})
    assert done.returncode == 0
    assert done.stderr.count("BOOTC_EROR_FORMAT") == 1
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONIOENCODING": "", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "", "LANG": "xx"},
        {"COLUMNS": "1", "LINES": "1", "TERM": "dumb"},
        {"TERM": "", "HOME": "/nonexistent", "USER": ""},
    ],
    ids=["c12_posix", "c12_unknown_language", "c12_narrow", "c12_no_home"],
)
def test_surroundings_that_must_not_matter(environment, host, layouts, tmp_path):
    """With names in the image's texts that need more than ASCII."""
    text = 'ID=acme\nPRETTY_NAME="Acmé 2 ☃"\nVERSION_ID=2\n'
    layout = build(tmp_path / "snow", "2", {"usr/lib/os-release": text, "etc/☃": "snow\n"})
    host.serve(layout)
    done = host.upgrade(env=environment)
    assert done.returncode == 0, done.stderr
    done = host.command("status", env=environment)
    assert done.returncode == 0, done.stderr
    assert host.versions() == (None, "2", "1")
    bad = host.command("switch", "--transport", "oci", "/gone/☃\udcff", env=environment)
    assert bad.returncode == 1
    assert "Traceback" not in bad.stderr


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-", ">/dev/full"])
def test_c12_streams_that_are_closed(closed, host, layouts):
    prefix = ("bash", "-c", f'exec "$@" {closed}', "bash")
    done = host.upgrade(prefix=prefix)
    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if "full" in closed else 0), done.stderr
    assert host.versions() == (None, "2", "1")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_c12_nobody_reads(stream, host, layouts):
    """A broken pipe, and for messages a full one whose reader sleeps: the update is made, and says so by its exit status."""
    reading, writing = os.pipe()
    os.close(reading)
    other = "stderr" if stream == "stdout" else "stdout"
    done = host.upgrade(**{stream: writing, other: subprocess.PIPE})
    os.close(writing)
    assert done.returncode == 0
    assert host.versions() == (None, "2", "1")


def test_c12_standard_error_is_a_full_pipe(host, layouts):
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    try:
        done = host.upgrade(stdout=subprocess.PIPE, stderr=writing, timeout=60)
        assert done.returncode == 0
        assert "Queued for next boot" in done.stdout
        assert host.versions() == (None, "2", "1")
        failed = host.run(
            "switch", "--sysroot", "/", "x", stdout=subprocess.PIPE, stderr=writing, timeout=60
        )
        assert failed.returncode == 2
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("columns", [1, 200])
def test_c12_terminals(columns, host, layouts):
    """On a terminal, however narrow, the same run succeeds; colours end with it."""
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [*CLI, "upgrade", "--sysroot", host.sysroot],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**refusal.ENVIRONMENT, "TERM": "xterm"}, close_fds=True,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 1)[0]:
            try:
                data = os.read(ours, 65536)
            except OSError:
                break
            if not data:
                break
            seen += data
    os.close(ours)
    assert process.wait(60) == 0, seen
    assert b"Traceback" not in seen
    assert host.versions() == (None, "2", "1")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["upgrde"], "did you mean upgrade?"),
        (["upgrade", "--chek"], "did you mean --check?"),
        (["upgrade", "--check", "--download-only"], "cannot be used with"),
        (["switch", "--no-signature-verification", "--enforce-container-sigpolicy", "x"], "not allowed with"),
        (["upgrade", "--apply"], "--apply"),
        (["switch"], "TARGET"),
        (["rollback", "extra"], "extra"),
    ],
)  # fmt: skip
def test_c13_mistyped_and_contradicting(arguments, told, host):
    before = host.snapshot()
    flags = [] if arguments == ["upgrde"] else ["--sysroot", host.sysroot]
    done = host.run(arguments[0], *flags, *arguments[1:])
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    host.assert_unchanged(before)


@pytest.fixture
def user(tmp_path):
    """An ordinary user with a directory of his own, who can read this checkout."""
    for parent in (tmp_path, *tmp_path.parents):
        if os.stat(parent).st_mode & 0o005 != 0o005:
            os.chmod(parent, os.stat(parent).st_mode | 0o011)
    home = tmp_path / "user"
    home.mkdir()
    os.chown(home, USER, USER)
    # reading what root can read, so that a checkout in root's home does not matter; writing is what an ordinary user may
    prefix = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=-all,+dac_read_search",
              "--ambient-caps=-all,+dac_read_search")  # fmt: skip
    return Host(home, environment={"HOME": str(home)}, prefix=prefix)


def test_c14_an_ordinary_user_with_composefs(user, layouts):
    """It works in a directory of his own, all three commands."""
    os.symlink(layouts["1"], user.live)
    done = user.switch()
    assert done.returncode == 0, done.stderr
    user.assert_good_run(layouts["2"])
    assert user.command("rollback").returncode == 0
    assert user.versions() == (None, "1", "2")
    assert {path.lstat().st_uid for path in user.sysroot.rglob("*")} == {USER}


def test_c14_an_ordinary_user_with_ostree(user, layouts):
    os.symlink(layouts["1"], user.live)
    user.backend = "ostree"
    done = user.switch()
    assert_refused(done, ("ENV", "USE"), "root")
    assert not user.sysroot.exists() or set(os.listdir(user.sysroot)) <= {"bootc"}


def test_c14_an_ordinary_user_with_a_host_of_root(user, host):
    before = host.snapshot()
    done = host.upgrade(prefix=user.prefix, env=user.environment)
    assert_refused(done, ("ENV", "IO", "STATE", "USE"))
    host.assert_unchanged(before)


def test_c14_in_a_container(host, layouts):
    """The running host cannot be changed from there, and is not looked for; a sysroot can."""
    done = host.run("upgrade", env={"container": "podman"})
    assert_refused(done, "ENV", "container")
    done = host.run("rollback", env={"container": "podman"})
    assert_refused(done, "ENV", "container")
    host.assert_good_run(layouts["2"])


def test_c14_in_a_chroot_without_proc(host, layouts):
    done = host.run("upgrade")
    assert_refused(done, "ENV", "--sysroot")


# --- C15: state of newer versions ------------------------------------------------------------------------------------


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


NEWER = {
    "meta_version": lambda value: value.update(version=2),
    "meta_incompatible": lambda value: value["features"].update(incompatible=["shiny"]),
    "meta_read_only": lambda value: value["features"].update(
        {"read-only-compatible": ["v1_erofs", "shiny"]}
    ),
    "meta_algorithm": lambda value: value.update(algorithm="fsverity-sha1024-12"),
}


@pytest.mark.parametrize("name", [*NEWER, "journal"])
def test_c15_state_of_a_newer_version(name, composefs, layouts, tmp_path):
    host = copy(composefs[0], tmp_path)
    host.assert_good_run(layouts["2"])
    booted = host.status()["booted"]["image"]["imageDigest"]
    host.serve(layouts["3"])
    if name == "journal":
        path = host.sysroot / "bootc/journal/99991231T235959.000000Z-ffffffff.jsonl"
        path.write_text('{"record":"begin","format":2,"operation":"teleport"}\n')
    else:
        edit_json(host.sysroot / "composefs/meta.json", NEWER[name])
    before = host.snapshot()
    assert_refused(host.upgrade(), "STATE")
    host.assert_unchanged(before)
    done = host.command("status", "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)["status"]
    assert status["booted"]["image"]["imageDigest"] == booted
    back = host.command("rollback")
    assert back.returncode == 0, back.stderr
    assert host.status()["rollback"]["image"]["imageDigest"] == booted
