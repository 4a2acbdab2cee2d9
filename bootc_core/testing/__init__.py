"""The test kit for plugin authors: a whole system in a directory, run by the real engine.

    from bootc_core.testing import System, make_image

    def test_my_gate(tmp_path):
        system = System(tmp_path, plugins={"mine": my_plugin})
        system.transport.images["quay.io/x/os:1"] = make_image("1")
        with pytest.raises(Denied):
            system.switch("quay.io/x/os:1")

``StorageContract`` in ``bootc_core.testing.contract`` is the suite that every storage backend
passes.
"""

from __future__ import annotations

from bootc_core.testing.fakes import FakeBackend, FakeBootloader, FakePolicy, FakeTransport
from bootc_core.testing.harness import System, load_plugins
from bootc_core.testing.images import FakeImage, FakeLayer, Link, make_image, make_layer
from bootc_core.testing.recorder import Recorder, hook_names

__all__ = [
    "FakeBackend",
    "FakeBootloader",
    "FakeImage",
    "FakeLayer",
    "FakePolicy",
    "FakeTransport",
    "Link",
    "Recorder",
    "System",
    "hook_names",
    "load_plugins",
    "make_image",
    "make_layer",
]
