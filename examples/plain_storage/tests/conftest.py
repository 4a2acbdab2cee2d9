"""The fixtures of bootc's test kit."""

pytest_plugins = ["bootc_core.testing.pytest_plugin"]
