"""FastAPI with ONNX Runtime: `async def`, `def` (a thread pool), and `def` behind a semaphore that refuses with 503."""

from __future__ import annotations

import asyncio

import numpy as np
from fastapi import FastAPI, HTTPException
from fastapi.concurrency import run_in_threadpool
from peer_model import SETTINGS, Model
from pydantic import BaseModel

app = FastAPI()
model = Model()
places = asyncio.Semaphore(SETTINGS.max_waiting)


class Body(BaseModel):
    """One row."""

    row: list[float]


def answer(body: Body) -> dict[str, list[float]]:
    """Run one row."""
    return {"scores": model.run(np.array(body.row, dtype=model.dtype)[None])[0].tolist()}


async def answer_in_loop(body: Body) -> dict[str, list[float]]:
    """Run one row and let everybody else wait."""
    return answer(body)


async def answer_if_free(body: Body) -> dict[str, list[float]]:
    """Run one row in the thread pool, unless too many are there."""
    if SETTINGS.sheds and places.locked():
        raise HTTPException(status_code=503, headers={"Retry-After": "1"})
    async with places:
        return await run_in_threadpool(answer, body)


endpoints = {"async": answer_in_loop, "def": answer, "semaphore": answer_if_free}
app.post("/predict", response_model=None)(endpoints[SETTINGS.kind])
