"""Nothing here is a test: the modules are imported by tests, or by the processes that tests start."""

collect_ignore_glob = ["*.py", "mlot_example_plugin"]
