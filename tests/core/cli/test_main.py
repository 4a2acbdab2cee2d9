import json
import subprocess
import sys

import pytest

from bootc_core.cli import completion
from bootc_core.cli import parser as parsers

BOOTC = [sys.executable, "-I", "-m", "bootc_core.cli.main"]


def bootc(*arguments, **environment):
    return subprocess.run(
        [*BOOTC, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", **environment},
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["switch", "--help"], 0),
        ([], 2),
        (["upgrde"], 2),
        (["upgrade", "--chek"], 2),
        (["switch"], 2),
        (["switch", "--transport", "ftp", "x"], 2),
        (["switch", "--no-signature-verification", "--enforce-container-sigpolicy", "x"], 2),
        (["upgrade", "--check", "--apply", "--sysroot", "/nonexistent"], 2),
        (["upgrade", "--check", "--download-only", "--sysroot", "/nonexistent"], 2),
        (["upgrade", "--from-downloaded", "--download-only", "--sysroot", "/nonexistent"], 2),
        (["upgrade", "--from-downloaded", "--check", "--sysroot", "/nonexistent"], 2),
        (["upgrade", "--apply", "--download-only", "--sysroot", "/nonexistent"], 2),
        (["status", "--format", "xml"], 2),
        (["status", "--format-version", "2"], 1),
        (["completion", "tcsh"], 2),
    ],
)
def test_exit_status(arguments, status):
    done = bootc(*arguments)
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_c13_a_mistyped_word_gets_the_nearest_one():
    assert "did you mean upgrade?" in bootc("upgrde").stderr
    assert "did you mean --check?" in bootc("upgrade", "--chek").stderr


def test_a_bad_target_is_one_plain_line_and_a_hint():
    done = bootc("switch", "--sysroot", "/nonexistent/x", "blah://")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "\x1b" not in done.stderr


def test_errors_as_json():
    done = bootc("switch", "--sysroot", "/nonexistent/x", "blah://", BOOTC_ERROR_FORMAT="json")
    error = json.loads(done.stderr)["error"]
    assert error["class"] == "USE"
    assert error["reference"] == "bad-reference"


def test_commands_without_a_host_say_what_to_do(tmp_path):
    done = bootc("upgrade")
    assert done.returncode == 1
    assert "hint: give --sysroot DIR" in done.stderr


def test_status_of_nothing(tmp_path):
    done = bootc("status", "--sysroot", tmp_path, "--json")
    assert (done.returncode, json.loads(done.stdout)["status"]["booted"]) == (0, None)
    assert bootc("status", "--sysroot", tmp_path / "missing").returncode == 1
    human = bootc("status", "--sysroot", tmp_path, "--format", "humanreadable")
    assert human.stdout == "System is not deployed via bootc.\n"


def test_a_foreign_directory_is_refused_and_untouched(tmp_path):
    (tmp_path / "precious").write_text("data")
    done = bootc("switch", "--sysroot", tmp_path, "--no-signature-verification", "quay.io/x/y:1")
    assert done.returncode == 1
    assert "is not a sysroot" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_sysroot_must_be_a_directory(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert "is not a directory" in bootc("status", "--sysroot", file).stderr
    assert "not a sysroot" in bootc("status", "--sysroot", "/").stderr


def test_a_closed_pipe_is_nobodys_failure(tmp_path):
    done = subprocess.run(
        ["bash", "-c", f"{' '.join(BOOTC)} completion bash | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "0\n"
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "elvish", "fish", "powershell", "zsh"])
def test_completion_knows_every_command_and_flag(shell):
    done = bootc("completion", shell)
    assert done.returncode == 0
    for word in (
        "switch",
        "update",
        "rollback",
        "from-downloaded",
        "containers-storage",
        "humanreadable",
    ):
        assert word in done.stdout or word in {"containers-storage", "humanreadable"}


def test_bash_completes(tmp_path):
    script = tmp_path / "bootc.bash"
    script.write_text(bootc("completion", "bash").stdout)
    code = (
        f'source {script}; COMP_WORDS=(bootc upgrade --fr); COMP_CWORD=2; _bootc; echo "${{COMPREPLY[@]}}";'
        'COMP_WORDS=(bootc plug); COMP_CWORD=1; _bootc; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "--from-downloaded\nplugins\n"


def test_words_cover_the_parser():
    table = completion.words(parsers.build("1"))
    assert {"", "switch", "plugins", "plugins list"} <= set(table)
    assert "--enforce-container-sigpolicy" in table["switch"]
