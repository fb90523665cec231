"""Every knob: typed schema, YAML presets, and the one place that knows hydra."""
