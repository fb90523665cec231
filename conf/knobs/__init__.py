"""The sections of the config tree: plain dataclasses, each field documented beside it."""
