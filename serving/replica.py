"""One replica of the service: what it is told, and what it makes of that."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from fastapi import FastAPI

from dropgen import memory
from dropgen.serving.api import create_api
from dropgen.serving.engine import work
from dropgen.serving.limits import Limits
from dropgen.serving.models import Models
from dropgen.serving.tokens import Tokens

MODEL_SHARE = 0.25  # of a replica's memory, for models; the rest is for predictions
GIB = 2**30


@dataclass(frozen=True)
class Deployment:
    """What every replica is told.

    Attributes:
        root: Output root, on a disk that all nodes see.
        default: `name@alias` for requests that name no model.
        tokens: Who may ask.
        least: Replicas at rest.
        most: Replicas under load.
        model_bytes: What the loaded models of a replica may take; None for a quarter of its share of the memory.
        margin_bytes: What a replica may keep beyond models and volume before it is replaced; infinite for any.
        queue: Requests for a mask that a replica takes on.
        answer_seconds: From a received body to its mask.
        keep_seconds: How long a finished job is kept.
        sources: Folders that a job's volume may be named in.
    """

    root: Path
    default: str
    tokens: Tokens
    least: int = 1
    most: int = 1
    model_bytes: int | None = None
    margin_bytes: float = 2 * GIB
    queue: int = 16
    answer_seconds: float = 900
    keep_seconds: float = 24 * 3600
    sources: tuple[Path, ...] = ()


class Replica:
    """What Ray Serve runs; the default model is loaded before it is reported ready.

    Args:
        plan: What it is told.
        threads: CPU threads.
        device: Where it predicts.
    """

    def __init__(self, plan: Deployment, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        share = memory.available() // plan.most
        models = Models(plan.root, plan.default, plan.model_bytes or int(share * MODEL_SHARE), device)
        limits = Limits(
            int(share * (1 - MODEL_SHARE)), queue=plan.queue, answer_seconds=plan.answer_seconds,
            keep_seconds=plan.keep_seconds, sources=plan.sources, margin=plan.margin_bytes,
        )  # fmt: skip
        self._api, engine, jobs = create_api(plan.root, models, plan.tokens, limits)
        models.segmenter(models.find())
        self._watchdog, stop = engine.watchdog, threading.Event()
        self._watchdog.settle()
        threading.Thread(target=work, args=(engine, jobs, limits.job_caps, stop), daemon=True).start()
        threading.Thread(target=self._watchdog.keep_looking, args=(stop,), daemon=True).start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._api

    def check_health(self) -> None:
        """Asked by Serve every few seconds; a replica that fails three times is ended in order, and another started.

        Raises:
            WornError: It keeps too much memory, and has nothing in hand.
        """
        self._watchdog.require_sound()
