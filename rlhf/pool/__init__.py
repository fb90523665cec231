"""The experience pool: answers that are still to be learnt from."""
