"""Talk to a run's model in the terminal, without a server: python -m serving.chat run.name=demo."""

from conf.entry import early, job

early(__name__)

import contextlib
import importlib

import torch

from cluster.feedback import FILE, Store
from conf.errors import InputError
from conf.schema import Config
from moe.generation.engine import Engine, Sampling
from moe.tasks.domain import Domain
from moe.text.tokenizer import Tokenizer
from serving.models import find_model, load_model, version
from serving.terminal import Left, Session

TEMPERATURE = 0.8  # until /temperature says otherwise


@job
def main(cfg: Config) -> dict[str, float]:
    folder, name = find_model(cfg)
    if cfg.cluster.threads:
        torch.set_num_threads(cfg.cluster.threads)
    tokenizer = Tokenizer.load(folder)
    session = Session(
        engine=Engine(
            load_model(folder, int8=cfg.serve.int8, bf16=cfg.serve.bf16, device=cfg.cluster.device), 1, tokenizer.stop
        ),
        tokenizer=tokenizer,
        name=name,
        version=version(folder),
        principles=Domain.of(cfg.tasks).principles,
        store=Store(cfg.run.folder / FILE),
        sampling=Sampling(cfg.serve.max_new_tokens, temperature=TEMPERATURE),
    )
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # arrow keys and the lines before, where Python has it
    print(f"{name}. /help says what can be done; Ctrl-D ends it.", flush=True)
    with contextlib.suppress(EOFError, KeyboardInterrupt, Left):
        while True:
            turn(session, input("\n> ").strip())
    session.store.close()
    return {}


def turn(session: Session, line: str) -> None:
    """Do or answer one line; what goes wrong is said and ends nothing. Raises `Left`."""
    try:
        words: str | None = line
        if line.startswith("/"):
            said, words = session.do(line)
            if said:
                print(said, flush=True)
        if words:
            try:
                with contextlib.closing(session.answer(words)) as pieces:
                    for piece in pieces:
                        print(piece, end="", flush=True)
            except KeyboardInterrupt:
                print(" [stopped]", end="")
            print(flush=True)
    except InputError as error:
        print(f"error: {error}", flush=True)
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
