import os
import subprocess
import sys

import pytest

from bootc_core.engine.lock import exclusive
from bootc_core.errors import TransactionError
from bootc_core.models.sysroot import Sysroot

HOLD = """
import sys
from pathlib import Path
from bootc_core.engine.lock import exclusive
from bootc_core.models.sysroot import Sysroot
place = Path(sys.argv[1])
with exclusive(Sysroot(place, place), "upgrade"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_loser_leaves_at_once_and_names_the_holder(tmp_path):
    sysroot = Sysroot(tmp_path, tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TransactionError) as caught, exclusive(sysroot, "switch"):
            pass
        assert caught.value.reference == "locked"
        assert caught.value.catalogue == "BUSY"
        assert f"pid {holder.pid}, bootc upgrade, since 20" in caught.value.found
        holder.kill()
    with exclusive(sysroot, "switch"):  # the kernel dropped the dead holder's lock
        assert (tmp_path / "bootc/lock").read_text().startswith("{")


def test_two_openings_in_one_process_exclude_each_other(tmp_path):
    sysroot = Sysroot(tmp_path, tmp_path)
    with (
        exclusive(sysroot, "switch"),
        pytest.raises(TransactionError),
        exclusive(sysroot, "upgrade"),
    ):
        pass


def test_x10_a_replaced_lock_file_is_noticed_by_the_next(tmp_path):
    sysroot = Sysroot(tmp_path, tmp_path)
    with exclusive(sysroot, "switch"):
        os.unlink(tmp_path / "bootc/lock")
        with exclusive(sysroot, "upgrade"):
            assert (tmp_path / "bootc/lock").exists()


def test_a_child_that_a_library_forked_does_not_keep_it(tmp_path):
    sysroot = Sysroot(tmp_path, tmp_path)
    waits, goes = os.pipe()
    with exclusive(sysroot, "switch"):
        child = os.fork()
        if child == 0:
            os.close(goes)
            os.read(waits, 1)
            os._exit(0)
    with exclusive(sysroot, "upgrade"):
        pass
    os.close(goes)
    os.close(waits)
    assert os.waitpid(child, 0)[1] == 0
