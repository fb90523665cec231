"""Token ids to text: that which can be shown at once, and the name of each token."""

import codecs

from moe.text.tokenizer import Tokenizer


def token_name(tokenizer: Tokenizer, index: int) -> str:
    """A token as text, each its own: "月", "bytes:\\xe6" for a byte that is no character, "<|im_end|>", and
    "token_id:511" for an id that stands for nothing."""
    piece = tokenizer.bytes_of(index)
    if index in tokenizer.byte_ids:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
    return piece.decode() or tokenizer.specials.get(index) or f"token_id:{index}"


class TextStream:
    """Feed it the tokens of one answer; each call returns the text that became certain.

    Bytes wait for the rest of their character, and text that may be the beginning of a stop string waits for the next
    token. Once `stopped` is true the answer is over: the stop string, `stop`, and all after it are left out.
    """

    def __init__(self, tokenizer: Tokenizer, stops: list[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # text that may open a stop string
        self.stop = ""  # the one that ended the answer

    @property
    def stopped(self) -> bool:
        return bool(self.stop)

    def push(self, token: int) -> str:
        return self._release(self._decoder.decode(self._tokenizer.bytes_of(token)))

    def finish(self) -> str:
        """What is left when no token follows."""
        text = self._release(self._decoder.decode(b"", final=True))
        if self.stopped:
            return text
        held, self._held = self._held, ""
        return text + held

    def _release(self, fresh: str) -> str:
        if self.stopped:
            return ""
        text = self._held + fresh
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.stop = min(found)
            self._held = ""
            return text[:at]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
