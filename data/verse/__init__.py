"""The domain of the demo: instruction tasks made of Chinese poems, and the rules of verse."""

from data.verse.judge import OPTIONS, judge
from data.verse.samples import check, samples

__all__ = ["FIELDS", "OPTIONS", "check", "judge", "samples"]

FIELDS = ("form", "title", "first", "line")  # that a query may have: the form of a poem, what it is to be about
