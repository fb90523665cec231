"""Instruction data that a model makes of passages of the corpus."""

from dataclasses import dataclass
from math import inf

from conf.errors import InputError
from conf.knobs.checks import positive, share


@dataclass(kw_only=True)
class Teach:
    """`rlhf.teacher.teach`: the model of the section judge asks and answers about passages of the corpus."""

    passages: int = 1000  # of the train split, drawn by the seed
    characters: int = 1200  # of a passage at most; it ends with a sentence
    least: int = 200  # characters of a passage at least: a shorter document has nothing to ask about
    questions: int = 3  # that are asked for about a passage
    temperature: float = 0.7
    max_new_tokens: int = 1024  # of a reply
    grounded: float = 0.5  # share of an answer's pairs of words, or of Han characters, that the passage must have
    copied: float = 0.9  # of the passage's length that an answer may have
    alike: float = 0.8  # share of their pairs of words from which on two questions are the same
    least_question: int = 3  # words, or Han characters; so below
    most_question: int = 60
    least_answer: int = 3
    most_answer: int = 300
    easiest: int = 1  # of difficulty, as the teacher says it, from 1 to 5
    hardest: int = 5
    turns: int = 3  # of a conversation into which related questions about a passage are merged; 1: none are
    related: float = 0.1  # share of what two pairs have in common from which on they are related
    max_lost: float = 0.1  # share of the passages without a usable reply; above it the job stops

    def __post_init__(self) -> None:
        positive("teach", self, "passages", "characters", "least", "questions", "max_new_tokens", "turns")
        share("teach", self, "grounded", "copied", "alike", "related", "max_lost")
        if not 0 <= self.temperature < inf:
            raise InputError(f"teach.temperature={self.temperature} must not be negative")
        if self.least > self.characters:
            raise InputError(f"teach.least={self.least} must be at most teach.characters={self.characters}")
        if not 1 <= self.easiest <= self.hardest <= 5:
            raise InputError(
                f"teach.easiest={self.easiest} and teach.hardest={self.hardest} must lie in [1, 5], in order"
            )
