"""Token ids to text that can be shown at once: whole characters only, and nothing of a stop string."""

from moe.tokenizer import Tokenizer

BROKEN = "\N{REPLACEMENT CHARACTER}"
LONGEST = 4  # bytes of a UTF-8 character


class TextStream:
    """Feed it the tokens of one answer; each call returns the text that became certain.

    Bytes wait for the rest of their character, and text that may be the beginning of a stop string waits for the next
    token. Once `stopped` is true the answer is over: the stop string and all after it are left out.
    """

    def __init__(self, tokenizer: Tokenizer, stops: list[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._bytes: list[int] = []  # ids of byte pieces that make no character yet
        self._held = ""  # text that may open a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        if token not in self._tokenizer.byte_ids:
            return self._release(self._flush() + self._tokenizer.decode([token]))
        self._bytes.append(token)
        for bad in range(len(self._bytes)):  # bytes before the character that the newest one completes
            text = self._tokenizer.decode(self._bytes[bad:])
            if text != BROKEN * (len(self._bytes) - bad):  # the decoder gives one mark a byte when they are no UTF-8
                self._bytes.clear()
                return self._release(BROKEN * bad + text)
        if len(self._bytes) < LONGEST:
            return ""
        del self._bytes[0]  # can't begin a character any more; the bytes after it still may
        return self._release(BROKEN)

    def finish(self) -> str:
        """What is left when no token follows."""
        text = self._release(self._flush())
        if self.stopped:
            return text
        held, self._held = self._held, ""
        return text + held

    def _flush(self) -> str:
        text = BROKEN * len(self._bytes)
        self._bytes.clear()
        return text

    def _release(self, fresh: str) -> str:
        if self.stopped:
            return ""
        text = self._held + fresh
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
