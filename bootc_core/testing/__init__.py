"""The kit for plugin authors: fakes, a recorder and contract suites."""
