"""A web service that classifies uploads through the queue: `uvicorn upload_service:app` in this folder.

    pip install ../.. fastapi python-multipart uvicorn
    REDIS_URL=redis://localhost:6379/0 uvicorn upload_service:app --port 8000
    curl -F picture=@photo.jpg http://localhost:8000/classify

The service loads no model: workers (`coatstream run`) do the work, as many as there are. A service that gets more than
they can do answers 503 instead of growing a queue that no client waits for.
"""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from coatstream import (
    AsyncProducer,
    FrameDead,
    FrameDropped,
    LabelDocument,
    NoOutcome,
    Picture,
    QueueFull,
    RedisUnavailable,
    Terms,
)
from fastapi import FastAPI, File, HTTPException, Request

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
TIMEOUT = 10.0  # seconds that a client waits


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One producer for all requests: they share its connections."""
    async with AsyncProducer.connect(REDIS_URL, Terms(full_timeout=1.0)) as producer:
        app.state.producer = producer
        yield


app = FastAPI(title="What is in this picture?", lifespan=lifespan)


@app.post("/classify")
async def classify(request: Request, picture: Annotated[bytes, File()]) -> LabelDocument:
    """The label of one picture."""
    producer: AsyncProducer = request.app.state.producer
    frame = Picture(picture, source="uploads", expires_at=time.time() + TIMEOUT)  # later no worker needs to look at it
    try:
        return await producer.classify(frame, timeout=TIMEOUT)
    except FrameDead as failure:
        raise HTTPException(422, f"this is no picture that can be classified: {failure}") from None
    except (QueueFull, RedisUnavailable, FrameDropped) as failure:
        raise HTTPException(503, str(failure), {"Retry-After": "5"}) from None
    except NoOutcome as failure:
        raise HTTPException(504, str(failure)) from None
