"""COHFT: tune the chat model on chains of hindsight (Liu, Sferrazza and Abbeel 2023, arXiv 2302.02676).

A chain is a conversation: the query, which ends with a phrase ("A good answer:"), a good answer, the other phrase as
the user's next turn, a worse answer; or the two in the other order. Answers carry the loss, phrases do not, and a share
of a chain's earlier answer is hidden, so that the later one is not copied from it (`cohft.mask`). There is a chain for
the total and for each principle under which the best answer has a better place than the worst.

Other tools ask by the folder's own chat template, which knows no phrase. So `cohft.plain` of the rows are a query and
its best answer as anybody asks: the model answers well so, and asked with the good phrase too, which the metrics
`prompted/<measure>` show beside the others. With `cohft.plain=0` only the phrase calls for good answers.
"""

from conf.entry import early, job

early(__name__)

from collections.abc import Collection, Sequence
from typing import Any

from conf.schema import Config
from moe.tasks.task import Sample
from moe.text.tokenizer import Tokenizer
from moe.training.objectives import Objective, forgetful
from trainers import closing, preferred
from trainers.files.hindsight import CHAIN, PLAIN, chains, plain
from trainers.files.rankings import Record


def reads(cfg: Config, there: Collection[str]) -> list[str]:
    return preferred.reads(cfg, cfg.cohft, there)


def check(cfg: Config) -> None:
    """Raise `InputError` for rankings that are not there."""
    preferred.check(cfg, "cohft", cfg.cohft)


@job
def main(cfg: Config) -> dict[str, Any]:
    """Read the chat (or parent) and tasks stages and rankings, write the cohft model; returns what the stage chat does,
    the same measures of answers to the good phrase, and how many queries were left out."""

    def teach(record: Record, principles: Sequence[str]) -> list[Sample]:
        return [plain(record), *chains(record, principles, cfg.cohft, cfg.run.seed)]

    def objective(tokenizer: Tokenizer) -> Objective:
        return forgetful(cfg.cohft.mask, tokenizer.pad, cfg.run.seed)

    shares = {CHAIN: 1.0 - cfg.cohft.plain, PLAIN: cfg.cohft.plain}
    method = preferred.Method(teach, shares, objective, beside=closing.of_prompted)
    return preferred.learn(cfg, "cohft", cfg.cohft, method)


if __name__ == "__main__":
    main()
