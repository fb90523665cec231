"""The corpus as datatrove makes it, for tests/bench/test_corpus.py: run by the Python that has datatrove, by itself.

`python peers.py <folder> <tokenizer.json>` reads <folder>/en.jsonl and zh.jsonl and does what the published recipe for
FineWeb does (Gopher's rules on repetition and quality, FineWeb's on lines, MinHash in four stages, token ids), one
task after the other in one process. For Chinese the bounds that count English words are off, as they would reject all.
"""

import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers.jsonl import JsonlWriter

NO_WORDS = dict.fromkeys(
    ["min_doc_words", "min_avg_word_length", "max_avg_word_length", "min_stop_words", "max_non_alpha_words_ratio"]
)


def main(folder: Path, tokenizer: str) -> None:
    for language in ("en", "zh"):
        place = folder / f"datatrove-{language}"
        english = language == "en"
        rules = [
            GopherRepetitionFilter(language=language),
            GopherQualityFilter(language=language, **({} if english else NO_WORDS)),
            *([FineWebQualityFilter()] if english else []),
        ]
        minhash = MinhashConfig()
        steps = [
            [
                JsonlReader(str(folder), glob_pattern=f"{language}.jsonl"),
                *rules,
                JsonlWriter(str(place / "clean"), compression=None),
            ],
            [
                JsonlReader(str(place / "clean")),
                MinhashDedupSignature(str(place / "signatures"), config=minhash, language=language),
            ],
            [MinhashDedupBuckets(str(place / "signatures"), str(place / "buckets"), config=minhash)],
            [MinhashDedupCluster(str(place / "buckets"), str(place / "remove"), config=minhash)],
            [
                JsonlReader(str(place / "clean")),
                MinhashDedupFilter(str(place / "remove")),
                DocumentTokenizer(str(place / "tokens"), tokenizer, eos_token="<|endoftext|>", shuffle_documents=False),
            ],
        ]
        for number, pipeline in enumerate(steps):
            tasks = minhash.num_buckets if number == 2 else 1
            logs = str(place / f"logs-{number}")
            LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=1, logging_dir=logs).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
