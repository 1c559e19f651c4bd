"""A backend that comes with another package: what its entry point names is the record below."""

from mlot import BackendSpec

SPEC = BackendSpec(
    "example", "mlot_example_plugin.backend", ("mlot_example_plugin.array.Array",), "ExampleBackend"
)
